"""What a run was computed with."""

import json
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch

import metagradient
from metagradient.reporting import Record
from metagradient.reporting.runs.environment import commit


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    return subprocess.run(
        ["git", "-C", str(folder), *who, *arguments], capture_output=True, text=True, check=True
    ).stdout.strip()


def test_a_run_says_what_it_is_computed_with_from_its_start_on(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    try:
        with Record.open({"logger": {"mode": "disabled"}}, "selection", tmp_path) as record:
            started = json.loads((record.directory / "environment.json").read_text())
            torch.set_num_threads(threads + 1)  # as an experiment does once it has begun
    finally:
        torch.set_num_threads(threads)
    ended = json.loads((tmp_path / "environment.json").read_text())
    assert ended == started | {"threads": threads + 1}
    assert ended["metagradient"] == metagradient.__version__
    assert ended["packages"]["torch"] == version("torch")
    assert ended["cpus"] >= 1


def test_the_commit_is_that_of_the_checkout_that_tracks_the_file(tmp_path: Path) -> None:
    file, ignored = tmp_path / "package" / "file.py", tmp_path / ".venv" / "file.py"
    for path in (file, ignored):
        path.parent.mkdir()
        path.write_text("x = 1\n")
    assert commit(file) is None
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", "package")
    git(tmp_path, "commit", "--quiet", "-m", "one")
    git(tmp_path, "tag", "v1")  # a tag does not stand for the commit
    head = git(tmp_path, "rev-parse", "HEAD")
    assert commit(file) == head
    assert commit(ignored) is None  # installed below the checkout of something else
    file.write_text("x = 2\n")
    assert commit(file) == f"{head}-dirty"

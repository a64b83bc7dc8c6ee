"""A disk that is full at any write: one line, nothing earlier lost, and resume=true goes on once there is room."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from killing import left_by
from test_kills import RUNS

ROOM = (500, 1500, 6_000, 12_000, 40_000, 120_000)
"""Bytes that a file may have: the first stops config.yaml, others a save, a figure, the model, the scores."""
LIMITED = """
import resource, sys
from metagradient.cli.command import main
room = int(sys.argv.pop(1))
if room:
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
main()
"""


def run(place: Path, room: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    place.mkdir(parents=True, exist_ok=True)
    env = os.environ | {"METAGRADIENT_CACHE": str(place / "cache")}
    command = [sys.executable, "-c", LIMITED, str(room), *arguments]
    return subprocess.run(command, cwd=place, env=env, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("experiment", RUNS)
def test_a_full_disk_is_one_line_and_the_run_goes_on(experiment: str, tmp_path: Path) -> None:
    assert run(tmp_path / "whole", 0, experiment, *RUNS[experiment]).returncode == 0
    (directory,) = (tmp_path / "whole" / "outputs" / experiment).iterdir()
    whole, wrong = left_by(directory), []
    for room in ROOM:
        place = tmp_path / str(room)
        full = run(place, room, experiment, *RUNS[experiment])
        last = full.stderr.strip().rpartition("\n")[2]
        if full.returncode and ("Traceback" in full.stderr or "no room to write" not in last):
            wrong.append((room, full.returncode, full.stderr[-500:]))
        if full.returncode:
            again = run(place, 0, experiment, *RUNS[experiment], "resume=true")
            assert again.returncode == 0, again.stderr
        newest = max((place / "outputs" / experiment).iterdir())
        if left_by(newest) != whole:
            wrong.append((room, "other artifacts", ""))
    assert wrong == []


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in ("file/run", "/proc/run"):
        done = run(tmp_path, 0, "selection", "debug=fast", f"hydra.run.dir={place}")
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        assert done.stderr.count("\n") == 1
        assert place in done.stderr

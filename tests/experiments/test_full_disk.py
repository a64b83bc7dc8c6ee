"""A disk that is full at any write: one line, nothing earlier lost, and resume=true goes on once there is room."""

import os
import re
import resource
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from console import Done, run_in
from killing import directory_of, left_by
from runs import BRIEF, ON_DISK, some

LIMITED = """
import resource, sys
from metagradient.cli.command import main
room = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
main()
"""


def limited(place: Path, room: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A run whose files may have so many bytes."""
    place.mkdir(parents=True, exist_ok=True)
    env = os.environ | {"METAGRADIENT_CACHE": str(place / "cache")}
    command = [sys.executable, "-c", LIMITED, str(room), *arguments]
    return subprocess.run(command, cwd=place, env=env, capture_output=True, text=True, timeout=300, check=False)


class Disk:
    """Counts the writes below a folder; from the `full`-th on there is no room.

    A write is a file that is opened to be written, or renamed: what other languages write lies between two of them.
    """

    def __init__(self) -> None:
        self.folder: str | None = None
        self.full: int | None = None
        self.writes: list[str] = []
        sys.addaudithook(self._heard)  # which nobody can take back

    def _heard(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.folder is None or event not in ("open", "os.rename") or not isinstance(arguments[0], str | Path):
            return
        path = os.path.abspath(arguments[0])
        if path.startswith(self.folder) and (event == "os.rename" or (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR)):
            if len(self.writes) == self.full:
                resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
            self.writes.append(f"{event} {re.sub(r'[0-9]+', '0', os.path.basename(path))}")

    def run(self, place: Path, full: int | None, experiment: str, *arguments: str) -> Done:
        """The experiment in the folder `place`, which is made."""
        place.mkdir(parents=True, exist_ok=True)
        self.folder, self.full, self.writes = str(place.resolve()), full, []
        try:
            return run_in(place, experiment, *arguments)
        finally:
            self.folder = None
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


@pytest.fixture(scope="module")
def disk() -> Disk:
    return Disk()


def fatal(writes: list[str]) -> list[int]:
    """The first and the last write of each file, and those after them, of which Python may not know."""
    ends = {writes.index(name) for name in writes} | {len(writes) - 1 - writes[::-1].index(name) for name in writes}
    return sorted(i for i in ends | {i + 1 for i in ends} if i < len(writes))


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", [*BRIEF, *ON_DISK])
def test_a_disk_that_is_full_from_any_write_on(
    kind: str, disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment, overrides = (BRIEF | ON_DISK)[kind]
    monkeypatch.setenv("METAGRADIENT_CACHE", "cache")
    assert disk.run(tmp_path / "whole", None, experiment, *overrides).status == 0
    whole, writes = left_by(directory_of(tmp_path / "whole", experiment)), disk.writes
    wrong, statuses = [], []
    for write in some(fatal(writes)):
        place = tmp_path / str(write)
        full = disk.run(place, write, experiment, *overrides)
        statuses.append(full.status)
        last = full.err.strip().rpartition("\n")[2]
        if full.status not in (0, 1, 2) or "Traceback" in full.err or (full.status and "no room to write" not in last):
            wrong.append((write, writes[write], full.status, full.err[-500:]))
        if full.status:
            again = disk.run(place, None, experiment, *overrides, "resume=true")
            if again.status:
                wrong.append((write, writes[write], again.status, again.err[-500:]))
                continue
        if left_by(max((place / "outputs" / experiment).iterdir())) != whole:
            wrong.append((write, writes[write], "other artifacts", full.err[-500:]))
    print(f"\n{kind}: full at {len(statuses)} of {len(writes)} writes; {dict(Counter(statuses))} by status")
    assert wrong == []


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in ("file/run", "/proc/run"):
        done = limited(tmp_path, -1, "selection", "debug=fast", f"hydra.run.dir={place}")
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        assert done.stderr.count("\n") == 1
        assert place in done.stderr


@pytest.mark.parametrize(
    ("taken", "command"),
    [
        ("here/artifacts", ["selection", "hydra.run.dir=here"]),
        ("here/figures", ["schedule", "hydra.run.dir=here"]),
        ("here/refit", ["selection", "hydra.run.dir=here", "refit=true"]),
        ("outputs", ["smoothness"]),
        ("file", ["selection", "hydra.run.dir=file/run"]),
        ("file", ["selection", "-m", "seed=0,1", "hydra.sweep.dir=file/sweep"]),
        ("file", ["selection", "replay.storage=disk", "replay.folder=file/states"]),
        ("file", ["unlearning", "run_folder=file/runs"]),
        ("file", ["unlearning", "history.storage=disk", "history.folder=file/states"]),
        ("here/run.log/x", ["selection", "hydra.run.dir=here"]),  # a folder in the place of a file
        ("here/metrics.json/x", ["selection", "hydra.run.dir=here"]),
        ("here/artifacts/selection.csv/x", ["selection", "hydra.run.dir=here"]),
        ("here/artifacts/scores.safetensors/x", ["attribution", "hydra.run.dir=here"]),
        ("here/artifacts/poisons.safetensors/x", ["poisoning", "hydra.run.dir=here", "defences=false"]),
        ("here/figures/weights.png/x", ["selection", "hydra.run.dir=here"]),
        ("here/descent.safetensors/x", ["selection", "hydra.run.dir=here"]),
    ],
)
def test_where_something_else_lies_is_one_line(taken: str, command: list[str], tmp_path: Path) -> None:
    """A read-only folder as root meets it, whom permissions do not stop."""
    (tmp_path / taken).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / taken).write_text("")
    done = run_in(tmp_path, *command, "debug=fast", "logger.mode=disabled")
    named = taken.removesuffix("/x").rpartition("/")[2]
    last = done.err.strip().rpartition("\n")[2]
    assert done.status == 2, done.err
    assert "Traceback" not in done.err
    assert named in last

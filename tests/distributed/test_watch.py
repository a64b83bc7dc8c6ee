"""What is divided among processes, and a process that learns that another has ended while it asks it nothing."""

import os
import signal
import time
from functools import partial
from pathlib import Path

import pytest
from processes import ends, together

from metagradient.distributed import SOLO, Group, watch, watched


def cubes(group: Group) -> tuple[list[int], list[int]]:
    """What is found together, and what this process found by itself."""
    own: list[int] = []

    def cube(i: int) -> int:
        own.append(i)
        return i**3

    return group.divided(5, cube), own


def test_each_process_computes_a_share(tmp_path: Path) -> None:
    found = together([1, 2, 3], cubes, tmp_path)
    for size, told in found.items():
        assert [whole for whole, _ in told] == [[0, 1, 8, 27, 64]] * size
        assert [own for _, own in told] == [list(range(rank, 5, size)) for rank in range(size)]


def busy(group: Group, dies: bool) -> None:
    """Process 1 ends while process 0 is at work for itself; a word is said for it where it dies."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
    watch._PATIENCE = 0.5
    seen = time.monotonic() + 1
    with watched(group, lambda: "process 1 was killed" if dies and time.monotonic() > seen else None):
        if group.rank == 1 and dies:
            os._exit(1)
        if group.rank == 1:
            raise ValueError("no such row\nof 3")
        time.sleep(140)


@pytest.mark.parametrize(("dies", "why"), [(False, "process 1 ended: no such row"), (True, "process 1 was killed")])
def test_a_busy_process_is_told(tmp_path: Path, dies: bool, why: str) -> None:
    first, second = ends(2, partial(busy, dies=dies), tmp_path / "run", seconds=150)
    assert str(first).endswith(f"ProcessLost: {why}")
    assert second is None if dies else str(second).endswith("of 3")


def test_one_process_watches_nobody() -> None:
    with pytest.raises(KeyError), watched(SOLO):
        raise KeyError("own")

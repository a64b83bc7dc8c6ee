"""A process that fails alone, or dies, ends the others within seconds, with one line that says which and why."""

import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import DATA, HELD_OUT, batches, classifier, metaparameters
from processes import ends
from torch import Tensor

import metagradient as mg
from metagradient.distributed import Group


class Broken(mg.Classifier):
    """Losses that fail in one process, at the third step."""

    def losses(self, batch: mg.Batch) -> Tensor:
        if batch.t == 2 and self.group.rank == 1:
            raise RuntimeError("no memory left\nsomewhere")
        return super().losses(batch)


def broken(group: Group) -> None:
    learner = Broken(classifier(group).model)
    learner.group = group
    mg.train(learner, batches(DATA))


def not_finite(group: Group) -> None:
    """Row 9, of the second batch, which the last process runs."""
    data = {name: x.clone() for name, x in DATA.items()}
    data["x"][9] = torch.nan
    mg.train(classifier(group), batches(data))


def dying(group: Group, call: int) -> int:
    """Process 1 is gone before its call number `call` to the others, of a whole metagradient; how many there are."""
    calls = [0]

    def counted(inner: Any, self: Group, collective: Any) -> None:
        if group.rank == 1 and calls[0] == call:
            os._exit(1)
        calls[0] += 1
        inner(self, collective)

    inner = Group._ask
    Group._ask = lambda self, collective: counted(inner, self, collective)  # type: ignore[method-assign]
    mg.metagradient(classifier(group), batches(DATA), metaparameters(), mg.mean_loss(HELD_OUT), checkpoints="every(4)")
    return calls[0]


def test_the_others_say_which_process_failed_and_why(tmp_path: Path) -> None:
    own, *others = sorted(str(end) for end in ends(3, broken, tmp_path / "run") if end)
    first = next(line for line in (own, *others) if "ProcessLost" in line)
    assert first.endswith("ProcessLost: process 1 ended: no memory left")
    assert sum("ProcessLost" in line for line in (own, *others)) == 2


def test_what_is_not_finite_in_one_process_ends_all_alike(tmp_path: Path) -> None:
    found = ends(2, not_finite, tmp_path / "run")
    assert len(set(found)) == 1
    assert "x is not finite in rows 9" in str(found[0])


@pytest.mark.parametrize("call", [0, 5])
def test_a_process_that_dies_ends_the_others(tmp_path: Path, call: int) -> None:
    found = ends(2, partial(dying, call=call), tmp_path / "run")
    assert found[1] is None
    assert "process 1 has ended without a word" in str(found[0])


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_process_that_dies_at_any_call_ends_the_others(tmp_path: Path) -> None:
    found = ends(2, partial(dying, call=-1), tmp_path / "whole")
    assert found == ["", ""]
    calls = int(torch.load(tmp_path / "whole" / "2-0.pt", weights_only=False))
    assert calls > 30
    for call in range(calls):
        found = ends(2, partial(dying, call=call), tmp_path / str(call))
        assert found[1] is None
        assert "process 1 has ended without a word" in str(found[0]), call

"""Processes that share a run must be about to compute the same, and must have computed the same."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from metagradient.errors import UserError
from metagradient.training.batches import Batches
from metagradient.training.metaparameters import Metaparameter
from metagradient.training.model import Model
from metagradient.training.state import TrainState


def agree_on_run(learner: Model, batches: Batches, z: Sequence[Metaparameter], state: TrainState) -> None:
    """Compare what a run is made of between the processes that share it; of the examples those of its first batch.

    Raises:
        UserError: they differ, in all processes alike; the first difference is named.
    """
    if learner.group.alone:
        return
    steps = len(batches)
    fields = next((batches(t).fields for t in range(steps) if len(batches(t))), {})
    _agree(
        learner,
        {
            "initial state": _sum(state.tensors()),
            "frozen parameters": _sum(learner.layout.constants()),
            "index plan": _sum([batches.plan]),
            "seed": batches.seed,
            "optimizer": learner.update.described(),
            "settings": [learner.normalize, *(str(learner.update.hyper(t)) for t in {0, steps // 2, steps - 1})],
            "metaparameters": [(type(m).__name__, m.name, _sum([m.value])) for m in z],
            "examples": {name: _sum([x]) for name, x in fields.items()},
        },
    )


def agree_on_end(learner: Model, state: TrainState) -> None:
    """Compare the state that a run ended in between the processes that share it.

    Raises:
        UserError: they differ: a process computed something else with the same numbers.
    """
    if not learner.group.alone:
        _agree(learner, {"state at the end of the run": _sum(state.tensors())})


def _agree(learner: Model, facts: dict[str, Any]) -> None:
    told = learner.group.told(facts)
    for rank, theirs in enumerate(told):
        for name, value in told[0].items():
            if theirs[name] != value:
                raise UserError(
                    f"process {rank} has other {name} than process 0: all processes of a run need the same seeds, settings and data"
                )


def _sum(tensors: Iterable[Tensor]) -> int:
    """CRC-32 of their bytes."""
    total = 0
    for x in tensors:
        total = zlib.crc32(x.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data, total)
    return total

"""What decides a model's losses besides its state: settings, and tensors that no training moves."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from metagradient.learners.learner import Learner
from metagradient.training.batches import Batches

_LEARNED_ON_THE_WAY = {"_outputs", "_reads"}
"""Attributes that a learner finds out when it is first used: no settings."""


def described(learner: Learner, batches: Batches) -> list[str]:
    """All that decides a run but its tensors: model, optimizer, schedule, augmentation."""
    learner.configure_for(batches)
    return [
        repr(learner),
        learner.update.described(),
        learner.normalize,
        repr([float(learner.schedule(t)) for t in range(len(batches))]),
        named((batches.seed, batches.augment)),
        *settings(learner),
    ]


def settings(learner: Learner) -> list[str]:
    """What modules keep as plain attributes and need not print: heads, scales, functions by their names."""
    common = vars(Learner()).keys() | _LEARNED_ON_THE_WAY
    return [
        f"{name}.{key} = {named(value)}"
        for name, module in learner.named_modules()
        for key, value in sorted(vars(module).items())
        if key not in common and (callable(value) or _plain(value))
    ]


def constants(learner: Learner) -> dict[str, Tensor]:
    """Tensors that a run reads and does not change: frozen parameters, and plain attributes of modules, in lists and mappings too."""
    frozen = {name: p for name, p in learner.named_parameters() if not p.requires_grad}
    common = vars(Learner()).keys()
    attributes = {
        place: x
        for name, module in learner.named_modules()
        for key, value in vars(module).items()
        if isinstance(value, Tensor) or key not in common
        for place, x in _tensors(f"{name}.{key}", value)
    }
    return frozen | attributes


def _tensors(place: str, value: object) -> Iterator[tuple[str, Tensor]]:
    """Tensors and NumPy's arrays of numbers in a value, with where they stand in it."""
    if isinstance(value, Tensor):
        yield place, value
    elif isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biufc":
        yield place, torch.from_numpy(np.array(value))
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _tensors(f"{place}.{named(key)}", part)
    elif isinstance(value, tuple | list):
        for i, part in enumerate(value):
            yield from _tensors(f"{place}.{i}", part)


def named(value: object) -> str:
    """As printed, without addresses."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def _plain(value: object) -> bool:
    if isinstance(value, Mapping):
        return all(map(_plain, value.values()))
    if isinstance(value, tuple | list):
        return all(map(_plain, value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return True
    return isinstance(value, bool | int | float | complex | str)

"""Activation checkpointing (`torch.utils.checkpoint`) inside a model, made a function of the step.

A checkpointed block runs its forward pass again inside `autograd.grad`, when the modules no longer hold the vectors of
the step. Here it runs again with the same parameters, buffers, random numbers and attention setting.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch.utils.checkpoint as checkpointing
from torch import nn

from metagradient.errors import UserError
from metagradient.training.modules.replayable import in_modes, modes_of
from metagradient.training.random import repeated_randomness

_GENERATOR = "_checkpoint_without_reentrant_generator"  # torch.utils.checkpoint.checkpoint calls one of the two
_GENERATOR = f"{_GENERATOR}_impl" if hasattr(checkpointing, f"{_GENERATOR}_impl") else _GENERATOR
_REENTRANT = "CheckpointFunction"


class _Reentrant:
    """Stands for torch's function of `use_reentrant=True`."""

    @staticmethod
    def apply(function: Any, *_: Any) -> Any:
        name = getattr(function, "__qualname__", type(function).__name__)
        raise UserError(
            f"torch.utils.checkpoint({name}, use_reentrant=True) has no second derivative, which a replay needs: call it "
            "with use_reentrant=False (gradient_checkpointing_kwargs={'use_reentrant': False} in transformers)"
        )


@contextmanager
def recomputing_within(module: nn.Module, surroundings: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """Blocks of `module` that are checkpointed inside run again as they ran: within `surroundings()`, in the modes
    (training or evaluation) that the modules had, drawing the random numbers that they drew.

    Raises:
        UserError: a block is checkpointed with `use_reentrant=True`, which cannot be differentiated twice.
    """
    before, reentrant = getattr(checkpointing, _GENERATOR), getattr(checkpointing, _REENTRANT)

    def generator(function: Callable[..., Any], *settings: Any, **kwargs: Any) -> Any:
        # `function` itself runs the block the first time; what the generator is given, every later time.
        randomness, modes = repeated_randomness(), modes_of(module.modules())

        def again(*args: Any, **kwargs: Any) -> Any:
            with surroundings(), in_modes(modes), randomness():
                return function(*args, **kwargs)

        return before(again, *settings, **kwargs)

    setattr(checkpointing, _GENERATOR, generator)
    setattr(checkpointing, _REENTRANT, _Reentrant)
    try:
        yield
    finally:
        setattr(checkpointing, _GENERATOR, before)
        setattr(checkpointing, _REENTRANT, reentrant)

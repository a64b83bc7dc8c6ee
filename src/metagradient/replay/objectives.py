"""Objectives: functions of the trained learner, differentiable in its parameters."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from metagradient.learners.learner import Learner
from metagradient.training.batches import Batch, Fields


def _batch(learner: Learner, examples: Fields) -> Batch:
    n = len(next(iter(examples.values())))
    like = next(learner.parameters())
    return Batch(0, torch.arange(n), dict(examples)).to(like.device, like.dtype)


def mean_loss(examples: Fields) -> Callable[[Learner], Tensor]:
    """The mean loss of the examples (for instance a validation set), a scalar."""
    return lambda learner: learner.losses(_batch(learner, examples)).mean()


def example_losses(examples: Fields) -> Callable[[Learner], Tensor]:
    """The loss of each example, [Q]: one objective each, all pulled back in one replay."""
    return lambda learner: learner.losses(_batch(learner, examples))

"""The cheap heuristic that a data selection must beat: drop what a trained model has a high loss on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from metagradient.errors import UserError
from metagradient.evaluation.classification import example_losses_of
from metagradient.evaluation.retraining import Retraining, take
from metagradient.training.batches import Fields
from metagradient.training.run import Progress


def filter_by_loss(
    judge: Retraining,
    train: Fields,
    validation: Fields,
    fractions: Sequence[float],
    seed: int,
    progress: Progress | None = None,
) -> tuple[Tensor, float]:
    """(kept [n], dropped fraction): the examples of highest loss under a model trained on all of them are dropped.

    The fraction is the one whose retrained models are best on the validation examples, the smallest of equals. `judge`
    should have seeds of its own, so that the choice says nothing about the models it is compared with later.
    """
    for fraction in fractions:
        if not 0 <= fraction < 1:
            raise UserError(f"filter_fractions must lie in [0, 1), not {fraction}")
    learner, state = judge.train(train, seed)
    losses = example_losses_of(learner, state, train)
    scores: dict[float, float] = {}
    for done, fraction in enumerate(fractions):
        scores[fraction] = judge.accuracies(take(train, _lowest(losses, fraction)), None, {"v": validation})["v"]
        if progress is not None:
            progress("high-loss filter", done + 1, len(fractions))
    best = max(sorted(scores), key=lambda fraction: scores[fraction], default=0.0)
    return _lowest(losses, best), best


def _lowest(losses: Tensor, dropped: float) -> Tensor:
    kept = torch.ones(len(losses), dtype=torch.bool)
    kept[losses.argsort(descending=True)[: round(dropped * len(losses))]] = False
    return kept

"""The cheap heuristic that a data selection must beat: drop what a trained model has a high loss on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

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

    The fraction is the one whose retrained models are best on the validation examples.
    """
    learner, state = judge.routine.train(train, seed)
    judge.runs += 1
    losses = example_losses_of(learner, state, train)
    best: tuple[float, float] = (-1.0, 0.0)
    for done, fraction in enumerate(fractions):
        score = judge.accuracies(take(train, _lowest(losses, fraction)), None, {"v": validation})["v"]
        best = max(best, (score, fraction))
        if progress is not None:
            progress("high-loss filter", done + 1, len(fractions))
    return _lowest(losses, best[1]), best[1]


def _lowest(losses: Tensor, dropped: float) -> Tensor:
    kept = torch.ones(len(losses), dtype=torch.bool)
    kept[losses.argsort(descending=True)[: round(dropped * len(losses))]] = False
    return kept

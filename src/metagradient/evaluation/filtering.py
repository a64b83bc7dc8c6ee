"""The cheap heuristics that clever methods must beat: drop what looks suspicious."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from metagradient.errors import UserError
from metagradient.evaluation.classification import example_losses_of, hard_labels
from metagradient.evaluation.retraining import Retraining
from metagradient.training.batches import Fields
from metagradient.training.run import Progress
from metagradient.training.sources import take


def filter_by_loss(
    judge: Retraining,
    train: Fields,
    validation: Fields,
    fractions: Sequence[float],
    seed: int,
    progress: Progress | None = None,
) -> tuple[Tensor, float]:
    """(kept [n], dropped fraction): the examples of highest loss under a model trained on all of them are dropped.

    The fraction is chosen as in `filter_by_suspicion`.
    """
    _check(fractions)
    learner, state = judge.train(train, seed)
    losses = example_losses_of(learner, state, train)
    return filter_by_suspicion(judge, train, validation, losses, fractions, "high-loss filter", progress)


def filter_by_suspicion(
    judge: Retraining,
    train: Fields,
    validation: Fields,
    suspicion: Tensor,
    fractions: Sequence[float],
    name: str = "filter",
    progress: Progress | None = None,
) -> tuple[Tensor, float]:
    """(kept [n], dropped fraction): the examples of highest suspicion [n] are dropped.

    The fraction is the one whose retrained models are best on the validation examples, the smallest of equals. `judge`
    should have seeds of its own, so that the choice says nothing about the models it is compared with later.
    """
    _check(fractions)
    scores: dict[float, float] = {}
    for done, fraction in enumerate(fractions):
        if progress is not None:
            progress(name, done, len(fractions))
        scores[fraction] = judge.accuracies(take(train, _lowest(suspicion, fraction)), None, {"v": validation})["v"]
        if progress is not None:
            progress(name, done + 1, len(fractions))
    best = max(sorted(scores), key=lambda fraction: scores[fraction], default=0.0)
    return _lowest(suspicion, best), best


def neighbour_distances(train: Fields, k: int = 5, chunk: int = 1024) -> Tensor:
    """How far an example lies from its own class: its mean distance to the k nearest of the same label, [n].

    Euclidean in the inputs. Examples of a class with fewer than k others use those there are; alone, infinity.
    """
    if k < 1:
        raise UserError(f"neighbours must be at least 1, not {k}")
    x, y = train["x"].flatten(1).float(), hard_labels(train["y"])
    distances = torch.full((len(y),), torch.inf)
    for label in y.unique():
        rows = (y == label).nonzero().flatten()
        if len(rows) < 2:
            continue
        own = x[rows]
        for part in torch.arange(len(rows)).split(chunk):
            nearest = torch.cdist(own[part], own).topk(min(k + 1, len(rows)), largest=False).values
            distances[rows[part]] = nearest[:, 1:].mean(1).cpu()  # the nearest is the example itself
    return distances


def _check(fractions: Sequence[float]) -> None:
    for fraction in fractions:
        if not 0 <= fraction < 1:
            raise UserError(f"filter_fractions must lie in [0, 1), not {fraction}")


def _lowest(suspicion: Tensor, dropped: float) -> Tensor:
    kept = torch.ones(len(suspicion), dtype=torch.bool)
    kept[suspicion.argsort(descending=True)[: round(dropped * len(suspicion))]] = False
    return kept

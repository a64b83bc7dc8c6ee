"""What every method of attribution gives, and sums of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from metagradient.attribution.scoring.store import ScoreFile
from metagradient.errors import UserError
from metagradient.learners.learner import Learner
from metagradient.learners.supervised import labelled
from metagradient.training.batches import Batches, Fields
from metagradient.training.metaparameters import DataWeights
from metagradient.training.run import train
from metagradient.training.sources import take
from metagradient.training.state import TrainState


class Scorer(Protocol):
    """Scores of training examples, chunk by chunk.

    Attributes:
        passes: over the training examples that fitting and scoring take, a gradient of each (forward and backward)
            being 1.
        scale: the mean eigenvalue of the curvature, the unit of dampings; None where they have no such unit.
    """

    @property
    def n(self) -> int: ...

    @property
    def passes(self) -> float: ...

    @property
    def scale(self) -> float | None: ...

    def prepare(self) -> None:
        """Compute what every later call shares, such as the training examples' features, where it is kept."""
        ...

    def chunks(self, queries: Fields, dampings: Sequence[float], start: int = 0) -> Iterator[Tensor]:
        """Scores [D, b, q] of the training rows from `start` on, for each of D dampings."""
        ...

    def at_once(self, queries: Fields) -> int:
        """How many of the queries its memory lets `chunks` take together; each such group costs it a pass."""
        ...

    def aggregate(self, queries: Fields, damping: float, weights: Tensor | None = None) -> Tensor:
        """sum_q weights[q] score[i, q] for each training example, [n]; weights [q]: by default `mean_weights`.

        Scores are linear in the query's gradient, so a set of any size takes one pass over it and no [n, q].
        """
        ...

    def self_influence(self, damping: float) -> Tensor:
        """score[i, i] for each training example: how much its own loss would rise without it, [n]."""
        ...


def groups(scorer: Scorer, queries: Fields, start: int = 0) -> list[Fields]:
    """The queries from `start` on, as many together as the scorer's memory allows."""
    count = len(next(iter(queries.values())))
    rows = torch.arange(start, count).split(scorer.at_once(queries))
    return [take(queries, part) for part in rows]


def scores(scorer: Scorer, queries: Fields, damping: float) -> Tensor:
    """All scores [n, q] in memory."""
    parts = [torch.cat([chunk[0] for chunk in scorer.chunks(group, [damping])]) for group in groups(scorer, queries)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def write_scores(file: ScoreFile, scorer: Scorer, queries: Fields, damping: float) -> None:
    """All scores to disk, from where the file stands: row by row, or a group of queries at a time where those are many."""
    if file.complete:
        return
    if scorer.at_once(queries) >= len(next(iter(queries.values()))):
        for (block,) in scorer.chunks(queries, [damping], file.done if file.axis == 0 else 0):
            file.write_rows(block)
        return
    for group in groups(scorer, queries, file.done if file.axis == 1 else 0):
        width = len(next(iter(group.values())))
        file.fill_columns(width, (block for (block,) in scorer.chunks(group, [damping])))


def mean_weights(learner: Learner, queries: Fields) -> Tensor:
    """The weights [q] of a mean over queries: 1/m for the m that have a label, 0 for those that `ignore_index` leaves out."""
    there = labelled(learner, queries)
    counted = torch.ones(len(next(iter(queries.values())))) if there is None else there.cpu()
    if not bool(counted.any()):
        raise UserError("a mean over no queries: give some (with a label)")
    return counted.double() / counted.sum()


class Weighted:
    """A weighted sum of scorers; dampings mean what they mean to each, in `scale` if that is the same for all."""

    def __init__(self, scorers: Sequence[Scorer], weights: Sequence[float], scale: float | None = None) -> None:
        self.scorers, self.weights, self.n, self.scale = scorers, weights, scorers[0].n, scale
        self.passes = sum(scorer.passes for scorer in scorers)

    def prepare(self) -> None:
        for scorer in self.scorers:
            scorer.prepare()

    def chunks(self, queries: Fields, dampings: Sequence[float], start: int = 0) -> Iterator[Tensor]:
        columns = [scorer.chunks(queries, dampings, start) for scorer in self.scorers]
        for parts in zip(*columns, strict=True):
            yield torch.stack([w * part for w, part in zip(self.weights, parts, strict=True)]).sum(0)

    def at_once(self, queries: Fields) -> int:
        return min(scorer.at_once(queries) for scorer in self.scorers)

    def aggregate(self, queries: Fields, damping: float, weights: Tensor | None = None) -> Tensor:
        pairs = zip(self.weights, self.scorers, strict=True)
        return torch.stack([w * scorer.aggregate(queries, damping, weights) for w, scorer in pairs]).sum(0)

    def self_influence(self, damping: float) -> Tensor:
        pairs = zip(self.weights, self.scorers, strict=True)
        return torch.stack([w * scorer.self_influence(damping) for w, scorer in pairs]).sum(0)


def fit_at_weight(fit: Callable[[TrainState], Scorer], learner: Learner, batches: Batches, weight: float) -> Weighted:
    """Scores around the run in which every example has this weight, instead of around the trained model (weight 1).

    Where a share alpha of the examples will be kept, weight = alpha lies in the middle of what is removed and what is
    kept. The curvature of the weighted loss is alpha F, so that

        score[i, q] = (1/n) g_q^T (alpha F + lambda I)^-1 g_i

    with gradients and F at that run's final state. Trains once; `fit` makes a scorer from a state, and its damping is
    relative to F, lambda / alpha.

    Raises:
        UserError: with normalize="kept", which divides one weight of all examples out again.
    """
    if learner.normalize != "batch":
        raise UserError("at one weight for all, normalize=kept changes nothing: set learner.normalize=batch")
    weights = DataWeights(torch.full((batches.n_examples,), float(weight)))
    scorer = fit(train(learner, batches, [weights]))
    return Weighted([scorer], [1 / weight], None if scorer.scale is None else weight * scorer.scale)

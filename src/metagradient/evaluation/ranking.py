"""What a ranking of training examples finds: wrong labels, planted sources, the examples that a prediction hangs on.

The query loss difference removes each query's highest-scored examples, trains again, and compares with as many examples drawn
at random. A data filter lives by it, where the linear datamodeling score looks at random removals only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc

from metagradient.errors import UserError
from metagradient.evaluation.datamodels import check_scores
from metagradient.evaluation.groundtruth import GroundTruth, subsets
from metagradient.streams import Intervals
from metagradient.training.batches import Fields
from metagradient.training.random import fold_in


def mislabel_auc(suspicion: Tensor, wrong: Tensor) -> float:
    """Area under the ROC curve of a suspicion [n] (high = wrong) against the rows [n] whose label is wrong."""
    if not 0 < int(wrong.sum()) < len(wrong):
        raise UserError(
            f"mislabel detection needs some wrong and some right labels, not {int(wrong.sum())} of {len(wrong)}"
        )
    ranks = suspicion.argsort().argsort().float() / len(suspicion)  # torchmetrics squashes values outside [0, 1]
    return float(binary_auroc(ranks, wrong.int()))


def inspection_curve(suspicion: Tensor, wrong: Tensor) -> Tensor:
    """[n + 1]: the share of the wrong labels found after inspecting the 0, 1, .. n most suspicious examples."""
    found = wrong[suspicion.argsort(descending=True, stable=True)].double().cumsum(0) / wrong.sum()
    return torch.cat([found.new_zeros(1), found])


def source_precision(scores: Tensor, sources: Tensor, planted: Tensor, k: int) -> float:
    """Source identification: of the k top-scored training examples of each query, the share from its own source.

    Args:
        scores: [n, q].
        sources: [n] the source of each training example.
        planted: [q] the source of each query.
        k: examples at the top that are looked at.
    """
    if not 1 <= k <= len(scores):
        raise UserError(f"k must lie in [1, {len(scores)}], not {k}")
    top = scores.topk(k, dim=0).indices
    return float((sources[top] == planted).float().mean())


@dataclass(frozen=True, eq=False)
class Brittleness:
    """sizes: removed examples tried; rise: [sizes, q] the true rise of the queries' losses without their most helpful;
    smallest: [q] the smallest size that flips the prediction, inf where none did."""

    sizes: Sequence[int]
    rise: Tensor
    smallest: Tensor


def with_every_label(queries: Fields, classes: int) -> dict[str, Tensor]:
    """Each query once with each label, [m C]: the losses of these tell the prediction, whatever the learner."""
    m = len(queries["y"])
    repeated = {name: field.repeat_interleave(classes, dim=0) for name, field in queries.items()}
    return {**repeated, "y": torch.arange(classes).repeat(m)}


def brittleness(truth: GroundTruth, scores: Tensor, y: Tensor, sizes: Sequence[int]) -> Brittleness:
    """Remove the most helpful examples of each query and retrain: does the prediction flip, how far does the loss rise?

    Args:
        scores: [n, m] of m queries with labels y [m].
        truth: its queries are these, `with_every_label`.
        sizes: numbers of examples to remove, ascending.
        y: the queries' labels [q].
    """
    order = scores.argsort(dim=0, descending=True)
    n, m = scores.shape
    weights = torch.ones(1 + len(sizes) * m, n)  # the first run keeps everything
    for s, size in enumerate(sizes):
        for q in range(m):
            weights[1 + s * m + q, order[:size, q]] = 0
    losses = truth.losses(weights).view(len(weights), m, -1)  # [R, m, C]
    own, guess = losses[:, torch.arange(m), y], losses.argmin(dim=2)
    rise = torch.empty(len(sizes), m)
    smallest = torch.full((m,), float("inf"))
    for s in reversed(range(len(sizes))):
        runs, queries = 1 + s * m + torch.arange(m), torch.arange(m)
        rise[s] = own[runs, queries] - own[0]
        smallest = torch.where(guess[runs, queries] != guess[0], float(sizes[s]), smallest)
    return Brittleness(sizes, rise, smallest)


@dataclass(frozen=True, eq=False)
class RandomRemovals:
    """What removing examples at random does.

    Attributes:
        removed: examples that each retraining goes without.
        whole: the queries' losses after training on everything, [q].
        losses: after training without `removed` random examples, [R, q].
    """

    removed: int
    whole: Tensor
    losses: Tensor

    @property
    def rise(self) -> Tensor:
        """The mean rise of each query's loss, [q], in nats."""
        return self.losses.mean(0) - self.whole


@dataclass(frozen=True, eq=False)
class LossDifference:
    """QLD: the mean over queries of `rise` - the rise after random removals, in nats, and its bootstrap 95 % interval.

    rise: of each query's loss without its own top examples, [q].
    """

    mean: float
    low: float
    high: float
    rise: Tensor


def random_removals(truth: GroundTruth, share: float, runs: int, seed: int) -> RandomRemovals:
    """The baseline that every method is compared with: 1 + runs trainings.

    Args:
        truth: the run and the queries.
        share: of the training examples that are removed, in (0, 1).
        runs: retrainings without as many random examples.
        seed: of the random choices.

    Raises:
        UserError: a share that removes nothing or everything; no run.
    """
    if runs < 1:
        raise UserError(f"random removals need at least one retraining, not {runs}: give 5")
    n = truth.batches.n_examples
    kept = torch.cat([torch.ones(1, n, dtype=torch.bool), subsets(n, share, runs, seed)])
    losses = truth.losses(kept)
    return RandomRemovals(int((~kept[1]).sum()), losses[0], losses[1:])


def query_loss_difference(
    truth: GroundTruth, scores: Tensor, random: RandomRemovals, *, resamples: int = 1000, seed: int = 0
) -> LossDifference:
    """QLD of scores: one training without the highest-scored examples of each query, as many as `random` removes.

    The interval resamples queries, and the random removals beside them.
    Source: bergson's leaderboard, https://github.com/EleutherAI/bergson.

    Args:
        truth: as for `random_removals`; its queries are the scores' columns.
        scores: [n, q] in any units, positive = removing the example raises the loss.
        random: the baseline.
        resamples: bootstrap resamples; 0: no interval.
        seed: of the resamples.

    Raises:
        UserError: scores of another shape, or not finite.
    """
    n, q = truth.batches.n_examples, len(random.whole)
    top = check_scores(scores, n, q).topk(random.removed, dim=0).indices
    kept = torch.ones(q, n, dtype=torch.bool).scatter(1, top.T, value=False)
    rise = truth.losses(kept).diagonal() - random.whole
    beyond, by_chance = rise.double().numpy(), (random.losses - random.whole).double().numpy()
    rng = np.random.default_rng(fold_in(seed, Intervals.BOOTSTRAP))
    means = []
    for _ in range(resamples):
        columns, rows = rng.integers(q, size=q), rng.integers(len(by_chance), size=len(by_chance))
        means.append(beyond[columns].mean() - by_chance[np.ix_(rows, columns)].mean())
    low, high = np.quantile(means, [0.025, 0.975]) if means else (np.nan, np.nan)
    return LossDifference(float(beyond.mean() - by_chance.mean()), float(low), float(high), rise)

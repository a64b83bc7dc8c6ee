"""What a ranking of training examples finds: wrong labels, planted sources, the examples that a prediction hangs on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc

from metagradient.errors import UserError
from metagradient.evaluation.groundtruth import GroundTruth
from metagradient.training.batches import Fields


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

"""How well scores predict retrainings: the linear datamodeling score, and its leave-one-out relative."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor

from metagradient.errors import UserError
from metagradient.training.random import fold_in


@dataclass(frozen=True, eq=False)
class Correlation:
    """The mean over queries of a rank correlation, its bootstrap 95 % interval, and the value of each query [q]."""

    mean: float
    low: float
    high: float
    per_query: Tensor


def check_scores(scores: Tensor, n: int, queries: int) -> Tensor:
    """Scores [n, q] for n training examples and q queries, all finite."""
    if scores.shape != (n, queries):
        raise UserError(
            f"scores must be [n_train, n_query] = [{n}, {queries}], not {list(scores.shape)}"
            + ("; they look transposed" if scores.shape == (queries, n) else "")
        )
    if not bool(torch.isfinite(scores).all()):
        raise UserError(f"{int((~torch.isfinite(scores)).sum())} of the scores are not finite")
    return scores


def predicted(scores: Tensor, kept: Tensor) -> Tensor:
    """The predicted rise of each query's loss without the removed examples, [R, q]: the sum of their scores."""
    return (~kept).to(scores) @ scores


def linear_datamodeling_score(
    scores: Tensor, kept: Tensor, losses: Tensor, *, resamples: int = 200, seed: int = 0
) -> Correlation:
    """LDS: for each query the Spearman correlation, over R retrainings, of predicted and true loss; then the mean.

    scores: [n, q] in any units, positive = removing the example raises the loss. kept: [R, n] bool. losses: [R, q].
    The interval resamples retrainings and queries together. A query whose loss never changes counts 0.
    Source: Park et al. 2023 (TRAK), arXiv 2303.14186.
    """
    if kept.shape[1] != len(scores) or losses.shape != (len(kept), scores.shape[1]) or len(kept) < 3:
        raise UserError(
            f"the score needs kept [R >= 3, n] and losses [R, q] for scores {list(scores.shape)}, not "
            f"{list(kept.shape)} and {list(losses.shape)}"
        )
    x, y = predicted(scores, kept).numpy(), losses.numpy()
    per_query = _spearman(x, y)
    rng = np.random.default_rng(fold_in(seed, 1))
    means = []
    for _ in range(resamples):
        rows, columns = rng.integers(len(x), size=len(x)), rng.integers(x.shape[1], size=x.shape[1])
        means.append(_spearman(x[np.ix_(rows, columns)], y[np.ix_(rows, columns)]).mean())
    low, high = np.quantile(means, [0.025, 0.975]) if means else (np.nan, np.nan)
    return Correlation(float(per_query.mean()), float(low), float(high), torch.from_numpy(per_query))


def leave_one_out_correlation(scores: Tensor, removed: Tensor, rise: Tensor) -> Correlation:
    """Spearman correlation, per query, of the scores of single examples `removed` [m] and the true rise [m, q] of the
    loss when each alone is left out."""
    kept = torch.ones(len(removed), len(scores), dtype=torch.bool)
    kept[torch.arange(len(removed)), removed] = False
    return linear_datamodeling_score(scores, kept, rise)


def _spearman(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Column by column, ties at their mean rank; 0 where a column is constant."""
    a, b = (rankdata(v, axis=0) for v in (x, y))
    a, b = a - a.mean(0), b - b.mean(0)
    scale = np.sqrt((a * a).sum(0) * (b * b).sum(0))
    return np.divide((a * b).sum(0), scale, out=np.zeros_like(scale), where=scale > 0)

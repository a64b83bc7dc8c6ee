"""How well scores predict retrainings: the linear datamodeling score, and its leave-one-out relative."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor

from metagradient.errors import UserError
from metagradient.streams import Intervals
from metagradient.training.random import fold_in


@dataclass(frozen=True, eq=False)
class Correlation:
    """The mean over queries of a correlation, its bootstrap 95 % interval, and the value of each query [q]."""

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

    Args:
        scores: [n, q] in any units, positive = removing the example raises the loss.
        kept: [R, n] bool.
        losses: [R, q].
        resamples: bootstrap resamples; 0: no interval.
        seed: of the resamples.

    The interval resamples retrainings and queries together. A query whose loss never changes counts 0.
    Source: Park et al. 2023 (TRAK), arXiv 2303.14186.
    """
    x, y = _sides(scores, kept, losses)
    return _over_queries(_spearman, x, y, resamples, seed)


def leave_one_out_correlation(
    scores: Tensor, kept: Tensor, losses: Tensor, *, resamples: int = 200, seed: int = 0
) -> tuple[Correlation, Correlation]:
    """For each query the correlation of scores of single examples with its losses when each alone is left out; the mean.

    Args:
        scores: [n, q].
        kept: [m, n] bool, each row without one example (`leave_one_out`).
        losses: [m, q]. Intervals as above.
        resamples: bootstrap resamples; 0: no interval.
        seed: of the resamples.

    Returns (Spearman's, Pearson's): of ranks, and of values, which a few strong examples decide.
    """
    x, y = _sides(scores, kept, losses)
    return _over_queries(_spearman, x, y, resamples, seed), _over_queries(_pearson, x, y, resamples, seed)


def _sides(scores: Tensor, kept: Tensor, losses: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """What is predicted and what is true, [R, q]."""
    if kept.shape[1] != len(scores) or losses.shape != (len(kept), scores.shape[1]) or len(kept) < 3:
        raise UserError(
            f"the score needs kept [R >= 3, n] and losses [R, q] for scores {list(scores.shape)}, not "
            f"{list(kept.shape)} and {list(losses.shape)}"
        )
    return predicted(scores, kept).numpy(), losses.numpy()


def _over_queries(
    correlate: Callable[[np.ndarray, np.ndarray], np.ndarray], x: np.ndarray, y: np.ndarray, resamples: int, seed: int
) -> Correlation:
    per_query = correlate(x, y)
    rng = np.random.default_rng(fold_in(seed, Intervals.BOOTSTRAP))
    means = []
    for _ in range(resamples):
        rows, columns = rng.integers(len(x), size=len(x)), rng.integers(x.shape[1], size=x.shape[1])
        means.append(correlate(x[np.ix_(rows, columns)], y[np.ix_(rows, columns)]).mean())
    low, high = np.quantile(means, [0.025, 0.975]) if means else (np.nan, np.nan)
    return Correlation(float(per_query.mean()), float(low), float(high), torch.from_numpy(per_query))


def _spearman(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Column by column, ties at their mean rank."""
    return _pearson(rankdata(x, axis=0), rankdata(y, axis=0))


def _pearson(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Column by column; 0 where a column is constant."""
    a, b = (v - v.mean(0, dtype=np.float64) for v in (x, y))
    scale = np.sqrt((a * a).sum(0) * (b * b).sum(0))
    return np.divide((a * b).sum(0), scale, out=np.zeros_like(scale), where=scale > 0)

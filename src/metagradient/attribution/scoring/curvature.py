"""The curvature in the compressed space: F = (1/n) sum_j h_j h_j^T and its damped exact inverse."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor

from metagradient.distributed import SOLO, Group
from metagradient.errors import UserError
from metagradient.learners.learner import Learner
from metagradient.training.batches import Batches

_COLUMNS = 1024
"""Of a symmetric matrix are computed at a time: little more than half the work for a large one."""


class Curvature(Protocol):
    """A matrix that maps a gradient to the change of the parameters. scale: its mean eigenvalue."""

    scale: float

    def solve(self, g: Tensor, damping: float) -> Tensor:
        """(F + lambda I)^-1 g for rows g [q, k], with lambda = damping trace(F) / k."""
        ...


class Identity:
    """No curvature: scores are plain inner products of gradients, the damping means nothing."""

    scale = 1.0

    def solve(self, g: Tensor, damping: float) -> Tensor:
        return g


class Primal:
    """F as a matrix [k, k], factored anew for every damping."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix.double()
        self.scale = float(self.matrix.diagonal().mean())
        self._factored: tuple[float, Tensor] | None = None

    def solve(self, g: Tensor, damping: float) -> Tensor:
        if self._factored is None or self._factored[0] != damping:
            shifted = self.matrix.clone()
            shifted.diagonal().add_(_lambda(damping, self.scale))
            self._factored = damping, factor(shifted, damping)
        return torch.cholesky_solve(g.double().T, self._factored[1]).T.to(g)


class Dual:
    """F through the rows h [m, k] that it is made of, for k > m (Woodbury).

    (H^T H / n + lambda I)^-1 g = (g - H^T (n lambda I + H H^T)^-1 H g) / lambda.
    """

    def __init__(self, rows: Tensor, n: int) -> None:
        self.rows, self.n = rows, n
        self.kernel = (rows @ rows.T).double()
        self.scale = float(self.kernel.diagonal().sum()) / n / rows.shape[1]
        self._factored: tuple[float, Tensor] | None = None

    def solve(self, g: Tensor, damping: float) -> Tensor:
        strength = _lambda(damping, self.scale)
        if self._factored is None or self._factored[0] != damping:
            shifted = self.kernel.clone()
            shifted.diagonal().add_(self.n * strength)
            self._factored = damping, factor(shifted, damping)
        inner = torch.cholesky_solve((self.rows @ g.T).double(), self._factored[1])
        return (g - inner.T.to(g) @ self.rows) / strength


def from_features(
    features: Iterable[Tensor], n: int, rows: int, k: int, group: Group = SOLO, like: Tensor | None = None
) -> Curvature:
    """F = (1/n) sum h h^T over `rows` features h [*, k] of n examples: as a matrix, or as its rows where those are fewer.

    Of several processes each gives features of its own, on `like`'s device and in its dtype.
    """
    assert group.alone or like is not None, "a process without features of its own must know what they are like"
    if k > rows:
        return Dual(_gathered(list(features), k, group, like), n)
    matrix = None if group.alone or like is None else like.new_zeros(k, k)
    for h in features:
        matrix = h.new_zeros(k, k) if matrix is None else matrix
        for start in range(0, k, _COLUMNS):  # the lower triangle, in blocks of columns
            matrix[start:, start : start + _COLUMNS].addmm_(h[:, start:].T, h[:, start : start + _COLUMNS])
    assert matrix is not None
    group.add(matrix)
    return Primal(matrix.tril_().add_(matrix.tril(-1).T).div_(n))


def _gathered(parts: list[Tensor], k: int, group: Group, like: Tensor | None) -> Tensor:
    """The rows [*, k] of all processes, of which each may have another number."""
    if group.alone or like is None:
        return torch.cat(parts)
    own = torch.cat([like.new_zeros(0, k), *parts])
    counts = group.told(len(own))
    whole, start = own.new_zeros(sum(counts), k), sum(counts[: group.rank])
    whole[start : start + len(own)] = own
    return group.add(whole)


def run_damping(learner: Learner, batches: Batches) -> float:
    """The lambda that a run of SGD behaves as if it had: weight decay + 1 / s, s = sum of learning rates / (1 - momentum).

    After T steps on a quadratic loss the influence of an example in a direction of curvature sigma is
    (1 - (1 - eta sigma)^T) / sigma, at most 1.3 times 1 / (sigma + 1 / (eta T)). That 1 / (eta T) may be far above the mean
    eigenvalue of a large model. Weight decay that spares some parameters (`learner.decay`) counts with its mean over all.
    Absolute: divide by a scorer's `scale` for a damping in its units. Compression keeps the trace of F, so the mean
    eigenvalue of k coordinates is P / k times that of all P, and the relative damping k / P times as large.

    Raises:
        UserError: the optimizer is not SGD; its momentum is 1 or more; its learning rates sum to 0.
    """
    optimizer, mask = learner.update.sgd, learner.decay_mask
    if optimizer is None:
        raise UserError(
            f"damping=run knows what plain SGD does, not {learner.update.described()}: tune it, damping=null"
        )
    if optimizer.momentum >= 1:
        raise UserError(
            f"damping=run needs learner.optimizer.momentum < 1, not {optimizer.momentum}: a run with it diverges"
        )
    spent = sum(float(learner.schedule(t)) for t in range(len(batches))) / (1 - optimizer.momentum)
    if not spent > 0:
        raise UserError("damping=run: the learning rates sum to 0, so nothing was learned: set learner.learning_rate")
    return optimizer.weight_decay * (1.0 if mask is None else float(mask.mean())) + 1 / spent


def _lambda(damping: float, scale: float) -> float:
    if not damping > 0:
        raise UserError(f"damping is relative to the mean eigenvalue of the curvature and must be > 0, not {damping}")
    if not 0 < scale < float("inf"):
        raise UserError(
            f"the curvature's mean eigenvalue is {scale}: the gradients it is made of vanish or are not finite"
        )
    return damping * scale


def factor(matrix: Tensor, damping: float) -> Tensor:
    """The Cholesky factor; a UserError where the damping is too small for it."""
    lower, info = torch.linalg.cholesky_ex(matrix)
    if int(info):
        raise UserError(f"the curvature with damping={damping:g} is not positive definite in float64: raise damping")
    return lower

"""The uncompressed influence function through kernels of gradients: no [n, P], no [P, P].

With the curvature's gradients as rows H [m, P], Woodbury turns the score into inner products alone:

    score[i, q] = ( g_i . g_q - (g_i H^T) (n lambda I + H H^T)^-1 (H g_q) ) / (n lambda),

and inner products of per-example gradients come layer by layer from their factors. Memory is m^2 and m (n + q)
numbers, besides the factors of all rows' gradients: for up to some ten thousand rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metagradient.attribution.gradients.hooks import ExampleGradients
from metagradient.attribution.gradients.pieces import Piece
from metagradient.attribution.scoring.curvature import factor
from metagradient.attribution.scoring.influence import MEMORY, CurvatureName, curvature_target
from metagradient.attribution.scoring.rows import Rows, rows_of_an_example
from metagradient.attribution.scoring.scorers import mean_weights
from metagradient.errors import UserError
from metagradient.learners.learner import Learner
from metagradient.training.batches import Fields
from metagradient.training.run import Progress
from metagradient.training.state import TrainState

Pieces = Sequence[Piece]


def product(a: Pieces, b: Pieces) -> Tensor:
    """Inner products of the gradients of two batches, [B, B']."""
    out = a[0].kernel(b[0])
    for x, y in zip(a[1:], b[1:], strict=True):
        out += x.kernel(y)
    return out


def _cross(a: Sequence[Pieces], b: Sequence[Pieces]) -> Tensor:
    return torch.cat([torch.cat([product(x, y) for y in b], dim=1) for x in a])


@dataclass(frozen=True)
class KernelInfluence:
    """`none` for networks: the influence function on full gradients, exact up to the labels drawn for Gauss-Newton.

    Settings as for `Influence`; rows m = n times the labels drawn. `cosine` divides the inner products of
    curvature=identity by both norms.
    """

    curvature: CurvatureName = "gauss_newton"
    labels: int | None = 1
    batch_size: int = 512
    seed: int = 0
    cosine: bool = False
    memory: int = MEMORY

    def fit(self, learner: Learner, state: TrainState, train: Fields, progress: Progress | None = None) -> KernelScorer:
        if self.cosine and self.curvature != "identity":
            raise UserError(f"cosine similarity knows no curvature: set curvature=identity, not {self.curvature}")
        gradients, source = ExampleGradients(learner, state), Rows(train, self.batch_size)
        rows: list[list[Piece]] = []
        kernel: Tensor | None = None
        passes = 1.0
        if self.curvature != "identity":
            target = curvature_target(self.curvature, self.labels, self.seed)
            passes += (1 + 2 * rows_of_an_example(gradients, source, target)) / 3
            rows = [pieces for batch in source.batches() for pieces in gradients(batch, target)]
            kernel = _gram(rows, progress).double()
        return KernelScorer(gradients, source, rows, kernel, passes, self.cosine, progress, self.memory)


def _gram(rows: Sequence[Pieces], progress: Progress | None) -> Tensor:
    """The symmetric kernel [m, m], each pair of batches once."""
    blocks: dict[tuple[int, int], Tensor] = {}
    pairs = len(rows) * (len(rows) + 1) // 2
    for i in range(len(rows)):
        for j in range(i, len(rows)):
            blocks[i, j] = product(rows[i], rows[j])
            blocks[j, i] = blocks[i, j].T
            if progress is not None:
                progress("kernel", len(blocks) // 2 + 1, pairs + 1)
    return torch.cat([torch.cat([blocks[i, j] for j in range(len(rows))], dim=1) for i in range(len(rows))])


class KernelScorer:
    """Scores from kernels of uncompressed gradients."""

    def __init__(
        self,
        gradients: ExampleGradients,
        source: Rows,
        rows: Sequence[Pieces],
        kernel: Tensor | None,
        passes: float,
        cosine: bool = False,
        progress: Progress | None = None,
        memory: int = MEMORY,
    ) -> None:
        self.gradients, self.source, self.rows, self.kernel = gradients, source, rows, kernel
        self.n, self.passes, self.cosine, self.progress, self.memory = source.n, passes, cosine, progress, memory

    def prepare(self) -> None:
        """Nothing is kept: inner products are computed for each set of queries."""

    @property
    def scale(self) -> float:
        """The mean eigenvalue of the curvature."""
        return 1.0 if self.kernel is None else float(self.kernel.diagonal().sum()) / self.n / self.gradients.size

    def _strength(self, damping: float) -> float:
        if not damping > 0:
            raise UserError(
                f"damping is relative to the mean eigenvalue of the curvature and must be > 0, not {damping}"
            )
        return damping * self.scale

    def _factor(self, damping: float) -> Tensor:
        assert self.kernel is not None
        shifted = self.kernel.clone()
        shifted.diagonal().add_(self.n * self._strength(damping))
        return factor(shifted, damping)

    def at_once(self, queries: Fields) -> int:
        first = next(Rows(queries, self.source.batch_size).batches())
        (pieces,) = self.gradients(first)
        rows = 0 if self.kernel is None else len(self.kernel)
        each = sum(piece.nbytes for piece in pieces) // len(first) + 24 * rows + 16 * self.source.batch_size
        return max(1, self.memory // each)

    def chunks(self, queries: Fields, dampings: Sequence[float], start: int = 0) -> Iterator[Tensor]:
        own = [p for batch in Rows(queries, self.source.batch_size).batches() for p in self.gradients(batch)]
        for scaled in self._against(own, dampings, start):
            yield scaled / _norms(own) if self.cosine else scaled

    def aggregate(self, queries: Fields, damping: float, weights: Tensor | None = None) -> Tensor:
        source = Rows(queries, self.source.batch_size)
        given = mean_weights(self.gradients.learner, queries) if weights is None else weights
        if self.cosine:
            lengths = torch.cat([_norms([pieces]) for batch in source.batches() for pieces in self.gradients(batch)])
            given = torch.where(lengths > 0, given.to(lengths) / lengths, 0)  # 0 without a label
        total = self.gradients.total(source.batches(), given)
        return torch.cat([part[0, :, 0] for part in self._against([total], [damping])])

    def _against(self, own: Sequence[Pieces], dampings: Sequence[float], start: int = 0) -> Iterator[Tensor]:
        """Scores [D, b, q] for the gradients of some queries, up to their norms where cosines are asked for."""
        solved: list[Tensor] = []
        if self.kernel is not None:
            columns = _cross(self.rows, own).double()
            like = self.gradients.state.params
            solved = [torch.cholesky_solve(columns, self._factor(damping)).to(like) for damping in dampings]
        for batch in self.source.batches(start):
            (pieces,) = self.gradients(batch)
            direct = _cross([pieces], own)
            if self.kernel is None:
                scaled = direct / _norms([pieces]).unsqueeze(1) if self.cosine else direct / self.n
                yield scaled.expand(len(dampings), -1, -1)
            else:
                through = _cross([pieces], self.rows)
                pairs = zip(solved, dampings, strict=True)
                yield torch.stack([(direct - through @ s) / (self.n * self._strength(c)) for s, c in pairs])
            if self.progress is not None:
                self.progress("scoring", int(batch.index[-1]) + 1, self.n)

    def self_influence(self, damping: float) -> Tensor:
        if self.cosine:
            raise UserError("an example's cosine with itself is 1: ask gradient_dot for its self-influence")
        lower = None if self.kernel is None else self._factor(damping)
        parts = []
        for batch in self.source.batches():
            (pieces,) = self.gradients(batch)
            squares = torch.stack([piece.squares() for piece in pieces]).sum(0)
            if lower is None:
                parts.append(squares / self.n)
                continue
            columns = _cross(self.rows, [pieces]).double()
            inner = (columns * torch.cholesky_solve(columns, lower)).sum(0).to(squares)
            parts.append((squares - inner) / (self.n * self._strength(damping)))
        return torch.cat(parts)


def _norms(batches: Sequence[Pieces]) -> Tensor:
    return torch.cat([torch.stack([piece.squares() for piece in pieces]).sum(0) for pieces in batches]).sqrt()

"""A parameter's per-example gradients, kept as the factors they are made of.

A linear layer's gradient for example b is G_b = sum_t delta_bt a_bt^T: an outer product of what came back (delta) and
what went in (a), summed over T positions. A compressor that keeps coordinates, or projects two-sidedly, works on the
factors, so that [B, O, I] is never formed. Every piece is linear in the gradient and has the same few operations.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metagradient.attribution.gradients.sides import Plain, Side

BLOCK_BYTES = 64 * 2**20
"""What a temporary of one operation may take, about."""


class Piece(ABC):
    """The per-example gradients of a parameter seen as a matrix with `rows` and `columns`: B matrices, never formed."""

    rows: int
    columns: int
    examples: int

    @abstractmethod
    def gather(self, rows: Tensor, columns: Tensor) -> Tensor:
        """The entries (rows[j], columns[j]) of each example's gradient, [B, m]."""

    @abstractmethod
    def block(self, rows: Tensor, columns: Tensor) -> Tensor:
        """The sub-matrix of chosen rows and columns, flattened, [B, |rows| |columns|]."""

    @abstractmethod
    def sketch(self, left: Tensor, right: Tensor) -> Tensor:
        """left^T G_b right for left [rows, m], right [columns, m'], flattened, [B, m m']."""

    @abstractmethod
    def dense(self, start: int, stop: int) -> Tensor:
        """Rows start .. stop - 1 in full, flattened, [B, (stop - start) columns]."""

    @abstractmethod
    def kernel(self, other: Piece) -> Tensor:
        """Inner products with another batch's gradients of the same parameter, [B, B']."""

    @abstractmethod
    def squares(self) -> Tensor:
        """The squared norm of each example's gradient, [B]."""

    @abstractmethod
    def moments(self) -> tuple[Tensor, Tensor]:
        """Second moments of what the gradients are made of, summed: [rows, rows] and [columns, columns]."""

    @property
    def nbytes(self) -> int:
        """Memory of its factors, about."""
        return sum(map(_nbytes, vars(self).values()))

    def blocks(self) -> Iterator[tuple[int, int]]:
        """Ranges of rows whose dense blocks stay within BLOCK_BYTES."""
        step = max(1, BLOCK_BYTES // (8 * self.examples * self.columns))
        for start in range(0, self.rows, step):
            yield start, min(start + step, self.rows)


@dataclass(frozen=True, eq=False)
class Outer(Piece):
    """G_b = sum_t left_bt right_bt^T."""

    left: Side
    right: Side
    examples: int

    @property
    def rows(self) -> int:  # type: ignore[override]
        return self.left.size

    @property
    def columns(self) -> int:  # type: ignore[override]
        return self.right.size

    def _sum(self, products: Tensor) -> Tensor:
        """[N, m] -> [B, m]."""
        return products if self.left.positions == 1 else products.view(self.examples, -1, products.shape[1]).sum(1)

    def gather(self, rows: Tensor, columns: Tensor) -> Tensor:
        step = max(1, BLOCK_BYTES // (8 * self.examples * self.left.positions))
        pairs = zip(rows.split(step), columns.split(step), strict=True)
        parts = [self._sum(self.left.select(r).mul_(self.right.select(c))) for r, c in pairs]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _product(self, left: Tensor, right: Tensor) -> Tensor:
        """[N, m], [N, m'] -> [B, m m'], summed over positions."""
        left, right = (x.view(self.examples, -1, x.shape[1]) for x in (left.contiguous(), right.contiguous()))
        return (left.transpose(1, 2) @ right).flatten(1)

    def block(self, rows: Tensor, columns: Tensor) -> Tensor:
        return self._product(self.left.select(rows), self.right.select(columns))

    def sketch(self, left: Tensor, right: Tensor) -> Tensor:
        return self._product(self.left.project(left), self.right.project(right))

    def dense(self, start: int, stop: int) -> Tensor:
        rows = torch.arange(start, stop, device=self._device())
        return self._product(self.left.select(rows), self.right.all())

    def _device(self) -> torch.device:
        side = self.left
        return side.x.device if isinstance(side, Plain) else side.all().device

    def kernel(self, other: Piece) -> Tensor:
        if isinstance(other, Outer):
            ours, theirs = self.left.positions, other.left.positions
            # all pairs of positions, or the gradients themselves: whichever is less work
            if ours * theirs * (self.rows + self.columns) <= self.rows * self.columns:
                return self._pairs(other)
        return _dense_kernel(self, other)

    def _pairs(self, other: Outer) -> Tensor:
        products = self.left.inner(other.left).mul_(self.right.inner(other.right))
        shape = (self.examples, self.left.positions, other.examples, other.left.positions)
        return products.view(shape).sum(dim=(1, 3))

    def moments(self) -> tuple[Tensor, Tensor]:
        left, right = self.left.all(), self.right.all()
        there = left.any(1) & right.any(1)  # padding contributes nothing, whatever went in
        left, right = left[there], right[there]
        return left.T @ left, right.T @ right

    def squares(self) -> Tensor:
        if self.left.positions == 1:
            return self.left.all().square().sum(1) * self.right.all().square().sum(1)
        return _dense_squares(self)


@dataclass(frozen=True, eq=False)
class Dense(Piece):
    """Gradients as they are, [B, rows, columns]: norms, biases, and whatever has no rule of its own."""

    x: Tensor

    @property
    def examples(self) -> int:  # type: ignore[override]
        return self.x.shape[0]

    @property
    def rows(self) -> int:  # type: ignore[override]
        return self.x.shape[1]

    @property
    def columns(self) -> int:  # type: ignore[override]
        return self.x.shape[2]

    def gather(self, rows: Tensor, columns: Tensor) -> Tensor:
        return self.x.flatten(1).index_select(1, rows * self.columns + columns)

    def block(self, rows: Tensor, columns: Tensor) -> Tensor:
        return self.x.index_select(1, rows).index_select(2, columns).flatten(1)

    def sketch(self, left: Tensor, right: Tensor) -> Tensor:
        return (left.T @ self.x @ right).flatten(1)

    def dense(self, start: int, stop: int) -> Tensor:
        return self.x[:, start:stop].flatten(1)

    def kernel(self, other: Piece) -> Tensor:
        return _dense_kernel(self, other)

    def moments(self) -> tuple[Tensor, Tensor]:
        rows, columns = self.x.transpose(0, 1).flatten(1), self.x.transpose(0, 2).flatten(1)
        return rows @ rows.T, columns @ columns.T

    def squares(self) -> Tensor:
        return self.x.square().sum(dim=(1, 2))


@dataclass(frozen=True, eq=False)
class Sum(Piece):
    """A parameter that is used in several places (tied weights): the gradients add up."""

    parts: Sequence[Piece]

    @property
    def examples(self) -> int:  # type: ignore[override]
        return self.parts[0].examples

    @property
    def rows(self) -> int:  # type: ignore[override]
        return self.parts[0].rows

    @property
    def columns(self) -> int:  # type: ignore[override]
        return self.parts[0].columns

    def gather(self, rows: Tensor, columns: Tensor) -> Tensor:
        return torch.stack([part.gather(rows, columns) for part in self.parts]).sum(0)

    def block(self, rows: Tensor, columns: Tensor) -> Tensor:
        return torch.stack([part.block(rows, columns) for part in self.parts]).sum(0)

    def sketch(self, left: Tensor, right: Tensor) -> Tensor:
        return torch.stack([part.sketch(left, right) for part in self.parts]).sum(0)

    def dense(self, start: int, stop: int) -> Tensor:
        return torch.stack([part.dense(start, stop) for part in self.parts]).sum(0)

    def kernel(self, other: Piece) -> Tensor:
        return _dense_kernel(self, other)

    def moments(self) -> tuple[Tensor, Tensor]:
        left, right = zip(*(part.moments() for part in self.parts), strict=True)
        return torch.stack(left).sum(0), torch.stack(right).sum(0)

    def squares(self) -> Tensor:
        return _dense_squares(self)


def _dense_kernel(one: Piece, other: Piece) -> Tensor:
    larger = one if one.examples >= other.examples else other
    return torch.stack([one.dense(a, b) @ other.dense(a, b).T for a, b in larger.blocks()]).sum(0)


def _dense_squares(piece: Piece) -> Tensor:
    return torch.stack([piece.dense(a, b).square().sum(1) for a, b in piece.blocks()]).sum(0)


def _nbytes(part: object) -> int:
    """Bytes of the tensors of a factor, or of a piece's parts."""
    if isinstance(part, Tensor):
        return part.untyped_storage().nbytes()
    if isinstance(part, Sequence):
        return sum(map(_nbytes, part))
    return sum(map(_nbytes, vars(part).values())) if isinstance(part, Piece | Side) else 0

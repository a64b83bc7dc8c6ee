"""Compression of per-example gradients [B, P] to [B, k], and the masks; random projections are next door.

A compressor is a few settings. `bind` draws from its seed what it keeps (indices; no matrix where that can be
avoided) and gives the function that compresses a batch's pieces. All but `PCA` are linear maps R with
E R^T R = I over seeds, so that E <R g, R h> = <g, h>, whatever the shapes of the layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol, Self

import torch
from torch import Tensor

from metagradient.attribution.gradients.hooks import Parameter
from metagradient.attribution.gradients.pieces import Piece
from metagradient.errors import UserError
from metagradient.streams import Compression
from metagradient.training.random import generator

Pass = Callable[[], Iterable[list[Piece]]]
"""Goes once over some examples' gradients, batch by batch: what a fitted compressor learns from."""


@dataclass(frozen=True, eq=False)
class Compress:
    """A bound compressor: pieces of B examples -> [B, k]."""

    k: int
    function: Callable[[Sequence[Piece]], Tensor]

    def __call__(self, pieces: Sequence[Piece]) -> Tensor:
        return self.function(pieces)


class Compressor(Protocol):
    """Settings of a compressor of gradients, of which a run makes its own."""

    @property
    def name(self) -> str:
        """What it is called in tables and file names."""
        ...

    def for_run(self, seed: int, examples: int) -> Self:
        """The same compressor with the run's seed for whatever is drawn, and `examples` for whatever is fitted."""
        ...

    def bind(self, parameters: Sequence[Parameter], like: Tensor, fit: Pass) -> Compress:
        """The function pieces of B examples -> [B, k]; `like` has the device and dtype to work in, `fit` goes once over
        the training examples' gradients."""
        ...


def total(parameters: Sequence[Parameter]) -> int:
    return sum(p.size for p in parameters)


def check_k(k: int, parameters: Sequence[Parameter]) -> int:
    """k, which must lie in [1, P]."""
    if not 1 <= k <= total(parameters):
        raise UserError(f"k must lie between 1 and the {total(parameters)} parameters, not {k}")
    return k


@dataclass(frozen=True)
class Uncompressed:
    """`none`: every coordinate, k = P. For small models; else use `KernelInfluence`, which never forms [n, P]."""

    name: ClassVar[str] = "none"

    def for_run(self, seed: int, examples: int) -> Self:
        return self

    def bind(self, parameters: Sequence[Parameter], like: Tensor, fit: Pass) -> Compress:
        def compress(pieces: Sequence[Piece]) -> Tensor:
            return torch.cat([piece.dense(0, p.rows) for p, piece in zip(parameters, pieces, strict=True)], dim=1)

        return Compress(total(parameters), compress)


@dataclass(frozen=True)
class Dropout:
    """k single coordinates of the gradient, the same for all examples, times sqrt(P / k) (arXiv 2509.15651).

    A kept coordinate (r, c) of a linear layer is sum_t delta_t[r] a_t[c]: nothing else of the gradient is computed.
    """

    name: ClassVar[str] = "dropout"

    k: int
    seed: int = 0

    def for_run(self, seed: int, examples: int) -> Self:
        return replace(self, seed=seed)

    def bind(self, parameters: Sequence[Parameter], like: Tensor, fit: Pass) -> Compress:
        kept = coordinates(check_k(self.k, parameters), parameters, self.seed, like.device)
        scale = (total(parameters) / self.k) ** 0.5

        def compress(pieces: Sequence[Piece]) -> Tensor:
            parts = [piece.gather(*where) for piece, where in zip(pieces, kept, strict=True) if len(where[0])]
            return torch.cat(parts, dim=1).mul_(scale)

        return Compress(self.k, compress)


def coordinates(
    k: int, parameters: Sequence[Parameter], seed: int, device: torch.device
) -> list[tuple[Tensor, Tensor]]:
    """k of the P coordinates, drawn without replacement: (rows, columns) of each parameter, in ascending order."""
    chosen = torch.randperm(total(parameters), generator=generator(seed, Compression.DROPOUT))[:k].sort().values
    kept = []
    for p in parameters:
        own = chosen[(chosen >= p.start) & (chosen < p.start + p.size)] - p.start
        kept.append(((own // p.columns).to(device), (own % p.columns).to(device)))
    return kept


@dataclass(frozen=True)
class FactorDropout:
    """Rows and columns of each matrix, about k entries in all: a keep rate q a side keeps q^2 of a layer.

    Gathered before the outer product, so it costs the least of all; at equal k it keeps less than `Dropout`, because
    its coordinates come in rows and columns. Each layer is scaled by sqrt(rows columns / kept), vectors alike.
    """

    name: ClassVar[str] = "factor_dropout"

    k: int
    seed: int = 0

    def for_run(self, seed: int, examples: int) -> Self:
        return replace(self, seed=seed)

    def bind(self, parameters: Sequence[Parameter], like: Tensor, fit: Pass) -> Compress:
        sizes = factor_sizes(check_k(self.k, parameters), parameters)
        kept = []
        for i, (p, (rows, columns)) in enumerate(zip(parameters, sizes, strict=True)):
            rng = generator(self.seed, Compression.FACTOR_DROPOUT, i)
            r = torch.randperm(p.rows, generator=rng)[:rows].sort().values.to(like.device)
            c = torch.randperm(p.columns, generator=rng)[:columns].sort().values.to(like.device)
            kept.append((r, c, (p.size / (rows * columns)) ** 0.5))

        def compress(pieces: Sequence[Piece]) -> Tensor:
            pairs = zip(pieces, kept, strict=True)
            return torch.cat([piece.block(r, c).mul_(scale) for piece, (r, c, scale) in pairs], dim=1)

        return Compress(sum(r * c for r, c in sizes), compress)


def factor_sizes(k: int, parameters: Sequence[Parameter]) -> list[tuple[int, int]]:
    """Kept rows and columns of every parameter, at least one each, with a common keep rate q^2 and a sum near k."""

    def sizes(rate: float) -> list[tuple[int, int]]:
        found = []
        for p in parameters:
            q = rate if p.columns == 1 else rate**0.5  # a vector has one side only
            found.append((max(1, round(q * p.rows)), 1 if p.columns == 1 else max(1, round(q * p.columns))))
        return found

    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        if sum(r * c for r, c in sizes(middle)) > k:
            high = middle
        else:
            low = middle
    found = sizes(low)
    smallest = len(parameters)
    if sum(r * c for r, c in found) > max(k, smallest):
        raise UserError(f"k={k} is too small for {len(parameters)} parameters: give at least {smallest}")
    return found

"""Dense and sparse projections of per-example gradients: what the masks are measured against."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from metagradient.attribution.compression.compressors import Compress, Pass, check_k, coordinates, factor_sizes, total
from metagradient.attribution.gradients.hooks import Parameter
from metagradient.attribution.gradients.pieces import Piece
from metagradient.errors import UserError
from metagradient.streams import Compression
from metagradient.training.random import generator

_CHUNK = 2**22
"""Entries of a random matrix that are drawn at a time."""


def _dense_blocks(parameters: Sequence[Parameter], pieces: Sequence[Piece]) -> Iterator[tuple[int, Tensor]]:
    """(first coordinate, dense gradients [B, m]) from end to end, without ever holding [B, P]."""
    for p, piece in zip(parameters, pieces, strict=True):
        for start, stop in piece.blocks():
            yield p.start + start * p.columns, piece.dense(start, stop)


@dataclass(frozen=True)
class Gaussian:
    """A dense Gaussian projection: entries N(0, 1 / k).

    The matrix [P, k] is kept in memory up to `cache` bytes; beyond that it is drawn anew, chunk by chunk, for every
    batch, which costs more than the product itself.
    """

    name: ClassVar[str] = "gaussian"

    k: int
    seed: int = 0
    cache: int = 4 * 2**30

    def for_run(self, seed: int, examples: int) -> Self:
        return replace(self, seed=seed)

    def bind(self, parameters: Sequence[Parameter], like: Tensor, fit: Pass) -> Compress:
        k, size = check_k(self.k, parameters), total(parameters)
        step = max(1, _CHUNK // k)  # chunks of fixed rows, so that batches of any size see the same matrix

        def draw(chunk: int) -> Tensor:
            rows = min(step, size - chunk * step)
            rng = generator(self.seed, Compression.GAUSSIAN, chunk, device=like.device)
            return torch.randn(rows, k, generator=rng, device=like.device, dtype=like.dtype).mul_(k**-0.5)

        chunks = -(-size // step)
        kept = torch.cat([draw(c) for c in range(chunks)]) if size * k * like.element_size() <= self.cache else None

        def rows(start: int, stop: int) -> Iterator[tuple[int, int, Tensor]]:
            """(start, stop, rows of the matrix) that cover a range of coordinates."""
            if kept is not None:
                yield start, stop, kept[start:stop]
                return
            for chunk in range(start // step, -(-stop // step)):
                a, b = max(start, chunk * step), min(stop, (chunk + 1) * step)
                yield a, b, draw(chunk)[a - chunk * step : b - chunk * step]

        def compress(pieces: Sequence[Piece]) -> Tensor:
            out = like.new_zeros(pieces[0].examples, k)
            for first, block in _dense_blocks(parameters, pieces):
                for a, b, matrix in rows(first, first + block.shape[1]):
                    out.addmm_(block[:, a - first : b - first], matrix)
            return out

        return Compress(k, compress)


@dataclass(frozen=True)
class FactorGaussian:
    """Two Gaussian projections a layer, L^T G R with entries N(0, 1 / m): about k entries in all, G never formed."""

    name: ClassVar[str] = "factor_gaussian"

    k: int
    seed: int = 0

    def for_run(self, seed: int, examples: int) -> Self:
        return replace(self, seed=seed)

    def bind(self, parameters: Sequence[Parameter], like: Tensor, fit: Pass) -> Compress:
        sizes = factor_sizes(check_k(self.k, parameters), parameters)

        def draw(parameter: int, side: int, size: int, m: int) -> Tensor:
            if size == 1:
                return like.new_ones(1, 1)
            rng = generator(self.seed, Compression.FACTOR_GAUSSIAN, parameter, side, device=like.device)
            return torch.randn(size, m, generator=rng, device=like.device, dtype=like.dtype).mul_(m**-0.5)

        matrices = [
            (draw(i, 0, p.rows, rows), draw(i, 1, p.columns, columns))
            for i, (p, (rows, columns)) in enumerate(zip(parameters, sizes, strict=True))
        ]

        def compress(pieces: Sequence[Piece]) -> Tensor:
            return torch.cat([piece.sketch(*pair) for piece, pair in zip(pieces, matrices, strict=True)], dim=1)

        return Compress(sum(r * c for r, c in sizes), compress)


@dataclass(frozen=True)
class SJLT:
    """Sparse Johnson-Lindenstrauss: each coordinate is added, with a random sign, to one of k sums."""

    name: ClassVar[str] = "sjlt"

    k: int
    seed: int = 0

    def for_run(self, seed: int, examples: int) -> Self:
        return replace(self, seed=seed)

    def bind(self, parameters: Sequence[Parameter], like: Tensor, fit: Pass) -> Compress:
        k = check_k(self.k, parameters)
        bucket, sign = _hashes(total(parameters), k, self.seed, like)

        def compress(pieces: Sequence[Piece]) -> Tensor:
            out = like.new_zeros(k, pieces[0].examples)
            for first, block in _dense_blocks(parameters, pieces):
                here = slice(first, first + block.shape[1])
                out.index_add_(0, bucket[here], (block * sign[here]).T)
            return out.T

        return Compress(k, compress)


@dataclass(frozen=True)
class DropoutSJLT:
    """`Dropout` to `keep` k coordinates first, then `SJLT` to k: costs a mask, forgets less than a mask of size k."""

    name: ClassVar[str] = "dropout_sjlt"

    k: int
    seed: int = 0
    keep: int = 8

    def for_run(self, seed: int, examples: int) -> Self:
        return replace(self, seed=seed)

    def bind(self, parameters: Sequence[Parameter], like: Tensor, fit: Pass) -> Compress:
        k, size = check_k(self.k, parameters), total(parameters)
        middle = min(self.keep * k, size)
        kept = coordinates(middle, parameters, self.seed, like.device)
        bucket, sign = _hashes(middle, k, self.seed, like)
        sign = sign * (size / middle) ** 0.5

        def compress(pieces: Sequence[Piece]) -> Tensor:
            out, start = like.new_zeros(k, pieces[0].examples), 0
            for piece, (rows, columns) in zip(pieces, kept, strict=True):
                here = slice(start, start + len(rows))
                if len(rows):
                    out.index_add_(0, bucket[here], (piece.gather(rows, columns) * sign[here]).T)
                start += len(rows)
            return out.T

        return Compress(k, compress)


def _hashes(size: int, k: int, seed: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """A bucket in [0, k) and a sign for each coordinate."""
    rng = generator(seed, Compression.SJLT)
    bucket = torch.randint(k, (size,), generator=rng)
    sign = torch.randint(2, (size,), generator=rng) * 2 - 1
    return bucket.to(like.device), sign.to(like)


@dataclass(frozen=True)
class PCA:
    """The k principal directions of the gradients of the first `examples` training examples.

    Fitted through their kernel [m, m]: with K = U S^2 U^T the directions are G^T U / S, kept as a matrix [P, k]. Not
    an unbiased sketch: it is the k-dimensional subspace that keeps most of what it was fitted on.
    """

    name: ClassVar[str] = "pca"

    k: int
    examples: int = 4096

    def for_run(self, seed: int, examples: int) -> Self:
        return replace(self, examples=max(self.k, examples))

    def bind(self, parameters: Sequence[Parameter], like: Tensor, fit: Pass) -> Compress:
        batches: list[list[Piece]] = []
        for pieces in fit():
            batches.append(pieces)
            if sum(b[0].examples for b in batches) >= self.examples:
                break
        m = sum(b[0].examples for b in batches)
        if self.k > m:
            raise UserError(f"PCA finds at most one direction an example: k={self.k} needs {self.k} examples, not {m}")
        kernel = torch.cat([torch.cat([_kernel(a, b) for b in batches], dim=1) for a in batches])
        values, vectors = torch.linalg.eigh(kernel.double())
        values, vectors = values[-self.k :].flip(0), vectors[:, -self.k :].flip(1)
        # Directions whose variance is rounding error would blow up; they are given no weight.
        inverse = torch.where(values > 1e-7 * values[0], values.clamp(min=0).rsqrt(), 0.0)
        coefficients = (vectors * inverse).to(like)
        directions = like.new_zeros(total(parameters), self.k)
        start = 0
        for pieces in batches:
            stop = start + pieces[0].examples
            for first, block in _dense_blocks(parameters, pieces):
                directions[first : first + block.shape[1]].addmm_(block.T, coefficients[start:stop])
            start = stop

        def compress(pieces: Sequence[Piece]) -> Tensor:
            out = like.new_zeros(pieces[0].examples, self.k)
            for first, block in _dense_blocks(parameters, pieces):
                out.addmm_(block, directions[first : first + block.shape[1]])
            return out

        return Compress(self.k, compress)


@dataclass(frozen=True)
class FactorPCA:
    """Two projections a layer, L^T G R, on the leading eigenvectors of its deltas' and of its inputs' second moments.

    About k entries in all, G never formed. Like `PCA` a subspace that is fitted, on the first `examples` training examples, and
    no unbiased sketch; the second moments, [rows, rows] and [columns, columns] of each parameter, are held while it is fitted. Of a
    parameter that is no sum of outer products they are those of the gradient's rows and columns.
    Source: LoGra's initialisation (Choe et al. 2024, arXiv 2405.13954).
    """

    name: ClassVar[str] = "factor_pca"

    k: int
    examples: int = 4096

    def for_run(self, seed: int, examples: int) -> Self:
        return replace(self, examples=max(1, examples))

    def bind(self, parameters: Sequence[Parameter], like: Tensor, fit: Pass) -> Compress:
        sizes = factor_sizes(check_k(self.k, parameters), parameters)
        moments: list[tuple[Tensor, Tensor]] = []
        seen = 0
        for pieces in fit():
            found = [piece.moments() for piece in pieces]
            moments = found if not moments else [(a + c, b + d) for (a, b), (c, d) in zip(moments, found, strict=True)]
            seen += pieces[0].examples
            if seen >= self.examples:
                break
        if not moments:
            raise UserError("factor_pca is fitted on training examples, and there are none")
        matrices = [
            (_leading(left, rows).to(like), _leading(right, columns).to(like))
            for (left, right), (rows, columns) in zip(moments, sizes, strict=True)
        ]

        def compress(pieces: Sequence[Piece]) -> Tensor:
            return torch.cat([piece.sketch(*pair) for piece, pair in zip(pieces, matrices, strict=True)], dim=1)

        return Compress(sum(r * c for r, c in sizes), compress)


def _leading(moment: Tensor, m: int) -> Tensor:
    """The eigenvectors [size, m] of the m largest eigenvalues."""
    return torch.linalg.eigh(moment.double())[1][:, -m:].flip(1)


def _kernel(a: Sequence[Piece], b: Sequence[Piece]) -> Tensor:
    return torch.stack([x.kernel(y) for x, y in zip(a, b, strict=True)]).sum(0)

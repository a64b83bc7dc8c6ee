"""The two factors of a layer's per-example gradients: what came back (delta) and what went in (a)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


class Side(ABC):
    """One factor, [B, T, size]: what came back or what went in. N = B T rows, example by example."""

    size: int
    positions: int

    @abstractmethod
    def select(self, index: Tensor) -> Tensor:
        """The chosen entries, [N, m]."""

    @abstractmethod
    def project(self, matrix: Tensor) -> Tensor:
        """Every row times a matrix [size, m]: [N, m]."""

    @abstractmethod
    def all(self) -> Tensor:
        """Every entry, [N, size]."""

    def inner(self, other: Side) -> Tensor:
        """Inner products of all rows, [N, N']."""
        return self.all() @ other.all().T


@dataclass(frozen=True, eq=False)
class Plain(Side):
    """A factor as a tensor x [N, size]."""

    x: Tensor
    positions: int

    @property
    def size(self) -> int:  # type: ignore[override]
        return self.x.shape[1]

    def select(self, index: Tensor) -> Tensor:
        return self.x.index_select(1, index)

    def project(self, matrix: Tensor) -> Tensor:
        return self.x @ matrix

    def all(self) -> Tensor:
        return self.x


@dataclass(frozen=True, eq=False)
class OneHot(Side):
    """Indicator rows: index [N] into `size` entries (the input of an embedding)."""

    index: Tensor
    size: int
    positions: int
    dtype: torch.dtype

    def select(self, index: Tensor) -> Tensor:
        return (self.index.unsqueeze(1) == index).to(self.dtype)

    def project(self, matrix: Tensor) -> Tensor:
        return matrix.index_select(0, self.index)

    def all(self) -> Tensor:
        return F.one_hot(self.index, self.size).to(self.dtype)

    def inner(self, other: Side) -> Tensor:
        if isinstance(other, OneHot):
            return (self.index.unsqueeze(1) == other.index).to(self.dtype)
        return super().inner(other)


@dataclass(frozen=True, eq=False)
class Patches(Side):
    """The sliding windows of a convolution's padded input [B, C, H, W]; entry (c, i, j) at c kh kw + i kw + j."""

    padded: Tensor
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]

    @property
    def windows(self) -> Tensor:
        """A view [B, C, out h, out w, kh, kw]."""
        x = self.padded
        for dim in (0, 1):
            span = self.dilation[dim] * (self.kernel[dim] - 1) + 1
            x = x.unfold(2 + dim, span, self.stride[dim])
        return x[..., :: self.dilation[0], :: self.dilation[1]]

    @property
    def size(self) -> int:  # type: ignore[override]
        return self.padded.shape[1] * self.kernel[0] * self.kernel[1]

    @property
    def positions(self) -> int:  # type: ignore[override]
        return self.windows.shape[2] * self.windows.shape[3]

    def select(self, index: Tensor) -> Tensor:
        kh, kw = self.kernel
        chosen = self.windows.permute(1, 4, 5, 0, 2, 3)[index // (kh * kw), index // kw % kh, index % kw]
        return chosen.flatten(1).T  # [m, B, h, w] -> [N, m]

    def project(self, matrix: Tensor) -> Tensor:
        weight = matrix.T.reshape(-1, self.padded.shape[1], *self.kernel)
        out = F.conv2d(self.padded, weight, stride=self.stride, dilation=self.dilation)
        return out.flatten(2).transpose(1, 2).flatten(0, 1)

    def all(self) -> Tensor:
        return self.windows.permute(0, 2, 3, 1, 4, 5).reshape(-1, self.size)

"""Data weights as functions of unconstrained numbers x [n]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class WeightMap(Protocol):
    """x -> weights, where x starts, and which examples count as kept (a threshold fixed beforehand)."""

    def start(self, n: int) -> Tensor: ...

    def weights(self, x: Tensor) -> Tensor: ...

    def project(self, x: Tensor) -> Tensor: ...

    def kept(self, x: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Sigmoid:
    """w = scale sigmoid(x), x_0 = 0; kept: x >= 0."""

    scale: float = 1.0

    def start(self, n: int) -> Tensor:
        return torch.zeros(n)

    def weights(self, x: Tensor) -> Tensor:
        return self.scale * torch.sigmoid(x)

    def project(self, x: Tensor) -> Tensor:
        return x

    def kept(self, x: Tensor) -> Tensor:
        return x >= 0


@dataclass(frozen=True)
class Raw:
    """w = x >= 0, x_0 = 1; kept: x >= threshold."""

    threshold: float = 0.5

    def start(self, n: int) -> Tensor:
        return torch.ones(n)

    def weights(self, x: Tensor) -> Tensor:
        return x

    def project(self, x: Tensor) -> Tensor:
        return x.clamp(min=0.0)

    def kept(self, x: Tensor) -> Tensor:
        return x >= self.threshold

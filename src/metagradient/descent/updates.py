"""Update rules of metagradient descent: x <- rule(x, d objective / d x).

Rules are frozen; what they remember is a dict of tensors, so that a descent can be saved and resumed. Step sizes
decay linearly from `step` to 0 over the descent unless `decay` is false.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from metagradient.errors import UserError

Memory = dict[str, Tensor]


class UpdateRule(Protocol):
    """`scale` multiplies the step size: a rejected metastep halves it."""

    def update(
        self, x: Tensor, gradient: Tensor, memory: Memory, metastep: int, metasteps: int, scale: float = 1.0
    ) -> tuple[Tensor, Memory]: ...


def _size(step: float, decay: bool, metastep: int, metasteps: int, scale: float) -> float:
    return scale * step * (1 - metastep / metasteps if decay else 1.0)


def _positive(step: float) -> None:
    if not step > 0:
        raise UserError(f"the step size must be > 0, not {step}: set method.update.step=0.3")


@dataclass(frozen=True)
class Sign:
    """x <- x - s sign(g)."""

    step: float = 0.3
    decay: bool = True

    def __post_init__(self) -> None:
        _positive(self.step)

    def update(
        self, x: Tensor, gradient: Tensor, memory: Memory, metastep: int, metasteps: int, scale: float = 1.0
    ) -> tuple[Tensor, Memory]:
        return x - _size(self.step, self.decay, metastep, metasteps, scale) * gradient.sign(), memory


@dataclass(frozen=True)
class Clipped:
    """x <- x - s clip(g / mean|g|, -clip, clip): a sign step that leaves alone what hardly matters.

    Between the sign (which moves an example of no consequence as far as any other) and the plain gradient (which a
    few examples dominate).
    """

    step: float = 0.3
    clip: float = 2.0
    decay: bool = True

    def __post_init__(self) -> None:
        _positive(self.step)
        if not self.clip > 0:
            raise UserError(f"method.update.clip must be > 0, not {self.clip}")

    def update(
        self, x: Tensor, gradient: Tensor, memory: Memory, metastep: int, metasteps: int, scale: float = 1.0
    ) -> tuple[Tensor, Memory]:
        unit = gradient / gradient.abs().mean().clamp(min=torch.finfo(gradient.dtype).tiny)
        size = _size(self.step, self.decay, metastep, metasteps, scale)
        return x - size * unit.clamp(-self.clip, self.clip), memory


@dataclass(frozen=True)
class Adam:
    """Adam on x (Kingma & Ba), with bias correction; its second moment is per coordinate."""

    step: float = 0.5
    betas: tuple[float, float] = (0.9, 0.99)
    eps: float = 1e-12
    decay: bool = False

    def __post_init__(self) -> None:
        _positive(self.step)

    def update(
        self, x: Tensor, gradient: Tensor, memory: Memory, metastep: int, metasteps: int, scale: float = 1.0
    ) -> tuple[Tensor, Memory]:
        zero = torch.zeros_like(x)
        count = float(memory.get("count", torch.zeros(()))) + 1
        first = self.betas[0] * memory.get("first", zero) + (1 - self.betas[0]) * gradient
        second = self.betas[1] * memory.get("second", zero) + (1 - self.betas[1]) * gradient**2
        root = (second / (1 - self.betas[1] ** count)).sqrt() + self.eps
        direction = first / (1 - self.betas[0] ** count) / root
        memory = {"first": first, "second": second, "count": torch.tensor(count)}
        return x - _size(self.step, self.decay, metastep, metasteps, scale) * direction, memory

"""Optimizers as pairs of pure functions: `init(params) -> slots` and `update(...) -> params, slots`.

`torch.optim` cannot be differentiated from the first step on (SGD's first momentum buffer is a detached copy), so
these are written as functions of vectors. Their forward values are tested against `torch.optim`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from metagradient.errors import UserError

Scalar = float | Tensor
Slots = tuple[Tensor, ...]


class Optimizer(Protocol):
    """An update rule. `hyper` gives the settings of step t, which a metaparameter may replace.

    One that must know which coordinates belong to which parameter has `placed(names, shapes) -> Optimizer` as well.
    """

    def hyper(self, t: int) -> dict[str, Scalar]: ...

    def init(self, params: Tensor) -> Slots: ...

    def update(
        self,
        params: Tensor,
        gradient: Tensor,
        slots: Slots,
        t: int,
        hyper: Mapping[str, Scalar],
        decay_mask: Tensor | None = None,
    ) -> tuple[Tensor, Slots]:
        """One update at step t (from 0). `hyper` holds `learning_rate` and all of `self.hyper(t)`;
        `decay_mask` [P] scales the weight decay per coordinate (None: everywhere)."""
        ...


def _decayed(params: Tensor, mask: Tensor | None) -> Tensor:
    return params if mask is None else mask * params


def _nonnegative(**values: float) -> None:
    for name, value in values.items():
        if not value >= 0:
            raise UserError(f"{name} must be >= 0, not {value}: set learner.optimizer.{name}=...")


def _two_betas(betas: tuple[float, float], usual: str) -> None:
    if len(betas) != 2 or not all(0 <= b < 1 for b in betas):
        raise UserError(f"betas must be two numbers in [0, 1), not {betas}: set learner.optimizer.betas={usual}")


def _add(x: Tensor, y: Tensor, factor: Scalar) -> Tensor:
    """x + factor y in one kernel where the factor is a number."""
    return torch.addcmul(x, y, factor) if isinstance(factor, Tensor) else torch.add(x, y, alpha=factor)


def _is_zero(value: Scalar) -> bool:
    return not isinstance(value, Tensor) and value == 0


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent, `torch.optim.SGD`'s update.

    g' = g + lambda theta;  m <- mu m + g';  theta <- theta - eta d,  d = m, or g' + mu m with nesterov.
    """

    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        _nonnegative(momentum=self.momentum, weight_decay=self.weight_decay)
        if self.nesterov and self.momentum == 0:
            raise UserError("nesterov needs momentum > 0: set learner.optimizer.momentum=0.9")

    def hyper(self, t: int) -> dict[str, Scalar]:
        return {"momentum": self.momentum, "weight_decay": self.weight_decay}

    def init(self, params: Tensor) -> Slots:
        return (torch.zeros_like(params),) if self.momentum else ()

    def update(
        self,
        params: Tensor,
        gradient: Tensor,
        slots: Slots,
        t: int,
        hyper: Mapping[str, Scalar],
        decay_mask: Tensor | None = None,
    ) -> tuple[Tensor, Slots]:
        if not _is_zero(hyper["weight_decay"]):
            gradient = _add(gradient, _decayed(params, decay_mask), hyper["weight_decay"])
        if slots:
            buffer = _add(gradient, slots[0], hyper["momentum"])
            gradient = _add(gradient, buffer, hyper["momentum"]) if self.nesterov else buffer
            slots = (buffer,)
        return _add(params, gradient, -hyper["learning_rate"]), slots


@dataclass(frozen=True)
class Adam:
    """Adam with a root epsilon, so that the square root has a derivative at 0.

    m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g^2;  m^ = m / (1 - b1^(t+1)), v^ alike;
    theta <- theta - eta m^ / (sqrt(v^ + eps_root) + eps).  Weight decay joins the gradient (L2); AdamW decouples it.
    `eps_root=0` has `torch.optim.Adam`'s values and no finite metagradient where a gradient is exactly 0.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    eps_root: float = 1e-8
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        _nonnegative(eps=self.eps, eps_root=self.eps_root, weight_decay=self.weight_decay)
        _two_betas(self.betas, "[0.9,0.999]")

    def hyper(self, t: int) -> dict[str, Scalar]:
        return {"beta1": self.betas[0], "beta2": self.betas[1], "weight_decay": self.weight_decay}

    def init(self, params: Tensor) -> Slots:
        return torch.zeros_like(params), torch.zeros_like(params)

    def update(
        self,
        params: Tensor,
        gradient: Tensor,
        slots: Slots,
        t: int,
        hyper: Mapping[str, Scalar],
        decay_mask: Tensor | None = None,
    ) -> tuple[Tensor, Slots]:
        if not _is_zero(hyper["weight_decay"]):
            gradient = _add(gradient, _decayed(params, decay_mask), hyper["weight_decay"])
        direction, slots = self._direction(gradient, slots, t, hyper)
        return _add(params, direction, -hyper["learning_rate"]), slots

    def _direction(self, gradient: Tensor, slots: Slots, t: int, hyper: Mapping[str, Scalar]) -> tuple[Tensor, Slots]:
        beta1, beta2 = hyper["beta1"], hyper["beta2"]
        first = _add(beta1 * slots[0], gradient, 1 - beta1)
        if isinstance(beta2, Tensor):
            second = beta2 * slots[1] + (1 - beta2) * gradient * gradient
        else:
            second = torch.addcmul(beta2 * slots[1], gradient, gradient, value=1 - beta2)
        correction1, correction2 = 1 - beta1 ** (t + 1), 1 - beta2 ** (t + 1)
        root = torch.sqrt(second / correction2 + self.eps_root)
        return (first / correction1) / (root + self.eps), (first, second)


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay: theta <- theta (1 - eta lambda) - eta m^ / (sqrt(v^ + eps_root) + eps)."""

    weight_decay: float = 0.01

    def update(
        self,
        params: Tensor,
        gradient: Tensor,
        slots: Slots,
        t: int,
        hyper: Mapping[str, Scalar],
        decay_mask: Tensor | None = None,
    ) -> tuple[Tensor, Slots]:
        rate = hyper["learning_rate"]
        direction, slots = self._direction(gradient, slots, t, hyper)
        if not _is_zero(hyper["weight_decay"]):
            params = _add(params, _decayed(params, decay_mask), -rate * hyper["weight_decay"])
        return _add(params, direction, -rate), slots


@dataclass(frozen=True)
class Lion:
    """Lion: steps of one size, in the direction of the sign of an interpolated momentum.

    theta <- theta (1 - eta lambda) - eta sign(b1 m + (1 - b1) g);  m <- b2 m + (1 - b2) g.
    The sign's derivative is 0 wherever it exists, so a metagradient sees the learning rates and the weight decay but not
    what the gradients are made of: data weights, pixels and the like get 0. Source: Chen et al. 2023, arXiv 2302.06675.
    """

    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        _nonnegative(weight_decay=self.weight_decay)
        _two_betas(self.betas, "[0.9,0.99]")

    def hyper(self, t: int) -> dict[str, Scalar]:
        return {"beta1": self.betas[0], "beta2": self.betas[1], "weight_decay": self.weight_decay}

    def init(self, params: Tensor) -> Slots:
        return (torch.zeros_like(params),)

    def update(
        self,
        params: Tensor,
        gradient: Tensor,
        slots: Slots,
        t: int,
        hyper: Mapping[str, Scalar],
        decay_mask: Tensor | None = None,
    ) -> tuple[Tensor, Slots]:
        rate, beta1, beta2 = hyper["learning_rate"], hyper["beta1"], hyper["beta2"]
        direction = _add(beta1 * slots[0], gradient, 1 - beta1).sign()
        if not _is_zero(hyper["weight_decay"]):
            params = _add(params, _decayed(params, decay_mask), -rate * hyper["weight_decay"])
        return _add(params, direction, -rate), (_add(beta2 * slots[0], gradient, 1 - beta2),)

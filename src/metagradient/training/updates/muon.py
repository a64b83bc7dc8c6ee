"""`Muon`: momentum, orthogonalised matrix by matrix."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from metagradient.errors import UserError
from metagradient.training.updates.optimizers import Scalar, Slots

_SCALES: dict[str, Callable[[int, int], float]] = {
    "original": lambda rows, columns: math.sqrt(max(1.0, rows / columns)),
    "match_rms_adamw": lambda rows, columns: 0.2 * math.sqrt(max(rows, columns)),
    "spectral_unclamped": lambda rows, columns: math.sqrt(rows / columns),
}


@dataclass(frozen=True)
class Muon:
    """Muon for matrices: `torch.optim.Muon`'s update, in the parameters' own precision (torch's runs in bfloat16).

    m <- mu m + (1 - mu) g;  d = m, or (1 - mu) g + mu m with nesterov;  O = an orthogonal matrix near d, by `ns_steps`
    Newton-Schulz iterations X <- a X + (b A + c A A) X, A = X X^T, from d / ||d||_F;
    theta <- theta (1 - eta lambda) - eta s O, with s given by the matrix's shape.
    For parameters of two dimensions only: give the others another optimizer by `Groups`.

    Args:
        adjust_lr: s by name: original (sqrt(max(1, rows / columns))), match_rms_adamw, spectral_unclamped.

    Source: Jordan et al. 2024; s: Liu et al. 2025, arXiv 2502.16982.
    """

    momentum: float = 0.95
    weight_decay: float = 0.1
    nesterov: bool = True
    ns_coefficients: tuple[float, float, float] = (3.4445, -4.775, 2.0315)
    ns_steps: int = 5
    eps: float = 1e-7
    adjust_lr: str = "original"
    _shapes: tuple[torch.Size, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        if self.adjust_lr not in _SCALES:
            raise UserError(
                f"adjust_lr must be one of {', '.join(_SCALES)}, not '{self.adjust_lr}': set learner.optimizer.adjust_lr"
            )
        if not 0 <= self.momentum < 1 or not self.weight_decay >= 0 or self.ns_steps < 1:
            raise UserError(
                "muon needs momentum in [0, 1), weight_decay >= 0 and ns_steps >= 1, not "
                f"{self.momentum}, {self.weight_decay} and {self.ns_steps}: set learner.optimizer.momentum=0.95"
            )

    def placed(self, names: Sequence[str], shapes: Sequence[torch.Size]) -> Muon:
        """The optimizer of these parameters, each a matrix."""
        for name, shape in zip(names, shapes, strict=True):
            if len(shape) != 2:
                raise UserError(
                    f"muon orthogonalises matrices, and parameter '{name}' has shape {list(shape)}: give such parameters "
                    "another optimizer, Groups([Group(lambda name, shape: len(shape) == 2, Muon()), Group('*', AdamW())])"
                )
        return replace(self, _shapes=tuple(shapes))

    def hyper(self, t: int) -> dict[str, Scalar]:
        return {"momentum": self.momentum, "weight_decay": self.weight_decay}

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
        rate, momentum, decay = hyper["learning_rate"], hyper["momentum"], hyper["weight_decay"]
        buffer = momentum * slots[0] + (1 - momentum) * gradient
        direction = (1 - momentum) * gradient + momentum * buffer if self.nesterov else buffer
        parts = direction.split([shape.numel() for shape in self._shapes], dim=-1)
        moved = [self._orthogonal(part, shape) for part, shape in zip(parts, self._shapes, strict=True)]
        decayed = params if decay_mask is None else decay_mask * params
        return params - rate * decay * decayed - rate * torch.cat(moved, dim=-1), (buffer,)

    def _orthogonal(self, part: Tensor, shape: torch.Size) -> Tensor:
        """s O of a matrix, flat; of R runs' matrices [R, p] alike."""
        x = part.unflatten(-1, shape)
        tall = shape[0] > shape[1]
        x = x.mT if tall else x
        x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=self.eps)
        a, b, c = self.ns_coefficients
        for _ in range(self.ns_steps):
            gram = x @ x.mT
            x = a * x + (b * gram + c * gram @ gram) @ x
        x = x.mT if tall else x
        return _SCALES[self.adjust_lr](*shape) * x.flatten(-2)

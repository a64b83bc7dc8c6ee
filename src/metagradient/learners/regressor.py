"""`Regressor`: squared or Huber loss of numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metagradient.errors import UserError
from metagradient.learners.supervised import Supervised, described, refuse_infinite
from metagradient.training.batches import Batch
from metagradient.training.updates import Optimizer, Schedule


@dataclass(frozen=True)
class _Loss:
    """A loss of residuals and its second derivative, elementwise: (residuals, delta) -> values."""

    value: Callable[[Tensor, float], Tensor]
    curvature: Callable[[Tensor, float], Tensor]


def _huber(residuals: Tensor, delta: float) -> Tensor:
    return F.huber_loss(residuals, torch.zeros_like(residuals), reduction="none", delta=delta)


LOSSES = {
    "squared": _Loss(lambda r, _: r.square(), lambda r, _: torch.full_like(r, 2.0)),
    "huber": _Loss(_huber, lambda r, delta: (r.abs() <= delta).to(r.dtype)),
}


class Regressor(Supervised):
    """A loss of numbers: fields `x` and `y` of the batch, y [B] or [B, k].

    With residuals r = model(x) - (y - center) / scale, the loss of an example is the mean over its k numbers of r^2
    ("squared"), or of r^2 / 2 where |r| <= delta and delta (|r| - delta / 2) beyond ("huber"). The model speaks in units in
    which targets have about mean 0 and deviation 1, and `learner(x)` gives numbers in the targets' own units.

    model: [B, ...] -> [B], [B, 1] or [B, k].

    Args:
        loss: squared or huber.
        delta: where Huber's loss turns from a square to a line, in units of `scale`.
        center: a number, or one for each of the k targets: the mean of the training targets, say.
        scale: their standard deviation, likewise.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | None = None,
        learning_rate: float | Schedule | None = None,
        *,
        loss: Literal["squared", "huber"] = "squared",
        delta: float = 1.0,
        center: float | Sequence[float] = 0.0,
        scale: float | Sequence[float] = 1.0,
        **settings: Any,
    ) -> None:
        super().__init__(model, optimizer, learning_rate, **settings)
        if loss not in LOSSES:
            raise UserError(f"loss must be one of {', '.join(LOSSES)}, not '{loss}': set learner.loss=squared")
        if not delta > 0:
            raise UserError(f"delta must be > 0, not {delta}: give delta=1.0")
        self.loss, self.delta = loss, delta
        self.center, self.scale = _numbers(center), _numbers(scale)
        if not all(s > 0 for s in self.scale):
            raise UserError(f"scale must be > 0, not {scale}: leave it out, or give the targets' standard deviation")

    def forward(self, x: Tensor) -> Tensor:
        """[B, k], in the targets' units."""
        outputs = self._standard(x)
        return outputs * _like(self.scale, outputs) + _like(self.center, outputs)

    def losses(self, batch: Batch) -> Tensor:
        self.check_read(batch)
        return LOSSES[self.loss].value(self._residuals(self._standard(batch.x), batch), self.delta).mean(dim=1)

    def gauss_newton_terms(self, batch: Batch) -> Tensor:
        """[B, k]: sqrt(l''(r) / k) times the outputs; the outer products of their gradients sum to the Gauss-Newton matrix."""
        outputs = self._standard(batch.x)
        curvature = LOSSES[self.loss].curvature(self._residuals(outputs, batch), self.delta)
        return (curvature / outputs.shape[1]).sqrt().detach() * outputs

    def _standard(self, x: Tensor) -> Tensor:
        """The model's outputs [B, k]."""
        return self.outputs(x).reshape(len(x), -1)

    def _residuals(self, outputs: Tensor, batch: Batch) -> Tensor:
        y = batch.y.reshape(len(outputs), -1).to(outputs.dtype)
        if y.shape != outputs.shape:
            raise UserError(
                f"field y has {y.shape[1]} numbers for each example, and the model gives {outputs.shape[1]}: they must be the same"
            )
        return outputs - (y - _like(self.center, y)) / _like(self.scale, y)

    def check_targets(self, y: Tensor) -> None:
        if y.dim() not in (1, 2) or y.dtype.is_complex:
            raise UserError(f"{described(y)}: a Regressor reads numbers [n] or [n, k]")
        for name, given in (("center", self.center), ("scale", self.scale)):
            if len(given) not in (1, y.shape[1] if y.dim() == 2 else 1):
                raise UserError(
                    f"{described(y)}, and {name} has {len(given)} numbers: give one, or one for each target"
                )
        if isinstance(y, Tensor):
            self.check_values(y, torch.arange(len(y)))

    def check_values(self, y: Tensor, rows: Tensor) -> None:
        refuse_infinite(y, rows)


def _numbers(given: float | Sequence[float]) -> tuple[float, ...]:
    return (float(given),) if isinstance(given, int | float) else tuple(map(float, given))


def _like(numbers: tuple[float, ...], x: Tensor) -> float | Tensor:
    """What broadcasts against x [B, k]."""
    return numbers[0] if len(numbers) == 1 else x.new_tensor(numbers)

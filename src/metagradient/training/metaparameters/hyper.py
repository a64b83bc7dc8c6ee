"""Metaparameters of the update: learning rates, momentum, weight decay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from metagradient.errors import UserError
from metagradient.training.metaparameters.metaparameter import Metaparameter
from metagradient.training.updates.optimizers import Scalar
from metagradient.training.updates.schedules import knot_position


@dataclass(frozen=True, eq=False)
class LearningRates(Metaparameter):
    """The learning rate of every step: value [T], or [K] knots spread evenly over the `steps` of the run.

    Knots are linearly interpolated; with `log` the value holds natural logarithms of learning rates.
    """

    name: str = "learning_rates"
    steps: int | None = None
    log: bool = False

    def rate(self, t: int) -> Tensor:
        """The learning rate at step t (a scalar tensor)."""
        value = _value_at(self, t)
        return value.exp() if self.log else value

    def on_hyper(self, hyper: Mapping[str, Scalar], t: int) -> Mapping[str, Scalar]:
        return {**hyper, "learning_rate": self.rate(t)}


@dataclass(frozen=True, eq=False)
class Momentum(Metaparameter):
    """The momentum of SGD or Muon at every step: value [T], or [K] knots, linearly interpolated over the `steps` of the run."""

    name: str = "momentum"
    steps: int | None = None

    def on_hyper(self, hyper: Mapping[str, Scalar], t: int) -> Mapping[str, Scalar]:
        if not hyper.get("momentum"):
            raise UserError(
                "Momentum needs an optimizer with a momentum to replace: set learner.optimizer.momentum=0.9"
            )
        return {**hyper, "momentum": _value_at(self, t)}


def _value_at(m: LearningRates | Momentum, t: int) -> Tensor:
    """The value at step t, a scalar: an entry of [T], or between two of [K] knots where `steps` is given."""
    value = m.value
    if m.steps is None:
        if t >= len(value):
            raise UserError(f"{type(m).__name__} has {len(value)} values but the run reaches step {t}: give steps=T")
        return value[t]
    left, fraction = knot_position(t, len(value), m.steps)
    return value[left] + fraction * (value[left + 1] - value[left]) if fraction else value[left]


@dataclass(frozen=True, eq=False)
class WeightDecay(Metaparameter):
    """The weight-decay coefficient of the optimizer, a scalar."""

    name: str = "weight_decay"

    def on_hyper(self, hyper: Mapping[str, Scalar], t: int) -> Mapping[str, Scalar]:
        if "weight_decay" not in hyper:
            raise UserError("WeightDecay needs an optimizer with one weight decay to replace; that of groups is fixed")
        return {**hyper, "weight_decay": self.value.reshape(())}

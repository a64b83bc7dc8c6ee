"""Learning-rate schedules: functions of the step t, independent of everything else.

Each is a frozen dataclass with `__call__(t) -> float`; `steps` is the length T of the run, peaks are learning rates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from metagradient.errors import UserError

Schedule = Callable[[int], float]


def _linear(start: float, end: float, fraction: float) -> float:
    return start + (end - start) * fraction


def _cosine(start: float, end: float, fraction: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * fraction))


def _check(steps: int, **rates: float) -> None:
    if steps < 1:
        raise UserError(f"a schedule needs steps >= 1, not {steps}")
    for name, rate in rates.items():
        if not (rate >= 0 and math.isfinite(rate)):
            raise UserError(f"{name} must be a finite number >= 0, not {rate}: set learner.learning_rate=...")


@dataclass(frozen=True)
class Constant:
    """The same learning rate at every step."""

    rate: float

    def __post_init__(self) -> None:
        _check(1, rate=self.rate)

    def __call__(self, t: int) -> float:
        return self.rate


@dataclass(frozen=True)
class Cosine:
    """Half a cosine from `peak` at t = 0 to `final` at t = steps."""

    peak: float
    steps: int
    final: float = 0.0

    def __post_init__(self) -> None:
        _check(self.steps, peak=self.peak, final=self.final)

    def __call__(self, t: int) -> float:
        return _cosine(self.peak, self.final, min(t / self.steps, 1.0))


@dataclass(frozen=True)
class Halved:
    """`rate` in the first half of the run of `steps` steps, half of it in the second."""

    rate: float
    steps: int

    def __post_init__(self) -> None:
        _check(self.steps, rate=self.rate)

    def __call__(self, t: int) -> float:
        return self.rate if 2 * t < self.steps else 0.5 * self.rate


@dataclass(frozen=True)
class OneCycle:
    """One-cycle (Smith & Topin): half a cosine up from peak / start_divisor, half a cosine down to peak / end_divisor.

    The peak is reached at t = warmup * steps (a fraction of the run).
    """

    peak: float
    steps: int
    warmup: float = 0.3
    start_divisor: float = 25.0
    end_divisor: float = 1e4

    def __post_init__(self) -> None:
        _check(self.steps, peak=self.peak)
        if not 0 <= self.warmup <= 1:
            raise UserError(f"warmup is a fraction of the run in [0, 1], not {self.warmup}")

    def __call__(self, t: int) -> float:
        top = self.warmup * self.steps
        if t < top:
            return _cosine(self.peak / self.start_divisor, self.peak, t / top)
        fraction = min((t - top) / max(self.steps - top, 1e-12), 1.0)
        return _cosine(self.peak, self.peak / self.end_divisor, fraction)


@dataclass(frozen=True)
class WarmupDecay:
    """Linear warm-up from 0 over `warmup` steps, then linear decay to `final` at t = steps."""

    peak: float
    steps: int
    warmup: int = 0
    final: float = 0.0

    def __post_init__(self) -> None:
        _check(self.steps, peak=self.peak, final=self.final)
        if not 0 <= self.warmup <= self.steps:
            raise UserError(f"warmup must lie in [0, steps = {self.steps}] steps, not {self.warmup}")

    def __call__(self, t: int) -> float:
        if t < self.warmup:
            return self.peak * (t + 1) / self.warmup
        fraction = min((t - self.warmup) / max(self.steps - self.warmup, 1), 1.0)
        return _linear(self.peak, self.final, fraction)


@dataclass(frozen=True)
class Knots:
    """Values at evenly spaced knots over steps 0 .. steps - 1, linearly interpolated; in log space with `log`."""

    values: Sequence[float]
    steps: int
    log: bool = False

    def __post_init__(self) -> None:
        _check(self.steps, **{f"values[{i}]": v for i, v in enumerate(self.values)})
        if not self.values or (self.log and min(self.values) <= 0):
            raise UserError(f"knots need at least one value, all > 0 where log is set: {list(self.values)}")

    def __call__(self, t: int) -> float:
        left, fraction = knot_position(t, len(self.values), self.steps)
        if fraction == 0.0:
            return self.values[left]
        a, b = self.values[left], self.values[left + 1]
        if self.log:
            return math.exp(_linear(math.log(a), math.log(b), fraction))
        return _linear(a, b, fraction)


def knot_position(t: int, knots: int, steps: int) -> tuple[int, float]:
    """The knot to the left of step t and the fraction of the way to the next one."""
    if knots == 1 or steps == 1:
        return 0, 0.0
    position = min(max(t, 0), steps - 1) * (knots - 1) / (steps - 1)
    left = min(int(position), knots - 1)
    return left, (position - left if left < knots - 1 else 0.0)

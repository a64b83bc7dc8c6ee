"""When DeltaGrad should not trust its shortcut."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from metagradient.errors import UserError
from metagradient.unlearning.lbfgs import SecantPairs


@dataclass(frozen=True)
class Guard:
    """Refuses an approximate step that looks wrong; the step is then exact, and its pair renews B.

    curvature: |B v| may be at most this many times the largest curvature |y| / |s| of the pairs, times |v|.
    growth:    |v| may be at most this many times its length at the last exact step.
    """

    curvature: float = 1.5
    growth: float = 1.5

    def __post_init__(self) -> None:
        for name in ("curvature", "growth"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} must be > 0, not {getattr(self, name)}: set method.guard.{name}=1.5")

    def accepts(self, v: Tensor, product: Tensor, pairs: SecantPairs) -> bool:
        """Whether the step with B v = `product` may be taken; NaN is refused."""
        length = float(v.norm())
        if not length <= self.growth * pairs.length:
            return False
        return float(product.norm()) <= self.curvature * pairs.curvature * length


@dataclass(frozen=True)
class Adaptive:
    """Sets the distance to the next exact step from the error of B, measured where it is exact.

    At an exact step, `age` steps after the last one, the old pairs' prediction B v is compared with the true y:
    error = |B v - y| / |y|. Taken to grow in proportion to the age, it reaches `target` after age * target / error
    steps; the period follows that, by at most a factor of two at a time, up to `longest`.
    """

    target: float = 0.2
    longest: int = 50

    def __post_init__(self) -> None:
        if not self.target > 0:
            raise UserError(f"target must be > 0, not {self.target}: set method.adaptive.target=0.2")
        if self.longest < 1:
            raise UserError(f"longest must be at least 1, not {self.longest}: set method.adaptive.longest=50")

    def next_period(self, age: int, error: float) -> int:
        """Steps from this exact step to the next one."""
        if not error > 0:
            return min(2 * age, self.longest)
        wanted = age * self.target / error
        return int(min(max(wanted, age / 2, 1), 2 * age, self.longest))

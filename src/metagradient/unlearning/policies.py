"""When DeltaGrad should not trust its shortcut."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from metagradient.errors import UserError
from metagradient.unlearning.lbfgs import SecantPairs


@dataclass(frozen=True)
class Guard:
    """Refuses an approximate step that looks wrong; the step is then exact, and its pair renews B.

    Attributes:
        curvature: |B v| may be at most this many times the largest curvature |y| / |s| of the pairs, times |v|.
        growth: |v| may be at most this many times its length at the last exact step.
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

    At an exact step the last pairs' prediction B v is compared with the true y. A step taken on it would have put v wrong
    by the share

        drift = eta |B v - y| / |v|,    eta = learning rate / (1 - momentum),

    so that `target` is reached after target / drift steps. The period follows that, by at most a factor of two at a
    time, up to `longest`. What is bounded is the error that one period adds, relative to what the request moves: a
    noisy Hessian (small batches) costs as little as its noise moves the parameters, a stiff one brings exact steps.
    """

    target: float = 0.02
    longest: int = 50

    def __post_init__(self) -> None:
        if not self.target > 0:
            raise UserError(f"target must be > 0, not {self.target}: set method.adaptive.target=0.02")
        if self.longest < 1:
            raise UserError(f"longest must be at least 1, not {self.longest}: set method.adaptive.longest=50")

    def next_period(self, age: int, drift: float) -> int:
        """Steps to the next exact step, `age` steps after the last one; a drift that is no number asks for 1."""
        if not drift > 0:
            return min(2 * age, self.longest) if drift == 0 else 1
        return int(min(max(self.target / drift, age / 2, 1), 2 * age, self.longest))

"""Is a training routine fit for metagradients? Its empirical metasmoothness, and the health of a gradient.

A metagradient predicts what a small change of z does only where training responds to z smoothly. The empirical
metasmoothness asks three trainings, at z, z + h v and z + 2 h v, whether the parameters keep going the way they set
out (arXiv 2503.13751); no gradient is needed.
"""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from metagradient.errors import UserError
from metagradient.intervals import mean_interval
from metagradient.learners.learner import Learner
from metagradient.streams import Metasmoothness
from metagradient.training.batches import Batches
from metagradient.training.metaparameters import Metaparameter
from metagradient.training.random import fold_in, generator
from metagradient.training.run import NonFiniteLoss, Progress, train
from metagradient.training.state import TrainState

log = logging.getLogger(__name__)

ADVICE = (
    "What usually mends it: average pooling, GELU, norms before the activation, smaller logits (model.logit_scale=0.1), a "
    "wider model, a larger batch, a smaller learning rate, Adam with eps_root >= 1e-8"
)
ROUGH = 0.5
"""Below this metasmoothness a descent warns."""


def metasmoothness(start: Tensor, near: Tensor, far: Tensor) -> float:
    """S of three end points theta_0 = A(z), theta_h = A(z + h v), theta_2h = A(z + 2 h v), each [P]; in [-1, 1].

    With d = |theta_2h - theta_0|:  S = sum_j (d_j / sum_k d_k) sign(theta_h - theta_0)_j sign(theta_2h - theta_h)_j,
    the agreement of the first half of the way with the second, each parameter counted as far as it went. 1: the same
    direction everywhere (a linear response, for example); about 0: chance. nan where a parameter is not finite or
    nothing moved at all (arXiv 2503.13751, section on metasmoothness).
    """
    start, near, far = (x.detach().double() for x in (start, near, far))
    distance = (far - start).abs()
    total = distance.sum()
    if not bool(torch.isfinite(total)) or not bool(torch.isfinite(near).all()) or total == 0:
        return math.nan
    agreement = torch.sign(near - start) * torch.sign(far - near)
    return float((distance / total * agreement).sum())


@dataclass(frozen=True)
class Smoothness:
    """Metasmoothness over directions.

    Attributes:
        readings: S of each direction, each with a run of its own seed; nan where training was not finite or did not
            move.
        movement: median of |theta_2h - theta_0| / |theta_0|; without movement there is nothing to be smooth.
        cost: training-run equivalents spent.
    """

    readings: tuple[float, ...]
    movement: float
    cost: float

    @property
    def finite(self) -> list[float]:
        return [s for s in self.readings if math.isfinite(s)]

    @property
    def value(self) -> float:
        """The mean over the finite readings; nan without any."""
        return statistics.fmean(self.finite) if self.finite else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """The mean's 95 % confidence interval (Student's t over the readings); nan with fewer than two."""
        return mean_interval(self.finite)

    def against(self, other: Smoothness) -> tuple[float, float, float]:
        """This minus another, read with the same directions and seeds: the mean of the paired differences and its 95 %
        interval; directions that failed in either are left out."""
        pairs = zip(self.readings, other.readings, strict=True)
        differences = [d for a, b in pairs if math.isfinite(d := a - b)]
        return statistics.fmean(differences) if differences else math.nan, *mean_interval(differences)

    @property
    def failed(self) -> int:
        """Directions without a reading."""
        return len(self.readings) - len(self.finite)

    def verdict(self) -> str | None:
        """A warning where the routine is not fit for metagradients, else None."""
        if self.failed == len(self.readings):
            return f"metasmoothness could not be read: training was not finite, or nothing moved. {ADVICE}."
        failed = f"; {self.failed} of {len(self.readings)} directions failed (not finite, or no movement)"
        failed = failed if self.failed else ""
        if self.value < ROUGH:
            return (
                f"metasmoothness is {self.value:.2f} (below {ROUGH}): training responds roughly to its metaparameters, so "
                f"metagradients predict little beyond very small steps{failed}. {ADVICE}."
            )
        return f"metasmoothness is {self.value:.2f}{failed}" if failed else None


def measure_smoothness(
    make_run: Callable[[int], tuple[Learner, Batches]],
    z: Metaparameter,
    *,
    directions: int = 3,
    h: float = 0.05,
    seed: int = 0,
    on_trained: Callable[[Learner, TrainState], None] | None = None,
    progress: Progress | None = None,
) -> Smoothness:
    """The metasmoothness of a routine in z: for each direction v ~ N(0, I) three trainings with a seed of their own.

    Args:
        make_run: seed -> a fresh learner and its batches; called once for each direction.
        h: half the way, in units of z's value (for weights around 1, .05 to .1).
        on_trained: told of the run at z itself, (learner, final state), once for each direction.
        z: the metaparameter, at its value.
        directions: random directions, each with a run of its own.
        seed: of runs and directions.
        progress: called now and then.
    """
    if directions < 1 or not h > 0:
        raise UserError(
            f"smoothness needs directions >= 1 and h > 0, not {directions} and {h}: set directions=4 h=0.05 (in a descent "
            "smoothness.directions and smoothness.h)"
        )
    readings, movements, runs = [], [], 0.0
    for i in range(directions):
        learner, batches = make_run(fold_in(seed, Metasmoothness.RUN, i) % 2**31)
        rng = generator(seed, Metasmoothness.DIRECTION, i)
        direction = torch.randn(z.value.shape, generator=rng).to(z.value.dtype)
        ends: list[TrainState] = []
        try:
            for j in range(3):
                if progress is not None:
                    progress("metasmoothness", 3 * i + j, 3 * directions)
                value = z.value + j * h * direction.to(z.value.device)
                ends.append(train(learner, batches, [z.with_value(value)], progress=progress))
                runs += 1
        except NonFiniteLoss as error:
            log.warning("metasmoothness, direction %d: %s", i, error)
            readings.append(math.nan)
            continue
        finally:
            if ends and on_trained is not None:
                on_trained(learner, ends[0])
        start, near, far = (end.params for end in ends)
        movement = float((far - start).norm() / start.norm())
        readings.append(metasmoothness(start, near, far) if math.isfinite(movement) else math.nan)
        movements += [movement] if math.isfinite(movement) else []
    if progress is not None:
        progress("metasmoothness", 3 * directions, 3 * directions)
    return Smoothness(tuple(readings), statistics.median(movements) if movements else math.nan, runs)


@dataclass(frozen=True)
class GradientHealth:
    """norm: |g|; zeros: the share of coordinates that are exactly 0; broken: the share that is NaN or infinite."""

    norm: float
    zeros: float
    broken: float

    @staticmethod
    def of(gradient: Tensor) -> GradientHealth:
        """The health of a metagradient of any shape."""
        finite = torch.isfinite(gradient)
        return GradientHealth(
            norm=float(gradient.double().norm()),
            zeros=float((gradient == 0).double().mean()),
            broken=float((~finite).double().mean()),
        )

    def verdict(self) -> str | None:
        """A warning where the gradient says little, else None."""
        if self.broken:
            return f"{self.broken:.1%} of the metagradient's coordinates are not finite. {ADVICE}."
        if self.norm < 1e-10 or self.zeros > 0.5:
            return (
                f"the metagradient is nearly zero (norm {self.norm:.1e}, {self.zeros:.0%} of its coordinates exactly 0): the "
                "objective hardly depends on these metaparameters, or training erased their effect"
            )
        return None

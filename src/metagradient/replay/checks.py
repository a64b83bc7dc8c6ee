"""Is the metagradient right, and how far does it reach? Coordinates against central differences, and one more run along it."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metagradient.errors import UserError
from metagradient.learners.learner import Learner
from metagradient.replay.adjoint import Objective
from metagradient.replay.metagradients import Metagradients, metagradient
from metagradient.training.batches import Batches
from metagradient.training.metaparameters import Metaparameter
from metagradient.training.random import generator
from metagradient.training.run import Progress, train


@dataclass(frozen=True)
class CheckedCoordinate:
    """One coordinate: the replay in the run's own precision, in float64, and the central difference in float64."""

    name: str
    index: int
    replay: float
    replay64: float
    difference: float

    @property
    def relative_error(self) -> float:
        """|replay64 - difference| / |difference|."""
        return abs(self.replay64 - self.difference) / max(abs(self.difference), 1e-300)


def finite_differences(
    learner: Learner,
    batches: Batches,
    metaparameters: Metaparameter | Sequence[Metaparameter],
    objective: Objective,
    result: Metagradients,
    *,
    coordinates: int = 5,
    h: float = 1e-4,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[CheckedCoordinate]:
    """Compare metagradients with (phi(z + h e_i) - phi(z - h e_i)) / 2h, each phi a training of its own in float64.

    Of each metaparameter the two coordinates with the largest gradient are taken and the rest at random. Costs one
    replay and two trainings a coordinate. `objective` must be a scalar that follows the learner's precision.
    """
    if result.objective.dim() != 0:
        raise UserError("check=fd needs a scalar objective")
    z = [metaparameters] if isinstance(metaparameters, Metaparameter) else list(metaparameters)
    learner64 = copy.deepcopy(learner).double()
    batches64 = batches.to(dtype=torch.float64)
    device = next(learner.parameters()).device
    z64 = [m.with_value(m.value.detach().to(device, torch.float64)) for m in z]
    exact = metagradient(learner64, batches64, z64, objective)

    def phi(i: int, shift: Tensor) -> float:
        moved = [m.with_value(m.value + shift.view(m.value.shape)) if j == i else m for j, m in enumerate(z64)]
        with torch.no_grad(), learner64.evaluating(train(learner64, batches64, moved)):
            return float(objective(learner64))

    rows = []
    for i, m in enumerate(z64):
        gradient = exact[m.name].flatten()
        chosen = _coordinates(gradient, coordinates, seed)
        for done, k in enumerate(chosen):
            shift = torch.zeros_like(gradient)
            shift[k] = h
            slope = (phi(i, shift) - phi(i, -shift)) / (2 * h)
            rows.append(CheckedCoordinate(m.name, k, float(result[m.name].flatten()[k]), float(gradient[k]), slope))
            if progress is not None:
                progress(f"finite differences of {m.name}", done + 1, len(chosen))
    return rows


@dataclass(frozen=True)
class Linearity:
    """What one more run along the gradient says of the linear prediction phi(z + d) = phi(z) + g . d.

    Attributes:
        size: |d| / |z|, where z = 0 in units of sqrt(its length).
        predicted: g . d.
        actual: phi(z + d) - phi(z).
    """

    size: float
    predicted: float
    actual: float

    @property
    def error(self) -> float:
        """|actual - predicted| / |predicted|."""
        return abs(self.actual - self.predicted) / abs(self.predicted) if self.predicted else math.nan

    @property
    def reach(self) -> float:
        """The size at which the prediction is off by a tenth, if its error grows in proportion to the size."""
        return 0.1 * self.size / self.error if self.error else math.inf


def linearity(
    learner: Learner,
    batches: Batches,
    metaparameters: Metaparameter | Sequence[Metaparameter],
    objective: Objective,
    result: Metagradients,
    *,
    size: float = 0.01,
    progress: Progress | None = None,
) -> Linearity:
    """Train once more with every metaparameter moved down its own gradient g by `size`, d = -size |z| g / |g|.

    `learner` must hold the start of the run. What rounding could hide shows as an error of the order of
    eps phi / |g . d|: a larger `size` helps.
    """
    if result.objective.dim() != 0:
        raise UserError("check=line needs a scalar objective")
    z = [metaparameters] if isinstance(metaparameters, Metaparameter) else list(metaparameters)
    moved, predicted = [], 0.0
    for m in z:
        gradient = result[m.name]
        value = m.value.detach().to(gradient)
        length = float(value.norm()) or len(value.flatten()) ** 0.5
        shift = -size * length * gradient / gradient.norm().clamp(min=torch.finfo(gradient.dtype).tiny)
        predicted += float((gradient * shift).sum())
        moved.append(m.with_value(value + shift))
    with torch.no_grad(), learner.evaluating(train(learner, batches, moved, progress=progress)):
        actual = float(objective(learner)) - float(result.objective)
    return Linearity(size, predicted, actual)


def _coordinates(gradient: Tensor, count: int, seed: int) -> list[int]:
    largest = gradient.abs().argsort(descending=True)[: min(2, count)].tolist()
    others = torch.randperm(len(gradient), generator=generator(seed)).tolist()
    return list(dict.fromkeys([*largest, *others]))[: min(count, len(gradient))]

"""Find the learning-rate schedule by gradient: metagradient descent on a few numbers that set it."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from metagradient.descent.loop import Loop, Measured, OnMetastep
from metagradient.descent.problem import DescentProblem
from metagradient.descent.state import DescentState
from metagradient.descent.updates import Adam, UpdateRule
from metagradient.errors import UserError
from metagradient.learners.learner import Learner
from metagradient.learners.routine import Routine
from metagradient.replay.objectives import mean_loss
from metagradient.training.metaparameters import LearningRates, Metaparameter, Momentum, WeightDecay
from metagradient.training.run import Progress, train
from metagradient.training.state import TrainState


@dataclass(frozen=True)
class Recipe:
    """What the optimizer does at each step: rates [T]; momentum [T] and weight decay [], where they are not its own."""

    rates: Tensor
    momentum: Tensor | None = None
    weight_decay: Tensor | None = None

    def metaparameters(self) -> list[Metaparameter]:
        """The recipe as values of metaparameters."""
        z: list[Metaparameter] = [LearningRates(self.rates)]
        z += [] if self.momentum is None else [Momentum(self.momentum)]
        return z + ([] if self.weight_decay is None else [WeightDecay(self.weight_decay)])

    def stretched(self, factor: int) -> Recipe:
        """The same recipe over `factor` times the steps: each step's settings that many times."""
        momentum = None if self.momentum is None else self.momentum.repeat_interleave(factor)
        return dataclasses.replace(self, rates=self.rates.repeat_interleave(factor), momentum=momentum)

    def train(self, problem: DescentProblem, seed: int, progress: Progress | None = None) -> tuple[Learner, TrainState]:
        """One training from scratch under the recipe."""
        batches = problem.routine.batches(problem.train, seed)
        learner = problem.routine.learner(seed, len(batches))
        return learner, train(learner, batches, self.metaparameters(), progress=progress)


@dataclass(frozen=True)
class RecipeSpace:
    """The numbers x that are searched, all unbounded: log learning rates at `knots` evenly spaced steps, then, where
    asked for, log(1 - momentum) and log weight decay.

    Between knots the logarithms are linearly interpolated: a straight line of x is a geometric ramp of rates.
    """

    knots: int = 6
    momentum: bool = False
    weight_decay: bool = False

    def __post_init__(self) -> None:
        if self.knots < 1:
            raise UserError(f"method.space.knots must be at least 1, not {self.knots}")

    def start(self, rate: float, momentum: float, weight_decay: float) -> Tensor:
        """x of a flat schedule."""
        if not rate > 0:
            raise UserError(f"the flat learning rate must be > 0, not {rate}: set method.start=0.05")
        numbers = [math.log(rate)] * self.knots
        if self.momentum:
            if not 0 < momentum < 1:
                raise UserError(
                    f"searching the momentum starts at one in (0, 1), not {momentum}: set learner.optimizer.momentum=0.9"
                )
            numbers.append(math.log(1 - momentum))
        if self.weight_decay:
            numbers.append(math.log(max(weight_decay, 1e-4)))
        return torch.tensor(numbers)

    def recipe(self, x: Tensor, steps: int) -> Recipe:
        """x as settings of each of `steps` steps; differentiable in x."""
        rates = (hat_functions(self.knots, steps).to(x) @ x[: self.knots]).exp()
        rest = list(x[self.knots :])
        momentum = (1 - rest.pop(0).exp()).expand(steps) if self.momentum else None
        return Recipe(rates, momentum, rest.pop(0).exp() if self.weight_decay else None)


def hat_functions(knots: int, steps: int) -> Tensor:
    """[steps, knots]: linear interpolation of values at evenly spaced knots as a matrix; rows sum to 1."""
    if knots == 1 or steps == 1:
        return torch.eye(1, knots).expand(steps, knots)
    position = torch.arange(steps) * (knots - 1) / (steps - 1)
    return (1 - (position[:, None] - torch.arange(knots)).abs()).clamp(min=0)


@dataclass(frozen=True)
class FoundRecipe:
    """x of the finalists: the metastep with the lowest held-out loss, the average of the last iterates, the last."""

    finalists: tuple[Tensor, ...]
    metastep: int
    cost: float


@dataclass(frozen=True)
class ScheduleSearch(Loop):
    """Descent on a recipe's numbers by exact metagradients of the held-out loss.

    What makes it work: fresh seeds in every metastep (one fixed seed is overfitted), each seed's gradient normalised
    (it explodes towards the edge of stability), a trust region, few knots in log space, and averaged iterates.

    Attributes:
        start: the flat learning rate to begin with.
        update: the rule on x.
        space: what is searched.
    """

    start: float = 0.02
    update: UpdateRule = Adam(step=0.3, betas=(0.8, 0.95), decay=True)
    space: RecipeSpace = RecipeSpace()
    average_from: float = 0.6

    def flat(self, routine: Routine) -> Tensor:
        """x of the schedule that the descent begins with; momentum and weight decay begin as the optimizer's own (a
        decay of 0, which has no logarithm, at 1e-4)."""
        learner = routine.learner(0, 1)
        learner.configure_for_steps(100, 10)  # for its first momentum and decay alone
        hyper = learner.update.hyper(0)
        if self.space.weight_decay and "weight_decay" not in hyper:
            raise UserError(
                "a search of the weight decay needs an optimizer with one: set method.space.weight_decay=false"
            )
        return self.space.start(self.start, float(hyper.get("momentum", 0.0)), float(hyper.get("weight_decay", 0.0)))

    def run(
        self,
        problem: DescentProblem,
        *,
        on_metastep: OnMetastep = lambda metastep, values, x: None,
        progress: Progress | None = None,
    ) -> FoundRecipe:
        """Descend; `problem.score` must report "held_out_loss". A judge with fresh seeds picks among the finalists."""
        steps = len(problem.routine.batches(problem.train, 0))

        def measure(state: DescentState, seed: int, differentiate: bool) -> Measured:
            leaf = state.x.clone().requires_grad_()
            recipe = self.space.recipe(leaf, steps)
            z = [m.with_value(m.value.detach()) for m in recipe.metaparameters()]
            batches = problem.routine.batches(problem.train, seed)
            learner = problem.routine.learner(seed, len(batches))
            gradient, cost = None, 1.0
            if differentiate:
                result = problem.fit(learner, batches, z, mean_loss(problem.steer))
                outputs = [m.value for m in recipe.metaparameters()]
                pulled = [result[m.name].to(m.value) for m in z]
                (gradient,) = torch.autograd.grad(outputs, leaf, pulled)
                final, objective, cost = result.state, float(result.objective), result.cost
            else:
                final = train(learner, batches, z)
                with torch.no_grad(), learner.evaluating(final):
                    objective = float(mean_loss(problem.steer)(learner))
            values = {"objective": objective, **problem.score(learner, final)}
            return Measured(values, -values["held_out_loss"], gradient, cost)

        def move(state: DescentState, gradient: Tensor) -> None:
            unit = gradient / gradient.norm().clamp(min=torch.finfo(gradient.dtype).tiny)
            state.x, state.memory = self.update.update(
                state.x, unit, state.memory, state.metastep, self.metasteps, state.scale
            )

        state = self.descend(
            self.flat(problem.routine),
            measure,
            move,
            seed=problem.seed,
            save_to=problem.save_to,
            resume_from=problem.resume_from,
            data=problem.data,
            on_metastep=on_metastep,
            progress=progress,
        )
        assert state.best_x is not None
        finalists = (state.best_x, *([] if state.mean_x is None else [state.mean_x]), state.x)
        return FoundRecipe(finalists, state.best_metastep, state.cost)

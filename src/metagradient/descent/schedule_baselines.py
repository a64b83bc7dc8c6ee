"""What a schedule search must beat at equal compute: a grid of known shapes, random search, Optuna's TPE, and doing
without a schedule."""

from __future__ import annotations

import importlib.util
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metagradient.descent.problem import DescentProblem
from metagradient.descent.schedule import Recipe
from metagradient.errors import UserError
from metagradient.learners.learner import Learner
from metagradient.streams import Library
from metagradient.training.random import generator
from metagradient.training.run import Progress, cast, check_loss, initial_state, run_mode
from metagradient.training.state import TrainState

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ScheduleFree:
    """Schedule-free SGD (Defazio et al. 2024, arXiv 2405.15682) from its authors' package `schedulefree`.

    A constant learning rate after a linear warm-up (a share of the run); what is judged is the running average of the
    iterates. Its rate is that of SGD without momentum: about 1 / (1 - mu) of what suits SGD with momentum mu.
    """

    rate: float
    warmup: float = 0.0
    momentum: float = 0.9

    @staticmethod
    def check(learner: Learner) -> None:
        """Refuse a learner with batch-norm statistics, of which the averaged parameters have none."""
        if len(learner.layout.buffers(like=learner.layout.params())):
            raise UserError("a schedule-free average has no batch-norm statistics: set schedule_free=false")

    def train(self, problem: DescentProblem, seed: int, progress: Progress | None = None) -> tuple[Learner, TrainState]:
        """One training from scratch; NonFiniteLoss where it diverges."""
        from schedulefree import SGDScheduleFree

        batches = problem.routine.batches(problem.train, seed)
        learner = problem.routine.learner(seed, len(batches))
        learner.configure_for(batches)
        self.check(learner)
        hyper = learner.update.hyper(0)
        if "weight_decay" not in hyper:
            raise UserError("schedule-free SGD has one weight decay for all parameters: set schedule_free=false")
        decay = float(hyper["weight_decay"])
        warmup = round(self.warmup * len(batches))
        optimizer = SGDScheduleFree(
            learner.parameters(), lr=self.rate, momentum=self.momentum, weight_decay=decay, warmup_steps=warmup
        )
        like = initial_state(learner)
        with run_mode(learner, batches):
            optimizer.train()
            for t in range(len(batches)):
                batch = cast(batches(t), like)
                loss = learner.losses(batch).sum() / len(batch.index)
                check_loss(loss.detach(), batch, t, learner, initial_state(learner))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                if progress is not None:
                    progress("training", t + 1, len(batches))
            optimizer.eval()
        return learner, initial_state(learner)


Trainable = Recipe | ScheduleFree
Evaluate = Callable[[Trainable], float]
"""One training: the validation loss under a recipe, infinite where training diverges."""


@dataclass(frozen=True)
class Trial:
    """One recipe that was tried, and its validation loss."""

    name: str
    recipe: Trainable
    loss: float


def rise_and_fall(
    steps: int, peak: float, warmup: float, start: float = 0.04, final: float = 1e-4, *, linear: bool = False
) -> Tensor:
    """[T] rates: from start * peak up to the peak at `warmup` of the run, along half a cosine or a line; then half a
    cosine down to final * peak. One-cycle: start 1/25, final 1e-4; cosine with linear warm-up: start and final 0."""
    t = torch.arange(steps) / steps
    up = (t / max(warmup, 1e-9)).clamp(max=1.0)
    up = up if linear else 0.5 * (1 - torch.cos(math.pi * up))
    down = ((t - warmup) / max(1 - warmup, 1e-9)).clamp(0.0, 1.0)
    falling = final + (1 - final) * 0.5 * (1 + torch.cos(math.pi * down))
    return peak * torch.where(t < warmup, start + (1 - start) * up, falling)


@dataclass(frozen=True)
class Family:
    """Where the baselines look: ranges of peak (a learning rate) and warm-up (a share of the run)."""

    peak: tuple[float, float] = (0.01, 3.0)
    warmup: tuple[float, float] = (0.0, 0.7)
    start: tuple[float, float] = (0.01, 1.0)
    final: tuple[float, float] = (1e-4, 1.0)

    def __post_init__(self) -> None:
        for name in ("peak", "start", "final"):
            low, high = getattr(self, name)
            if not 0 < low < high:
                raise UserError(f"family.{name} must be two numbers 0 < low < high, not [{low}, {high}]")
        if not 0 <= self.warmup[0] <= self.warmup[1] < 1:
            raise UserError(f"family.warmup must lie in [0, 1), not {list(self.warmup)}")


def grid(steps: int, peaks: Sequence[float], warmups: Sequence[float]) -> list[tuple[str, Recipe]]:
    """One-cycle, and cosine with linear warm-up, each at every peak and warm-up: (name, recipe)."""
    return [
        (
            f"{kind}, peak {peak:.3g}, warm-up {warmup:g}",
            Recipe(rise_and_fall(steps, peak, warmup, start, final, linear=linear)),
        )
        for kind, start, final, linear in (("one-cycle", 0.04, 1e-4, False), ("cosine", 0.0, 0.0, True))
        for peak in peaks
        for warmup in warmups
    ]


def geometric(low: float, high: float, count: int) -> list[float]:
    """`count` learning rates from low to high, each the same factor above the last."""
    if not 0 < low <= high or count < 1:
        raise UserError(
            f"a grid of peaks needs 0 < low <= high and a count >= 1, not {low}, {high} and {count}: "
            "set grid.low=0.02 grid.high=2 grid.peaks=10"
        )
    return [low * (high / low) ** (i / max(count - 1, 1)) for i in range(count)]


def grid_search(evaluate: Evaluate, recipes: Sequence[tuple[str, Recipe]]) -> Iterator[Trial]:
    """Each recipe once."""
    for name, recipe in recipes:
        yield Trial(name, recipe, evaluate(recipe))


def random_search(evaluate: Evaluate, family: Family, steps: int, runs: int, seed: int) -> Iterator[Trial]:
    """`runs` random members of the family: peak, start and final log-uniform, warm-up uniform."""
    rng = generator(seed, Library.RANDOM_SEARCH)

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=rng))

    for i in range(runs):
        peak, start, final = (
            math.exp(uniform(math.log(low), math.log(high))) for low, high in (family.peak, family.start, family.final)
        )
        recipe = Recipe(rise_and_fall(steps, peak, uniform(*family.warmup), start, final))
        yield Trial(f"random {i}", recipe, evaluate(recipe))


def tpe_search(evaluate: Evaluate, family: Family, steps: int, runs: int, seed: int) -> Iterator[Trial]:
    """Optuna's tree-structured Parzen estimator on the same family; nothing, said once, where Optuna is missing."""
    if importlib.util.find_spec("optuna") is None:
        log.warning("TPE is left out, Optuna is not installed: pip install 'metagradient[search]'")
        return
    import optuna

    optuna.logging.set_verbosity(logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed % 2**31))
    for i in range(runs):
        trial = study.ask()
        peak, start, final = (
            trial.suggest_float(name, *getattr(family, name), log=True) for name in ("peak", "start", "final")
        )
        recipe = Recipe(rise_and_fall(steps, peak, trial.suggest_float("warmup", *family.warmup), start, final))
        loss = evaluate(recipe)
        study.tell(trial, min(loss, 1e6))
        yield Trial(f"TPE {i}", recipe, loss)


def schedule_free_search(evaluate: Evaluate, family: Family, runs: int, seed: int) -> Iterator[Trial]:
    """`runs` random rates (log-uniform over ten times the family's peaks) and warm-ups; nothing, said once, where the
    package is missing."""
    if importlib.util.find_spec("schedulefree") is None:
        log.warning("schedule-free SGD is left out, it is not installed: pip install 'metagradient[search]'")
        return
    rng = generator(seed, Library.SCHEDULE_FREE)
    low, high = (math.log(10 * peak) for peak in family.peak)
    for _ in range(runs):
        rate, warmup = torch.rand(2, generator=rng).tolist()
        first, last = family.warmup
        found = ScheduleFree(math.exp(low + rate * (high - low)), first + warmup * (last - first))
        yield Trial(f"schedule-free, rate {found.rate:.3g}, warm-up {found.warmup:.2g}", found, evaluate(found))

"""How much can a small share of bad training data cost? Metagradient ascent on the pixels of training examples.

For measuring robustness: a share of the training examples is replaced in place, labels kept and pixels in range, so
that models trained on the whole set do badly on held-out data (arXiv 2503.13751).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from metagradient.descent.loop import Loop, Measured, OnMetastep
from metagradient.descent.problem import DescentProblem
from metagradient.descent.state import DescentState
from metagradient.descent.updates import Sign, UpdateRule
from metagradient.errors import UserError
from metagradient.learners.learner import Learner
from metagradient.replay.objectives import example_losses, mean_loss
from metagradient.streams import Library
from metagradient.training.batches import Fields
from metagradient.training.metaparameters import InputPerturbation
from metagradient.training.random import generator
from metagradient.training.run import Progress


@dataclass(frozen=True)
class Poisons:
    """images: [m, *input shape] in place of the training rows index [m]; metastep: the chosen one; cost: spent."""

    index: Tensor
    images: Tensor
    metastep: int = 0
    cost: float = 0.0

    def apply(self, train: Fields) -> dict[str, Tensor]:
        """The training set with the poisons in it; labels, order and everything else as they were."""
        x = train["x"].clone()
        x[self.index] = self.images.to(x)
        return {**train, "x": x}

    def mask(self, n: int) -> Tensor:
        """[n] booleans: true where a row is poisoned."""
        mask = torch.zeros(n, dtype=torch.bool)
        mask[self.index] = True
        return mask


def poison_rows(n: int, share: float, seed: int) -> Tensor:
    """Which rows are replaced: round(share n) distinct random ones, sorted, int64 [m]."""
    if not 0 < share < 1 or round(share * n) < 1:
        raise UserError(
            f"the poisoned share must lie in (0, 1) and be at least one of {n} rows, not {share}: set shares=[0.03]"
        )
    return torch.randperm(n, generator=generator(seed, Library.POISON_ROWS))[: round(share * n)].sort().values


def noise_poisons(train: Fields, rows: Tensor, seed: int, low: float = 0.0, high: float = 1.0) -> Poisons:
    """The naive attack: noise, uniform in [low, high], in place of the images."""
    images = low + (high - low) * torch.rand(
        train["x"][rows].shape, generator=generator(seed, Library.POISON_NOISE)
    ).to(train["x"])
    return Poisons(rows, images)


def soft_error(examples: Fields) -> Callable[[Learner], Tensor]:
    """The mean of 1 - p(true class), a smooth stand-in for the error rate in [0, 1]; losses must be cross entropies.

    The cross entropy itself grows without bound on examples that are lost already; this does not.
    """
    losses = example_losses(examples)
    return lambda learner: (1 - (-losses(learner)).exp()).mean()


@dataclass(frozen=True)
class PixelPoisoning(Loop):
    """Ascent on the held-out harm of models trained on the poisons, by exact metagradients of their pixels.

    Attributes:
        update: the rule; signs of the metagradient with a decaying step, as in the paper. low, high: the range of
            pixels.
        harm: what is raised on the steering examples: the mean "loss", or the "soft_error" 1 - p(true class).
        settle: with harm=loss, the share of the metasteps after which the soft error is raised instead (1: never).
    """

    update: UpdateRule = Sign(step=0.1)
    low: float = 0.0
    high: float = 1.0
    harm: Literal["loss", "soft_error"] = "loss"
    settle: float = 0.7

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.low < self.high:
            raise UserError(f"method.low must lie below method.high, not {self.low} and {self.high}")
        if self.harm not in ("loss", "soft_error") or not 0 <= self.settle <= 1:
            raise UserError(
                f"method.harm must be loss or soft_error, not '{self.harm}', and method.settle lie in [0, 1], not {self.settle}"
            )

    def run(
        self,
        problem: DescentProblem,
        rows: Tensor,
        *,
        on_metastep: OnMetastep = lambda metastep, values, x: None,
        progress: Progress | None = None,
    ) -> Poisons:
        """Poison the training rows `rows` [m]; the metastep whose model had the lowest held-out accuracy is chosen.

        `problem.score` must report "held_out_accuracy"; no victim of a later evaluation may share its seeds.
        """
        clean = problem.train["x"][rows]
        if float(clean.min()) < self.low or float(clean.max()) > self.high:
            raise UserError(
                f"the images' pixels lie in [{float(clean.min()):.3g}, {float(clean.max()):.3g}], outside [method.low, method.high] = "
                f"[{self.low}, {self.high}]: set data.standardize=false, or give their range"
            )
        loss, error = mean_loss(problem.steer), soft_error(problem.steer)

        def measure(state: DescentState, seed: int, differentiate: bool) -> Measured:
            soft = self.harm == "soft_error" or state.metastep >= self.settle * self.metasteps
            harm = error if soft else loss
            examples = Poisons(rows, state.x).apply(problem.train)
            batches = problem.routine.batches(examples, seed)
            gradient = None
            if differentiate:
                learner = problem.routine.learner(seed, len(batches))
                z = InputPerturbation(torch.zeros_like(state.x), index=rows)
                result = problem.fit(learner, batches, [z], lambda learner: -harm(learner))
                gradient, final, cost = result["inputs"].cpu(), result.state, result.cost
            else:
                learner, final = problem.routine.train(examples, seed)
                cost = 1.0
            with torch.no_grad(), learner.evaluating(final):
                objective = -float(loss(learner))
            values = {"objective": objective, **problem.score(learner, final)}
            return Measured(values, -values["held_out_accuracy"], gradient, cost)

        def move(state: DescentState, gradient: Tensor) -> None:
            x, state.memory = self.update.update(
                state.x, gradient, state.memory, state.metastep, self.metasteps, state.scale
            )
            state.x = x.clamp(self.low, self.high)

        state = self.descend(
            clean.clone(),
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
        return Poisons(rows, state.best_x, state.best_metastep, state.cost)

"""Gradient cancelling: the published peer of metagradient poisoning, under the same rules.

Two stages (Lu et al. 2023, "Exploring the limits of model-targeted indiscriminate data poisoning attacks"). First the
parameters of a cleanly trained model are corrupted within a radius, to a target theta that does badly. Then the
poisons are moved until theta is a stationary point of training on the poisoned set:

    min over pixels of  || (1 - e) grad L_clean(theta) + e grad L_poisons(theta) ||^2,   e the poisoned share.

Whether training from scratch arrives there is not part of the argument; that is what the judge finds out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metagradient.descent.poisoning import Poisons
from metagradient.descent.problem import DescentProblem
from metagradient.errors import UserError
from metagradient.learners.learner import Learner
from metagradient.replay.objectives import example_losses, mean_loss
from metagradient.training.batches import Fields
from metagradient.training.run import Progress
from metagradient.training.state import TrainState

CHUNK = 1024
"""Clean examples whose gradient is taken at once."""


@dataclass(frozen=True)
class GradientCancelling:
    """Gradient cancelling: pixels whose gradients cancel those of the clean examples at a corrupted model.

    Attributes:
        radii: distances of the target from the clean parameters, relative to their norm; each is tried, and the one
            whose retrained model has the lowest held-out accuracy is chosen.
        corruption_steps: normalised gradient-ascent steps to the target.
        steps: of Adam on the pixels.
        rate: of Adam on the pixels.
        low: lowest pixel; None: unclipped, which breaks the rules that the others keep.
        high: highest pixel, likewise.
    """

    radii: Sequence[float] = (0.1, 0.3, 1.0)
    corruption_steps: int = 50
    steps: int = 300
    rate: float = 0.05
    low: float | None = 0.0
    high: float | None = 1.0

    def __post_init__(self) -> None:
        if not self.radii or min(self.radii) <= 0 or min(self.corruption_steps, self.steps) < 1 or not self.rate > 0:
            raise UserError(
                "gradient cancelling needs radii > 0, corruption_steps >= 1, steps >= 1 and rate > 0, not "
                f"{list(self.radii)}, {self.corruption_steps}, {self.steps} and {self.rate}"
            )

    def run(self, problem: DescentProblem, rows: Tensor, progress: Progress | None = None) -> Poisons:
        """Poison the training rows `rows` [m]. Cost: a clean training, the two stages, and a training for each radius.

        A gradient step on a set of examples counts by the examples it reads: n of them as 1 / epochs of a training.
        """
        learner, clean = problem.routine.train(problem.train, problem.seed % 2**31)
        batches = problem.routine.batches(problem.train, 0)
        epochs = float((batches.plan >= 0).sum()) / problem.n
        cost, best, lowest = 1.0, None, float("inf")
        for done, radius in enumerate(self.radii):
            if progress is not None:
                progress("gradient cancelling", done, len(self.radii))
            target = self.corrupt(learner, clean, problem.steer, radius)
            poisons = self.cancel(learner, target, problem.train, rows)
            # an ascent step reads the steering rows once; a cancelling step is a double backward over the poisons
            cost += self.corruption_steps * len(problem.steer["y"]) / (epochs * problem.n)
            cost += (1 + 3 * self.steps * len(rows) / problem.n) / epochs
            victim, final = problem.routine.train(poisons.apply(problem.train), (problem.seed + 1 + done) % 2**31)
            cost += 1
            accuracy = problem.score(victim, final)["held_out_accuracy"]
            if accuracy < lowest:
                best, lowest = poisons, accuracy
        if progress is not None:
            progress("gradient cancelling", len(self.radii), len(self.radii))
        assert best is not None
        return Poisons(rows, best.images, cost=cost)

    def corrupt(self, learner: Learner, clean: TrainState, steer: Fields, radius: float) -> TrainState:
        """The target: ascent on the held-out loss, projected on the ball of `radius` |theta| around theta."""
        harm, bound = mean_loss(steer), radius * clean.params.norm()
        params = clean.params
        for _ in range(self.corruption_steps):
            leaf = params.detach().requires_grad_()
            with torch.enable_grad(), learner.evaluating(TrainState(leaf, (), clean.buffers)):
                (gradient,) = torch.autograd.grad(harm(learner), leaf)
            shift = params + 2 * bound / self.corruption_steps * gradient / gradient.norm() - clean.params
            params = clean.params + shift * (bound / shift.norm()).clamp(max=1.0)
        return TrainState(params.detach(), (), clean.buffers)

    def cancel(self, learner: Learner, target: TrainState, train: Fields, rows: Tensor) -> Poisons:
        """Adam on the pixels of the rows, projected to the range, on the squared gradient norm at the target."""
        n = len(train["y"])
        others = torch.ones(n, dtype=torch.bool)
        others[rows] = False
        clean_sum = torch.zeros_like(target.params)
        for chunk in others.nonzero().flatten().split(CHUNK):
            clean_sum += len(chunk) * self._gradient(learner, target, {k: v[chunk] for k, v in train.items()})
        pixels = train["x"][rows].clone().to(target.params).requires_grad_()
        optimizer = torch.optim.Adam([pixels], lr=self.rate)
        best, lowest = pixels.detach().clone(), float("inf")
        for _ in range(self.steps + 1):
            fields = {k: v[rows] for k, v in train.items()} | {"x": pixels}
            gradient = self._gradient(learner, target, fields, create_graph=True)
            residual = ((clean_sum + len(rows) * gradient) / n).square().sum()
            if float(residual.detach()) < lowest:
                best, lowest = pixels.detach().clone(), float(residual.detach())
            optimizer.zero_grad()
            residual.backward(inputs=[pixels])
            optimizer.step()
            if self.low is not None or self.high is not None:
                with torch.no_grad():
                    pixels.clamp_(self.low, self.high)
        return Poisons(rows, best.cpu())

    @staticmethod
    def _gradient(learner: Learner, state: TrainState, examples: Fields, create_graph: bool = False) -> Tensor:
        leaf = state.params.detach().requires_grad_()
        with torch.enable_grad(), learner.evaluating(TrainState(leaf, (), state.buffers)):
            loss = example_losses(examples)(learner).mean()
            (gradient,) = torch.autograd.grad(loss, leaf, create_graph=create_graph)
        return gradient

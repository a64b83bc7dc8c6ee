"""Which data should I have used? Metagradient descent on the weights, or the counts, of training examples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from metagradient.descent.loop import Loop, Measured
from metagradient.descent.problem import DescentProblem, Reading, Selection
from metagradient.descent.state import DescentState
from metagradient.descent.updates import Clipped, UpdateRule
from metagradient.descent.weights import Raw, WeightMap
from metagradient.errors import UserError
from metagradient.learners.learner import Learner
from metagradient.replay.metagradients import Metagradients
from metagradient.replay.objectives import mean_loss
from metagradient.streams import Library
from metagradient.training.metaparameters import CandidateWeights, DataWeights
from metagradient.training.model import Embedding
from metagradient.training.random import generator
from metagradient.training.run import Progress, train
from metagradient.training.sources import take
from metagradient.training.state import TrainState

_TANGENTS = 2 / 3
"""A forward pass with tangents, in training steps."""


@dataclass(frozen=True)
class _Selecting(Loop):
    """What both kinds of selection share."""

    def _start(self, n: int) -> Tensor:
        raise NotImplementedError

    def _weights(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x -> (weights or counts, kept)."""
        raise NotImplementedError

    def _gradient(self, problem: DescentProblem, x: Tensor, seed: int) -> tuple[Tensor, Metagradients, Learner]:
        raise NotImplementedError

    def _update(self, problem: DescentProblem, state: DescentState, gradient: Tensor) -> None:
        raise NotImplementedError

    def _train(self, problem: DescentProblem, x: Tensor, seed: int) -> tuple[Learner, TrainState]:
        raise NotImplementedError

    def run(
        self,
        problem: DescentProblem,
        *,
        on_metastep: Callable[[Reading], None] = lambda reading: None,
        progress: Progress | None = None,
        stop: int | None = None,
    ) -> Selection:
        """Descend, and choose the metastep with the lowest held-out loss; see `Loop.descend`."""

        def measure(state: DescentState, seed: int, differentiate: bool) -> Measured:
            gradient = None
            if differentiate:
                gradient, result, learner = self._gradient(problem, state.x, seed)
                final, objective, cost = result.state, float(result.objective), result.cost
            else:
                learner, final = self._train(problem, state.x, seed)
                with torch.no_grad(), learner.evaluating(final):
                    objective, cost = float(mean_loss(problem.steer)(learner)), 1.0
            values = {"objective": objective, **problem.score(learner, final)}
            return Measured(values, -values["held_out_loss"], gradient, cost)

        def told(metastep: int, values: dict[str, float], x: Tensor | None) -> None:
            weights, kept = (None, None) if x is None else self._weights(x)
            on_metastep(Reading(metastep, values, weights, kept))

        state = self.descend(
            self._start(problem.n),
            measure,
            lambda state, gradient: self._update(problem, state, gradient),
            seed=problem.seed,
            save_to=problem.save_to,
            resume_from=problem.resume_from,
            data=problem.data,
            on_metastep=told,
            progress=progress,
            stop=stop,
        )
        assert state.best_x is not None
        weights, kept = self._weights(state.best_x)
        return Selection(weights, kept, state.best_metastep, state.cost, counts=isinstance(self, CountSelection))


@dataclass(frozen=True)
class WeightSelection(_Selecting):
    """Descent on per-example loss weights w(x) that act at every step of training.

    Attributes:
        metasteps: updates of x.
        seeds_per_metastep: fresh inner seeds whose normalised gradients are averaged.
        weights: the map x -> w (Raw or Sigmoid).
        update: the rule (Clipped, Sign, Adam).
        replay_from: the fraction of the run before which the weights' effect is not differentiated (0: exact).
    """

    weights: WeightMap = Raw()
    update: UpdateRule = Clipped()
    replay_from: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.replay_from < 1:
            raise UserError(f"method.replay_from is a fraction of the run in [0, 1), not {self.replay_from}")

    def _start(self, n: int) -> Tensor:
        return self.weights.start(n)

    def _weights(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.weights.weights(x), self.weights.kept(x)

    def _gradient(self, problem: DescentProblem, x: Tensor, seed: int) -> tuple[Tensor, Metagradients, Learner]:
        leaf = x.clone().requires_grad_()
        weights = self.weights.weights(leaf)
        batches = problem.routine.batches(problem.train, seed)
        learner = problem.routine.learner(seed, len(batches))
        first = int(self.replay_from * len(batches))
        z = DataWeights(weights.detach(), differentiate_from=first)
        result = problem.fit(learner, batches, [z], mean_loss(problem.steer))
        (gradient,) = torch.autograd.grad(weights, leaf, result["weights"].to(weights))
        return gradient, result, learner

    def _train(self, problem: DescentProblem, x: Tensor, seed: int) -> tuple[Learner, TrainState]:
        return problem.routine.train(problem.train, seed, self.weights.weights(x))

    def _update(self, problem: DescentProblem, state: DescentState, gradient: Tensor) -> None:
        x, state.memory = self.update.update(
            state.x, gradient, state.memory, state.metastep, self.metasteps, state.scale
        )
        state.x = self.weights.project(x)


@dataclass(frozen=True)
class CountSelection(_Selecting):
    """Descent on integer counts: example i stands c_i times in the data set (arXiv 2503.13751).

    At step k alone the term sum_i z_i l_i over *all* candidates is added, with z = 0; the sign of d objective / d z_i
    says whether one more copy helps. c <- max(0, c - sign(g) m) with m ~ Bernoulli(probability). With `swap`, the
    budget stays fixed instead: on a random shard of the data the `swap` best counts rise by 1 and as many of the
    worst with c > 0 fall by 1.

    Attributes:
        surrogate: k as a fraction of the run.
        chunk: candidates per pass at step k, at most; of a contrastive loss the batch size is, and chunks are drawn.
        weighed: so many candidates, drawn anew in every run, are weighed and can move; None: all.
        most: no count rises above it; None: no bound.
    """

    probability: float = 0.2
    surrogate: float = 0.9
    swap: int | None = None
    shard: float = 0.5
    chunk: int = 1024
    weighed: int | None = None
    most: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("probability", "surrogate", "shard"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise UserError(f"method.{name} must lie in [0, 1], not {value}")
        for name in ("chunk", "swap", "weighed", "most"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"method.{name} must be at least 1, not {value}")

    def _start(self, n: int) -> Tensor:
        return torch.ones(n)

    def _weights(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x > 0

    def _gradient(self, problem: DescentProblem, x: Tensor, seed: int) -> tuple[Tensor, Metagradients, Learner]:
        batches = problem.routine.batches(problem.train, seed, counts=x.long())
        learner = problem.routine.learner(seed, len(batches))
        k = min(int(self.surrogate * len(batches)), len(batches) - 1)
        # Candidates that see each other are contrasted as in a step: with as many others, drawn anew for every run.
        tied, size = isinstance(learner, Embedding), batches.plan.shape[1]
        chunk = size if tied else min(self.chunk, learner.rows_at_once(problem.train))
        rows = torch.randperm(problem.n, generator=generator(seed, Library.WEIGHED))[: self.weighed].sort().values
        candidates = problem.train if self.weighed is None else take(problem.train, rows)
        z = CandidateWeights(
            torch.zeros(len(rows)), step=k, candidates=candidates, chunk=chunk, seed=seed if tied else None
        )
        result = problem.fit(learner, batches, [z], mean_loss(problem.steer))
        gradient = torch.zeros(problem.n).index_copy(0, rows, result["candidates"].float().cpu())
        passes = _TANGENTS * len(rows) / (size * len(batches))
        return gradient, replace(result, cost=result.cost + passes), learner

    def _train(self, problem: DescentProblem, x: Tensor, seed: int) -> tuple[Learner, TrainState]:
        batches = problem.routine.batches(problem.train, seed, counts=x.long())
        learner = problem.routine.learner(seed, len(batches))
        return learner, train(learner, batches)

    def _update(self, problem: DescentProblem, state: DescentState, gradient: Tensor) -> None:
        rng = generator(problem.seed, state.metastep, Library.COUNT_MASK)
        if self.swap is None:
            moved = torch.rand(problem.n, generator=rng) < self.probability * state.scale
            fallen = (state.x - gradient.sign() * moved).clamp(min=0, max=self.most)
            state.x = fallen if bool(fallen.any()) else state.x
            return
        shard = ((torch.rand(problem.n, generator=rng) < self.shard) & (gradient != 0)).nonzero().flatten()
        ranked = shard[gradient[shard].argsort()]  # best first
        raisable = ranked if self.most is None else ranked[state.x[ranked] < self.most]
        lowerable = ranked[state.x[ranked] > 0]
        pairs = min(self.swap, len(raisable) // 2, len(lowerable) // 2)
        raised, lowered = raisable[:pairs], lowerable[len(lowerable) - pairs :]
        state.x = state.x.clone()
        state.x[raised] += 1
        state.x[lowered] -= 1

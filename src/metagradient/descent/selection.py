"""Which data should I have used? Metagradient descent on the weights, or the counts, of training examples."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from metagradient.descent.problem import Reading, Selection, SelectionProblem
from metagradient.descent.state import DescentState
from metagradient.descent.updates import Clipped, UpdateRule
from metagradient.descent.weights import Raw, WeightMap
from metagradient.errors import UserError
from metagradient.replay.adjoint import NonFiniteCotangent
from metagradient.replay.metagradient import Metagradients
from metagradient.replay.objectives import mean_loss
from metagradient.training.learner import Learner
from metagradient.training.metaparameters import CandidateWeights, DataWeights
from metagradient.training.random import fold_in, generator
from metagradient.training.run import NonFiniteLoss, Progress, train
from metagradient.training.state import TrainState

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Descent:
    """What both kinds of selection share: the loop over metasteps, its rejections and its choice."""

    metasteps: int = 10
    seeds_per_metastep: int = 1
    patience: float = 0.5

    def __post_init__(self) -> None:
        if not self.patience > 0:
            raise UserError(f"method.patience must be > 0, not {self.patience}")
        if self.metasteps < 1 or self.seeds_per_metastep < 1:
            raise UserError(
                f"method.metasteps and method.seeds_per_metastep must be at least 1, not {self.metasteps} and "
                f"{self.seeds_per_metastep}"
            )

    def _start(self, n: int) -> Tensor:
        raise NotImplementedError

    def _weights(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x -> (weights or counts, kept)."""
        raise NotImplementedError

    def _gradient(self, problem: SelectionProblem, x: Tensor, seed: int) -> tuple[Tensor, Metagradients, Learner]:
        raise NotImplementedError

    def _update(self, problem: SelectionProblem, state: DescentState, gradient: Tensor) -> None:
        raise NotImplementedError

    def _train(self, problem: SelectionProblem, x: Tensor, seed: int) -> tuple[Learner, TrainState]:
        raise NotImplementedError

    def run(
        self,
        problem: SelectionProblem,
        *,
        on_metastep: Callable[[Reading], None] = lambda reading: None,
        progress: Progress | None = None,
        stop: int | None = None,
    ) -> Selection:
        """Descend, and choose the metastep with the lowest held-out loss.

        With `stop`, a metastep chosen before, go there and take it: how a descent is repeated on all trusted examples.

        A metastep whose run is not finite, or whose objective rises by more than `patience` (relative) above the last
        accepted one, is rejected: back to the last good x with half the step. Where there is none, NonFiniteLoss and
        NonFiniteCotangent get through.
        """
        path = None if problem.folder is None else problem.folder / "descent.safetensors"
        state = DescentState(self._start(problem.n))
        end = self.metasteps + 1 if stop is None else stop
        while state.metastep < end:
            last = state.metastep == self.metasteps
            values, gradient = self._measure(problem, state, last)
            weights, kept = self._weights(state.x)
            if values is not None:
                state.history.append(values)
                state.offer(-values["held_out_loss"])
                on_metastep(Reading(state.metastep, values, weights, kept))
            if not last:
                self._move(problem, state, values, gradient)
            state.metastep += 1
            if path is not None:
                state.save(path)
            if progress is not None:
                progress("metagradient descent", state.metastep, end)
        if stop is not None:
            state.best_x, state.best_metastep = state.x, stop
        assert state.best_x is not None
        weights, kept = self._weights(state.best_x)
        return Selection(weights, kept, state.best_metastep, state.cost, counts=isinstance(self, CountSelection))

    def _measure(
        self, problem: SelectionProblem, state: DescentState, last: bool
    ) -> tuple[dict[str, float] | None, Tensor | None]:
        """Objective and scores at x, averaged over fresh seeds, and the metagradient unless it is the last metastep."""
        gradients, readings = [], []
        for repeat in range(self.seeds_per_metastep):
            seed = fold_in(problem.seed, state.metastep, repeat) % 2**31
            try:
                if last:
                    learner, final = self._train(problem, state.x, seed)
                    with torch.no_grad(), learner.evaluating(final):
                        objective = float(mean_loss(problem.steer)(learner))
                    state.cost += 1
                else:
                    gradient, result, learner = self._gradient(problem, state.x, seed)
                    norm = gradient.norm()
                    gradients.append(gradient / norm if self.seeds_per_metastep > 1 and norm > 0 else gradient)
                    final, objective = result.state, float(result.objective)
                    state.cost += result.cost
            except (NonFiniteLoss, NonFiniteCotangent) as error:
                if state.accepted_x is None:  # nothing good to go back to
                    raise
                log.warning("metastep %d, seed %d: %s", state.metastep, seed, error)
                return None, None
            readings.append({"objective": objective, **problem.score(learner, final)})
        values = {key: sum(r[key] for r in readings) / len(readings) for key in readings[0]}
        return values, torch.stack(gradients).mean(0) if gradients else None

    def _move(
        self, problem: SelectionProblem, state: DescentState, values: dict[str, float] | None, gradient: Tensor | None
    ) -> None:
        """Update x, or go back to the last good x with half the step where this one is not finite or much worse."""
        limit = (1 + self.patience) * state.accepted_objective
        if values is None or gradient is None or values["objective"] > limit:
            state.scale /= 2
            log.warning("metastep %d is rejected: back to the last good weights, step size halved", state.metastep)
            assert state.accepted_x is not None
            state.x, state.memory = state.accepted_x.clone(), dict(state.accepted_memory)
            return
        state.accepted_x, state.accepted_objective = state.x.clone(), values["objective"]
        state.accepted_memory = dict(state.memory)
        self._update(problem, state, gradient)


@dataclass(frozen=True)
class WeightSelection(_Descent):
    """Descent on per-example loss weights w(x) that act at every step of training.

    metasteps: updates of x. seeds_per_metastep: fresh inner seeds whose normalised gradients are averaged.
    weights: the map x -> w (Raw or Sigmoid). update: the rule (Clipped, Sign, Adam).
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

    def _gradient(self, problem: SelectionProblem, x: Tensor, seed: int) -> tuple[Tensor, Metagradients, Learner]:
        leaf = x.clone().requires_grad_()
        weights = self.weights.weights(leaf)
        batches = problem.routine.batches(problem.train, seed)
        learner = problem.routine.learner(seed, len(batches))
        first = int(self.replay_from * len(batches))
        z = DataWeights(weights.detach(), differentiate_from=first)
        result = problem.fit(learner, batches, [z], mean_loss(problem.steer))
        (gradient,) = torch.autograd.grad(weights, leaf, result["weights"].to(weights))
        return gradient, result, learner

    def _train(self, problem: SelectionProblem, x: Tensor, seed: int) -> tuple[Learner, TrainState]:
        return problem.routine.train(problem.train, seed, self.weights.weights(x))

    def _update(self, problem: SelectionProblem, state: DescentState, gradient: Tensor) -> None:
        x, state.memory = self.update.update(
            state.x, gradient, state.memory, state.metastep, self.metasteps, state.scale
        )
        state.x = self.weights.project(x)


@dataclass(frozen=True)
class CountSelection(_Descent):
    """Descent on integer counts: example i stands c_i times in the data set (arXiv 2503.13751).

    At step k alone the term sum_i z_i l_i over *all* candidates is added, with z = 0; the sign of d objective / d z_i
    says whether one more copy helps. c <- max(0, c - sign(g) m) with m ~ Bernoulli(probability). With `swap`, the
    budget stays fixed instead: on a random shard of the data the `swap` best counts rise by 1 and as many of the
    worst with c > 0 fall by 1.

    surrogate: k as a fraction of the run. chunk: candidates per pass at step k.
    """

    probability: float = 0.2
    surrogate: float = 0.9
    swap: int | None = None
    shard: float = 0.5
    chunk: int = 1024

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("probability", "surrogate", "shard"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise UserError(f"method.{name} must lie in [0, 1], not {value}")
        if self.chunk < 1 or (self.swap is not None and self.swap < 1):
            raise UserError(f"method.chunk and method.swap must be at least 1, not {self.chunk} and {self.swap}")

    def _start(self, n: int) -> Tensor:
        return torch.ones(n)

    def _weights(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x > 0

    def _gradient(self, problem: SelectionProblem, x: Tensor, seed: int) -> tuple[Tensor, Metagradients, Learner]:
        batches = problem.routine.batches(problem.train, seed, counts=x.long())
        learner = problem.routine.learner(seed, len(batches))
        k = min(int(self.surrogate * len(batches)), len(batches) - 1)
        z = CandidateWeights(torch.zeros(problem.n), step=k, candidates=problem.train, chunk=self.chunk)
        result = problem.fit(learner, batches, [z], mean_loss(problem.steer))
        return result["candidates"].cpu(), result, learner

    def _train(self, problem: SelectionProblem, x: Tensor, seed: int) -> tuple[Learner, TrainState]:
        batches = problem.routine.batches(problem.train, seed, counts=x.long())
        learner = problem.routine.learner(seed, len(batches))
        return learner, train(learner, batches)

    def _update(self, problem: SelectionProblem, state: DescentState, gradient: Tensor) -> None:
        rng = generator(problem.seed, state.metastep, 99)
        if self.swap is None:
            moved = torch.rand(problem.n, generator=rng) < self.probability * state.scale
            fallen = (state.x - gradient.sign() * moved).clamp(min=0)
            state.x = fallen if bool(fallen.any()) else state.x
            return
        shard = (torch.rand(problem.n, generator=rng) < self.shard).nonzero().flatten()
        ranked = shard[gradient[shard].argsort()]  # best first
        lowerable = ranked[state.x[ranked] > 0]
        pairs = min(self.swap, len(ranked) // 2, len(lowerable) // 2)
        raised, lowered = ranked[:pairs], lowerable[len(lowerable) - pairs :]
        state.x = state.x.clone()
        state.x[raised] += 1
        state.x[lowered] -= 1

"""The loop that every metagradient descent shares: measure, choose, reject or move, save."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from metagradient.descent.state import DescentState
from metagradient.errors import UserError
from metagradient.replay.adjoint import NonFiniteCotangent
from metagradient.training.random import fold_in
from metagradient.training.run import NonFiniteLoss, Progress

log = logging.getLogger(__name__)

_DATA = ", data "  # stands between the settings and the digest of examples and routine in a state's identity


@dataclass(frozen=True)
class Measured:
    """One run at x, with one seed.

    Attributes:
        values: what it came to, by name; "objective" is what is descended.
        score: chooses among the metasteps: the highest is taken.
        gradient: d objective / d x, None where none was asked for.
        cost: training-run equivalents.
    """

    values: dict[str, float]
    score: float
    gradient: Tensor | None
    cost: float


Measure = Callable[[DescentState, int, bool], Measured]
"""(state, seed, whether to differentiate) -> the run at state.x; raises NonFiniteLoss or NonFiniteCotangent."""

Move = Callable[[DescentState, Tensor], None]
"""Update state.x (and state.memory) along a gradient; `state.scale` multiplies every step size."""

OnMetastep = Callable[[int, dict[str, float], Tensor | None], None]
"""(metastep, values, x), before x is updated; x is None for metasteps that an earlier, resumed run measured."""


@dataclass(frozen=True)
class Loop:
    """Settings of the loop.

    Attributes:
        metasteps: updates of x.
        seeds_per_metastep: fresh inner seeds whose gradients, each normalised, are averaged (with one, it stays as
            it is).
        patience: a metastep whose objective rises by more than this share above the last accepted is rejected.
        average_from: accepted iterates from this share of the metasteps on are averaged into `mean_x` (1: none).
    """

    metasteps: int = 10
    seeds_per_metastep: int = 1
    patience: float = 0.5
    average_from: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.average_from <= 1:
            raise UserError(f"method.average_from is a share of the metasteps in [0, 1], not {self.average_from}")
        if not self.patience > 0:
            raise UserError(f"method.patience must be > 0, not {self.patience}")
        if self.metasteps < 1 or self.seeds_per_metastep < 1:
            raise UserError(
                f"method.metasteps and method.seeds_per_metastep must be at least 1, not {self.metasteps} and "
                f"{self.seeds_per_metastep}"
            )

    def descend(
        self,
        start: Tensor,
        measure: Measure,
        move: Move,
        *,
        seed: int,
        save_to: Path | None = None,
        resume_from: Path | None = None,
        on_metastep: OnMetastep = lambda metastep, values, x: None,
        progress: Progress | None = None,
        stop: int | None = None,
        data: str = "",
    ) -> DescentState:
        """Descend from `start`; the state at the end, whose `best_x` is the metastep with the highest score.

        The last metastep is only measured, not differentiated. With `stop`, a metastep chosen before, go there and take
        it: how a descent is repeated on other examples.

        A metastep whose run is not finite, or whose objective is worse than the trust region allows, is rejected: back
        to the last good x with half the step (measured again, that one is accepted at its new objective, so that one
        lucky seed does not hold the descent). Where there is none, NonFiniteLoss and NonFiniteCotangent get through.

        The state is saved after each metastep to `save_to`; going on from `resume_from` ends in the same bits, which needs
        the same settings, seed, examples and routine (`data`, their digest).
        """
        state = DescentState(start, identity=f"{self!r}, seed {seed}, {list(start.shape)}{_DATA}{data}")
        if resume_from is not None:
            state = self._resumed(state, resume_from)
            for row in state.history:
                on_metastep(int(row["metastep"]), {k: v for k, v in row.items() if k != "metastep"}, None)
        end = self.metasteps + 1 if stop is None else stop
        while state.metastep < end:
            if progress is not None:
                progress("metagradient descent", state.metastep, end)
            last = state.metastep == self.metasteps
            values, gradient = self._measure(state, measure, seed, last)
            if values is not None:
                state.history.append({"metastep": state.metastep, **values})
                on_metastep(state.metastep, values, state.x)
            if not last:
                self._move(state, move, values, gradient)
            state.metastep += 1
            if save_to is not None:
                state.save(save_to)
            if progress is not None:
                progress("metagradient descent", state.metastep, end)
        if stop is not None:
            state.best_x, state.best_metastep = state.x, stop
        return state

    def _resumed(self, fresh: DescentState, path: Path) -> DescentState:
        state = DescentState.load(path)
        (settings, _, data), (ours, _, current) = (s.identity.partition(_DATA) for s in (state, fresh))
        if settings == ours and data != current:
            raise UserError(
                f"{path} was saved by a descent on other training or steering examples, or of another model or optimizer: bring back "
                "what it began with, or set resume=null"
            )
        if settings != ours:
            raise UserError(
                f"{path} was saved by another descent ({settings}), not by this one ({ours}): resume with "
                "the same settings and seed, or set resume=null"
            )
        log.info("going on after metastep %d of %s", state.metastep - 1, path)
        return state

    def _measure(
        self, state: DescentState, measure: Measure, seed: int, last: bool
    ) -> tuple[dict[str, float] | None, Tensor | None]:
        """Values at x, averaged over fresh seeds, and the metagradient unless it is the last metastep."""
        results = []
        for repeat in range(self.seeds_per_metastep):
            run_seed = fold_in(seed, state.metastep, repeat) % 2**31
            try:
                result = measure(state, run_seed, not last)
            except (NonFiniteLoss, NonFiniteCotangent) as error:
                if state.accepted_x is None:  # nothing good to go back to
                    raise
                log.warning("metastep %d, seed %d: %s", state.metastep, run_seed, error)
                state.cost += 1.0
                return None, None
            state.cost += result.cost
            results.append(result)
        state.offer(sum(r.score for r in results) / len(results))
        values = {key: sum(r.values[key] for r in results) / len(results) for key in results[0].values}
        gradients = [r.gradient for r in results if r.gradient is not None]
        return values, torch.stack(self._normalised(gradients)).mean(0) if gradients else None

    def _normalised(self, gradients: list[Tensor]) -> list[Tensor]:
        """Of several seeds, none drowns the others."""
        if self.seeds_per_metastep == 1:
            return gradients
        norms = [g.norm() for g in gradients]
        return [g / norm if norm > 0 else g for g, norm in zip(gradients, norms, strict=True)]

    def _move(self, state: DescentState, move: Move, values: dict[str, float] | None, gradient: Tensor | None) -> None:
        """Update x, or go back to the last good x with half the step where this one is not finite or much worse."""
        limit = state.accepted_objective + self.patience * abs(state.accepted_objective)
        back = state.accepted_x is not None and torch.equal(state.x, state.accepted_x)  # a rejection led here again
        if values is None or gradient is None or (values["objective"] > limit and not back):
            state.scale /= 2
            log.warning("metastep %d is rejected: back to the last good x, step size halved", state.metastep)
            assert state.accepted_x is not None
            state.x, state.memory = state.accepted_x.clone(), dict(state.accepted_memory)
            return
        if not bool(gradient.any()):
            log.warning("metastep %d: the metagradient is exactly 0, so nothing moves", state.metastep)
        state.accepted_x, state.accepted_objective = state.x.clone(), values["objective"]
        state.accepted_memory = dict(state.memory)
        if state.metastep >= self.average_from * self.metasteps and not back:
            state.average()
        move(state, gradient)

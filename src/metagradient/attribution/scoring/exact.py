"""Exact scores: the whole training run differentiated with respect to the data weights (MAGIC, arXiv 2504.16430)."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from metagradient.learners.learner import Learner
from metagradient.replay import example_losses, metagradient
from metagradient.replay.budget import available_bytes, measure, parse_bytes
from metagradient.replay.storage import Storage
from metagradient.training.batches import Batches, Fields
from metagradient.training.metaparameters import DataWeights
from metagradient.training.run import Progress, initial_state, run_mode

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class ExactScores:
    """score[i, q] = - d loss_q(theta_T) / d w_i, in nats: what removing example i does, to first order around w = at.

    Attributes:
        learner: the run, from the learner's own parameters.
        batches: see `learner`.
        at: the weight of every example in the replayed run. At 1, the trained model itself is differentiated; at
            the share of examples that will be kept, the middle between keeping and removing, at the same cost,
            which is far more accurate for large removals.
        checkpoints: as for `metagradient`; a third of the memory is for the queries' cotangents.
        memory: see `checkpoints`.
        storage: see `checkpoints`.
        at_once: queries in one replay; None: as many as fit.

    Every chunk of queries trains and replays once: `cost` counts trainings, a taped step with its pull as 3.
    """

    learner: Learner
    batches: Batches
    at: float = 1.0
    checkpoints: str = "auto"
    memory: str | int | None = None
    storage: str | Storage = "memory"
    at_once: int | None = None
    progress: Progress | None = None

    def columns(self, queries: Fields, start: int = 0) -> Iterator[tuple[Tensor, float]]:
        """(scores [n, q'], cost) of the queries from `start` on, one chunk of them a replay."""
        count = len(next(iter(queries.values())))
        weights = DataWeights(torch.full((self.batches.n_examples,), float(self.at)))
        width, memory = self._chunk(count, weights)
        for rows in torch.arange(start, count).split(width):
            chosen = {k: v[rows[0] : rows[-1] + 1] for k, v in queries.items()}
            result = metagradient(
                self.learner,
                self.batches,
                weights,
                example_losses(chosen),
                checkpoints=self.checkpoints,
                memory=memory,
                storage=self.storage,
                progress=self.progress,
            )
            yield -result["weights"].T.cpu(), result.cost
            if self.progress is not None:
                self.progress("exact scores", int(rows[-1]) + 1, count)

    def _chunk(self, count: int, weights: DataWeights) -> tuple[int, int]:
        """Queries in one replay, and the memory that is left for its checkpoints and tape."""
        with run_mode(self.learner, self.batches):
            state = initial_state(self.learner)
            footprint = measure(self.learner, self.batches, state, [weights], 0)
        budget = available_bytes(state.params.device) if self.memory is None else parse_bytes(self.memory)
        # In the pull of a step every query has a cotangent of the state, its successor, and one of the activations.
        each = 3 * footprint.state + footprint.taped_step
        width = min(count, max(1, budget // 3 // each)) if self.at_once is None else self.at_once
        log.info("exact scores: %d queries in chunks of %d, a replay each", count, width)
        return width, max(budget - width * each, budget // 3)


def exact_scores(run: ExactScores, queries: Fields) -> tuple[Tensor, float]:
    """All scores [n, q] in memory, and their cost in trainings."""
    parts = list(run.columns(queries))
    return torch.cat([part for part, _ in parts], dim=1), sum(cost for _, cost in parts)

"""Exact scores: the whole training run differentiated with respect to the data weights (MAGIC, arXiv 2504.16430)."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from metagradient.errors import UserError
from metagradient.learners.learner import Learner
from metagradient.replay import Objective, example_losses, mean_loss, metagradient
from metagradient.replay.budget import available_bytes, parse_bytes
from metagradient.replay.saving import folder_of
from metagradient.replay.storage import Storage
from metagradient.replay.trial import measure
from metagradient.training.batches import Batches, Fields
from metagradient.training.metaparameters import DataWeights, TokenWeights
from metagradient.training.parallel.ranks import by_itself
from metagradient.training.run import Progress, initial_state, run_mode
from metagradient.training.tokens import IGNORED

log = logging.getLogger(__name__)

Weights = DataWeights | TokenWeights


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
        save_to: where replays save their position, each in a folder of its own; None: nowhere.
        save_every: seconds between two positions.
        at_once: queries in one replay; None: as many as fit.

    Processes that share the learner (`Learner.group`) divide the queries, and share the replay of a single one.

    Every chunk of queries trains and replays once: `cost` counts trainings, a taped step with its pull as 3.
    """

    learner: Learner
    batches: Batches
    at: float = 1.0
    checkpoints: str = "auto"
    memory: str | int | None = None
    storage: str | Storage = "memory"
    save_to: Path | None = None
    save_every: float = 300.0
    at_once: int | None = None
    progress: Progress | None = None

    def columns(self, queries: Fields, start: int = 0) -> Iterator[tuple[Tensor, float]]:
        """(scores [n, q'], cost) of the queries from `start` on, one chunk of them a replay."""
        return self._columns(self._weights(), queries, start)

    def token_columns(self, queries: Fields, start: int = 0) -> Iterator[tuple[Tensor, float]]:
        """The same of single target tokens of the training examples, [sum L_i, q'], ragged as `TokenWeights`.

        Under `normalize="batch"` the scores of an example's tokens sum to its own.

        Raises:
            UserError: the learner reads no weights of tokens.
        """
        return self._columns(self.token_weights(), queries, start)

    def token_weights(self) -> TokenWeights:
        """The weight `at` of every target token of the training examples; `split` tells scores by example."""
        if not hasattr(self.learner, "position_weights"):
            raise UserError(
                f"token scores are of language models, which weight their tokens; {type(self.learner).__name__} has none"
            )
        ones = TokenWeights.ones(self.batches.examples, getattr(self.learner, "ignore_index", IGNORED))
        return replace(ones, value=ones.value * self.at)

    def _columns(self, weights: Weights, queries: Fields, start: int) -> Iterator[tuple[Tensor, float]]:
        count = len(next(iter(queries.values())))
        self._refuse_saving()
        width, memory = self._chunk(weights, count)
        for rows in torch.arange(start, count).split(width * self.learner.group.size):
            chosen = {k: v[rows[0] : rows[-1] + 1] for k, v in queries.items()}
            found, cost = self._divided(weights, chosen, memory)
            yield found.T, cost
            if self.progress is not None:
                self.progress("exact scores", int(rows[-1]) + 1, count)

    def _divided(self, weights: Weights, queries: Fields, memory: str | int | None) -> tuple[Tensor, float]:
        """`_replayed` of the queries' losses: of several processes each replays for some of them, where there are enough."""
        group, total = self.learner.group, len(next(iter(queries.values())))
        if group.alone or total < group.size:
            return self._replayed(weights, example_losses(queries), memory)
        start, stop = group.share(total)
        with by_itself(self.learner):
            own, cost = self._replayed(weights, example_losses({k: v[start:stop] for k, v in queries.items()}), memory)
        whole = own.new_zeros(total, *own.shape[1:], device=next(self.learner.parameters()).device)
        whole[start:stop] = own
        return group.add(whole).cpu(), sum(group.told(cost))

    def aggregate(self, queries: Fields) -> tuple[Tensor, float]:
        """The mean over queries with a label of their scores, [n], and its cost: one replay of their mean loss, however many they are."""
        self._refuse_saving()
        return self._replayed(self._weights(), mean_loss(queries), self.memory)

    def self_influence(self, start: int = 0) -> Iterator[tuple[Tensor, float]]:
        """(score[i, i] [b], cost) of the training examples from `start` on: each is a query, so n of them are replayed."""
        for block, cost in self.columns(self.batches.examples, start):
            own = torch.arange(start, start + block.shape[1])
            yield block[own, own - start], cost
            start += block.shape[1]

    def _replayed(self, weights: Weights, objective: Objective, memory: str | int | None) -> tuple[Tensor, float]:
        """- d objective / d w, [n] or [Q, n], and the cost of the replay."""
        result = metagradient(
            self.learner,
            self.batches,
            weights,
            objective,
            checkpoints=self.checkpoints,
            memory=memory,
            storage=self.storage,
            save_to=None
            if self.save_to is None
            else folder_of(self.save_to, self.learner, self.batches, [weights], objective),
            save_every=self.save_every,
            progress=self.progress,
        )
        return -result[weights.name].cpu(), result.cost

    def _refuse_saving(self) -> None:
        if self.save_to is not None and not self.learner.group.alone:
            raise UserError(f"a replay is saved in one process, not in {self.learner.group.size}: leave save_to out")

    def _weights(self) -> DataWeights:
        return DataWeights(torch.full((self.batches.n_examples,), float(self.at)))

    def _chunk(self, weights: Weights, count: int) -> tuple[int, int]:
        """Queries in one replay, and the memory that is left for its checkpoints and tape."""
        with by_itself(self.learner), run_mode(self.learner, self.batches):
            state = initial_state(self.learner)
            footprint = measure(self.learner, self.batches, state, [weights], 0)
        budget = available_bytes(state.params.device) if self.memory is None else parse_bytes(self.memory)
        # In the pull of a step every query has a cotangent of the state, its successor, and one of the activations.
        each = 3 * footprint.state + footprint.taped_step
        if not self.learner.group.alone:  # all processes take the same queries
            each, less = self.learner.group.largest([each, -budget])
            budget = -less
        width = min(count, max(1, budget // 3 // each)) if self.at_once is None else self.at_once
        log.info("exact scores: %d queries in chunks of %d, a replay each", count, width)
        return width, max(budget - width * each, budget // 3)


def exact_scores(run: ExactScores, queries: Fields) -> tuple[Tensor, float]:
    """All scores [n, q] in memory, and their cost in trainings."""
    parts = list(run.columns(queries))
    return torch.cat([part for part, _ in parts], dim=1), sum(cost for _, cost in parts)


def exact_token_scores(run: ExactScores, queries: Fields) -> tuple[Tensor, float]:
    """Scores of single target tokens [sum L_i, q], and their cost: see `ExactScores.token_columns`."""
    parts = list(run.token_columns(queries))
    return torch.cat([part for part, _ in parts], dim=1), sum(cost for _, cost in parts)

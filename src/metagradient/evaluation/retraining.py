"""Retraining from scratch: the ground truth of a choice of data."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from metagradient.evaluation.classification import accuracy
from metagradient.training.batches import Fields
from metagradient.training.routine import Routine
from metagradient.training.run import Progress


def take(examples: Fields, rows: Tensor) -> dict[str, Tensor]:
    """Some rows (a mask [n] or indices) of every field."""
    return {name: field[rows] for name, field in examples.items()}


def join(a: Fields, b: Fields) -> dict[str, Tensor]:
    """The rows of `a` followed by those of `b`."""
    return {name: torch.cat([field, b[name]]) for name, field in a.items()}


@dataclass
class Retraining:
    """Trains a routine from scratch on weighted examples, once for each fresh seed, and measures accuracies.

    seeds: of initialisation and order; none of them was used while the weights were sought.
    runs:  trainings so far, in units of the first one's steps.
    """

    routine: Routine
    seeds: Sequence[int]
    runs: float = field(default=0.0, init=False)

    def accuracies(
        self,
        examples: Fields,
        weights: Tensor | None,
        tests: dict[str, Fields],
        *,
        progress: Progress | None = None,
    ) -> dict[str, float]:
        """Mean accuracy on each test set of models trained on `examples` with loss weights [n] (None: all 1)."""
        results: dict[str, list[float]] = {name: [] for name in tests}
        for i, seed in enumerate(self.seeds):
            learner, state = self.routine.train(examples, seed, weights)
            self.runs += 1
            for name, test in tests.items():
                results[name].append(accuracy(learner, state, test))
            if progress is not None:
                progress("retraining", i + 1, len(self.seeds))
        return {name: statistics.fmean(values) for name, values in results.items()}

"""Retraining from scratch: the ground truth of a choice of data."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from metagradient.errors import UserError
from metagradient.evaluation.measures import MEASURES
from metagradient.learners.learner import Learner
from metagradient.learners.routine import Routine
from metagradient.training.batches import Fields
from metagradient.training.run import Progress
from metagradient.training.state import TrainState


@dataclass
class Retraining:
    """Trains a routine from scratch on weighted examples, once for each fresh seed, and measures the models.

    Attributes:
        seeds: of initialisation and order; none of them was used while the weights were sought.
        unit: steps of a training on all data; `runs` counts the trainings so far in this unit.
        progress: told about every training's steps.
        measure: what is measured of a model on a test set, higher being better: its accuracy (see `MEASURES`).
    """

    routine: Routine
    seeds: Sequence[int]
    unit: int = 1
    progress: Progress | None = None
    measure: Callable[[Learner, TrainState, Fields], float] = MEASURES["classes"]
    runs: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        if not self.seeds:
            raise UserError("retraining needs at least one seed: set retrainings=1 or more")

    def train(self, examples: Fields, seed: int, weights: Tensor | None = None) -> tuple[Learner, TrainState]:
        """One counted training from scratch, which several processes share."""
        self._count(examples, seed)
        return self.routine.train(examples, seed, weights, self.progress)

    def _count(self, examples: Fields, seed: int) -> None:
        self.runs += len(self.routine.batches(examples, seed)) / self.unit

    def accuracies(
        self,
        examples: Fields,
        weights: Tensor | None,
        tests: Mapping[str, Fields],
        keep: Callable[[Learner, TrainState], None] | None = None,
    ) -> dict[str, float]:
        """Mean accuracy (or another `measure`) on each test set of models trained on `examples` with loss weights [n] (None: all 1).

        `keep` is handed the first seed's model.
        """

        def judge(learner: Learner, state: TrainState) -> dict[str, float]:
            return {name: self.measure(learner, state, test) for name, test in tests.items()}

        found = self.each(examples, weights, judge, keep)
        return {name: statistics.fmean(values) for name, values in found.items()}

    def each(
        self,
        examples: Fields,
        weights: Tensor | None,
        judge: Callable[[Learner, TrainState], dict[str, float]],
        keep: Callable[[Learner, TrainState], None] | None = None,
    ) -> dict[str, list[float]]:
        """What `judge` says of the model of each seed, by name; otherwise as `accuracies`.

        Of several processes each trains and judges the models of some seeds by itself; the first one has the first seed's.
        """

        def judged(i: int) -> dict[str, float]:
            learner, state = self.routine.train(examples, self.seeds[i], weights, self.progress, alone=True)
            if keep is not None and i == 0:
                keep(learner, state)
            return judge(learner, state)

        found = self.routine.group.divided(len(self.seeds), judged)
        for seed in self.seeds:
            self._count(examples, seed)
        return {name: [values[name] for values in found] for name in found[0]}

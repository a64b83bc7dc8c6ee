"""Victims: models trained from scratch on a data set that somebody may have tampered with."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from metagradient.distributed import SOLO
from metagradient.errors import UserError
from metagradient.evaluation.classification import accuracy
from metagradient.intervals import deviation
from metagradient.learners.routine import Routine
from metagradient.training.batches import Fields
from metagradient.training.run import Progress, train
from metagradient.training.state import TrainState


@dataclass(frozen=True)
class Victims:
    """Test accuracies of models trained with fresh seeds, in the seeds' order.

    Attributes:
        final: at the end of training.
        peak: the highest of those at the ends of epochs, as if the victim had stopped at the best moment for the test
            set: the attacker's claim should survive it.
    """

    final: tuple[float, ...]
    peak: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.final)

    @property
    def sd(self) -> float:
        return deviation(self.final)

    @property
    def peak_mean(self) -> float:
        return statistics.fmean(self.peak)

    @property
    def peak_sd(self) -> float:
        return deviation(self.peak)

    def drops_from(self, clean: Victims) -> list[float]:
        """Accuracy lost against models of the same seeds trained on clean data, one for each seed."""
        return [a - b for a, b in zip(clean.final, self.final, strict=True)]


def train_victims(
    routine: Routine, examples: Fields, test: Fields, seeds: Sequence[int], progress: Progress | None = None
) -> Victims:
    """One training from scratch for each seed of initialisation and order.

    The test accuracy is read after every epoch, or at 20 points of the run where epochs are many. Of several processes each
    trains some of the victims by itself.
    """
    if not seeds:
        raise UserError("victims need at least one seed: set victims=5")

    def one(i: int) -> tuple[float, float]:
        """The accuracy of a model at its end, and the highest."""
        batches = routine.batches(examples, seeds[i])
        learner = routine.learner(seeds[i], len(batches))
        learner.group = SOLO
        per_epoch = max(1, -(-batches.n_examples // batches.plan.shape[1]))
        every = max(per_epoch, -(-len(batches) // 20))
        state: TrainState | None = None
        readings = []
        for start in range(0, len(batches), every):
            state = train(learner, batches, state=state, start=start, stop=min(start + every, len(batches)))
            readings.append(accuracy(learner, state, test))
        if progress is not None:
            progress("victims", i + 1, len(seeds))
        return readings[-1], max(readings)

    final, peak = zip(*routine.group.divided(len(seeds), one), strict=True)
    return Victims(final, peak)

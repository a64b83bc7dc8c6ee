"""Models that have read something before they are tuned."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

import metagradient as mg
from metagradient.training.batches import Fields
from metagradient.training.run import Progress


def pretrained(
    routine: mg.Routine, corpus: Fields, steps: int, learning_rate: float, seed: int, progress: Progress | None = None
) -> mg.Routine:
    """The routine of runs that all start from one model, which is trained here on a corpus by the same optimizer.

    Args:
        routine: of the runs; its batch size is that of the pretraining as well.
        corpus: fields of the texts.
        steps: of the pretraining.
        learning_rate: the peak of its one cycle.
        seed: of its initialisation and order.
        progress: of its steps.
    """
    reading = replace(routine, schedule=lambda total: mg.OneCycle(learning_rate, total), epochs=None, steps=steps)
    learner, state = reading.train(corpus, seed, progress=progress)
    weights = {name: value.clone() for name, value in learner.adopt(state).state_dict().items()}
    return replace(routine, make_learner=_Started(routine.make_learner, weights))


@dataclass(frozen=True, eq=False)
class _Started:
    """Learners that start from given weights, by name."""

    make_learner: Callable[[mg.Schedule], mg.Learner]
    weights: Mapping[str, Tensor]

    def __call__(self, schedule: mg.Schedule) -> mg.Learner:
        learner = self.make_learner(schedule)
        learner.load_state_dict(dict(self.weights))
        return learner

"""A training routine: everything that decides a run but the data and the seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from metagradient.distributed import SOLO, Group
from metagradient.errors import UserError
from metagradient.learners.learner import Learner
from metagradient.streams import Library
from metagradient.training.batches import Augment, Batches, Fields
from metagradient.training.compiled import Graphs
from metagradient.training.metaparameters import DataWeights, Metaparameter
from metagradient.training.plans import count_plan, epoch_plan, full_batch_plan
from metagradient.training.random import fold_in
from metagradient.training.run import Progress, train
from metagradient.training.state import TrainState
from metagradient.training.updates.schedules import Constant, Schedule


@dataclass(frozen=True)
class Routine:
    """How a model is trained, for the many times that it is trained.

    Attributes:
        make_learner: schedule -> a fresh `Learner`; called with torch's global generator seeded and forked.
        schedule: number of steps T -> learning-rate schedule of the run.
        batch_size: None for the full batch.
        epochs: passes over the data; or `steps`, their number directly (epochs are then repeated as needed).
        group: the processes that share its runs.
    """

    make_learner: Callable[[Schedule], Learner]
    schedule: Callable[[int], Schedule] = lambda steps: Constant(0.1)
    batch_size: int | None = None
    epochs: int | None = None
    steps: int | None = None
    augment: Augment | None = None
    group: Group = SOLO
    _graphs: Graphs = field(default_factory=Graphs, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.steps is None):
            raise UserError(
                f"give learner.epochs or learner.steps, one of the two, not epochs={self.epochs} and steps={self.steps}"
            )

    def learner(self, seed: int, steps: int) -> Learner:
        """A freshly initialised learner for a run of `steps` steps; the caller's random state is left alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(fold_in(seed, Library.INITIALISATION))
            learner = self.make_learner(self.schedule(steps))
        if not self.group.alone:
            learner.group = self.group
        if learner.graphs is not None:
            learner.graphs = self._graphs  # they are built alike: compiled once for all of them
        return learner

    def batches(self, examples: Fields, seed: int, counts: Tensor | None = None) -> Batches:
        """The run's batches: its order is drawn from `seed`; with `counts`, example i stands counts[i] times."""
        size = len(next(iter(examples.values()))) if counts is None else int(counts.sum())
        if size == 0:
            raise UserError("there are no rows to train on: none was chosen, or kept")
        per_epoch = 1 if self.batch_size is None else -(-size // self.batch_size)
        epochs = self.epochs if self.epochs is not None else -(-self._steps // per_epoch)
        if counts is not None:
            plan = count_plan(counts, self.batch_size or max(size, 1), epochs, seed)
        elif self.batch_size is None:
            plan = full_batch_plan(size, epochs)
        else:
            plan = epoch_plan(size, self.batch_size, epochs, seed)
        if self.steps is not None:
            plan = plan[: self.steps]
        return Batches(examples, plan, seed, self.augment)

    @property
    def _steps(self) -> int:
        assert self.steps is not None
        return self.steps

    def train(
        self,
        examples: Fields,
        seed: int,
        weights: Tensor | None = None,
        progress: Progress | None = None,
        *,
        alone: bool = False,
    ) -> tuple[Learner, TrainState]:
        """One training from scratch without a Trainer; `weights` [n] multiply the losses. `alone`: by this process only."""
        batches = self.batches(examples, seed)
        learner = self.learner(seed, len(batches))
        learner.group = SOLO if alone else learner.group
        z: Sequence[Metaparameter] = () if weights is None else (DataWeights(weights),)
        return learner, train(learner, batches, z, progress=progress)

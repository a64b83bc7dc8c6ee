"""What a descent is given; what a data selection reads on its way, and what it finds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from metagradient.descent.state import DescentState
from metagradient.files import digest_of, named_tensors
from metagradient.learners.fingerprint import constants, described
from metagradient.learners.learner import Learner
from metagradient.learners.routine import Routine
from metagradient.replay.adjoint import Objective
from metagradient.replay.metagradients import Metagradients
from metagradient.training.batches import Batches, Fields
from metagradient.training.metaparameters import Metaparameter
from metagradient.training.run import initial_state
from metagradient.training.sources import in_parts, take
from metagradient.training.state import TrainState

STATE = "descent.safetensors"

Fit = Callable[[Learner, Batches, Sequence[Metaparameter], Objective], Metagradients]
"""Train and replay: `Trainer(callbacks=[Metagradient(...)]).fit(...)`, or `metagradient(...)` itself."""

Score = Callable[[Learner, TrainState], dict[str, float]]
"""What is measured on held-out data at each metastep; the entry "held_out_loss" chooses among the metasteps."""


@dataclass(frozen=True)
class DescentProblem:
    """What a descent works on: the data, how models are trained on them, and what is measured.

    Attributes:
        train: fields of the n training examples.
        steer: the examples whose mean loss is descended (or ascended).
        score: measures held-out data at each metastep (see `Score`).
        routine: how models are trained.
        fit: how a run is trained and replayed.
        seed: of the descent; each of its runs has a seed of its own.
        folder: where the descent's state is saved after each metastep; None: nowhere.
        resume: the folder of a descent that was cut short, to go on from.
    """

    train: Fields
    steer: Fields
    score: Score
    routine: Routine
    fit: Fit
    seed: int = 0
    folder: Path | None = None
    resume: Path | None = None

    @property
    def save_to(self) -> Path | None:
        """The file of the descent's state."""
        return None if self.folder is None else self.folder / STATE

    @property
    def resume_from(self) -> Path | None:
        """The file of the state to go on from; None where the earlier descent was cut short before it had one."""
        path = None if self.resume is None else self.resume / STATE
        return path if path is not None and DescentState.saved_at(path) else None

    @property
    def data(self) -> str:
        """The digest of the training and the steering examples and of the routine; "" where no state is saved or read, which
        alone need it."""
        if self.save_to is None and self.resume_from is None:
            return ""
        batches = self.routine.batches(self.train, 0)
        learner = self.routine.learner(0, len(batches))
        words, start = "\n".join(described(learner, batches)), initial_state(learner)
        own = chain(constants(learner).items(), zip(start.names(), start.tensors(), strict=True))
        tensors = chain(in_parts(self.train), in_parts(self.steer), own)
        return digest_of(chain([words], named_tensors(tensors)))

    @property
    def n(self) -> int:
        return len(next(iter(self.train.values())))


@dataclass(frozen=True)
class Reading:
    """One metastep as it was measured, before its update: `values` holds the objective and the scores.

    Attributes:
        weights: None for metasteps that an earlier, resumed run measured.
        kept: see `weights`.
    """

    metastep: int
    values: dict[str, float]
    weights: Tensor | None
    kept: Tensor | None


@dataclass(frozen=True)
class Selection:
    """The outcome: weights (or counts) [n] and kept [n] of the chosen metastep; cost in training-run equivalents."""

    weights: Tensor
    kept: Tensor
    metastep: int
    cost: float
    counts: bool = False

    @property
    def unit(self) -> str:
        """What `weights` holds: weights or counts."""
        return "counts" if self.counts else "weights"

    def apply(self, examples: Fields) -> tuple[Fields, Tensor | None]:
        """The chosen training data: (examples, loss weights), or each example as often as its count."""
        if not self.counts:
            return examples, self.weights
        rows = torch.arange(len(self.weights)).repeat_interleave(self.weights.long())
        return take(examples, rows), None

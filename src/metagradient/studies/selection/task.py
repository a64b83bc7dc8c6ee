"""What a selection needs to know of its data: what steers, what judges, and which other choices of data compete."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

import metagradient as mg
from metagradient.descent import Reading, Selection
from metagradient.evaluation import Retraining, take
from metagradient.reporting import Progress, Record
from metagradient.streams import Selection as Streams
from metagradient.studies import setup
from metagradient.training.batches import Fields
from metagradient.training.random import generator


@dataclass(frozen=True, eq=False)
class Choice:
    """Data to train on.

    Attributes:
        label: what it is called in tables.
        examples: fields of the training examples.
        weights: of their losses; None: all 1.
        kept: which of the pool's rows it holds, bool [n]; None where that says nothing.
        cost: trainings that finding it took.
    """

    label: str
    examples: Fields
    weights: Tensor | None = None
    kept: Tensor | None = None
    cost: float = 0.0


@dataclass(frozen=True, eq=False)
class Search:
    """What other choices of data are found with.

    Attributes:
        cfg: the configuration.
        seed: of the run.
        tuner: trains and measures models, with seeds of its own, where a choice is tuned on validation data.
        progress: of the run.
        chosen: what the descent chose, whose size others may have to match.
    """

    cfg: DictConfig
    seed: int
    tuner: Retraining
    progress: Progress
    chosen: Selection


@dataclass(eq=False)
class Task(ABC):
    """A data set as `selection` sees it. Keys of measures are those of `metrics.json`, without `result/`.

    Attributes:
        cfg: the configuration.
        splits: the data set.
        routine: how models are trained.
        train: the pool [n].
        validation: trusted examples, of which `steer` move the descent and `held_out` choose the metastep.
    """

    cfg: DictConfig
    splits: Any
    routine: mg.Routine
    train: Fields
    validation: Fields
    steer: Fields = field(init=False)
    held_out: Fields = field(init=False)

    def __post_init__(self) -> None:
        n = len(next(iter(self.validation.values())))
        order = torch.randperm(n, generator=generator(self.cfg.seed, Streams.HELD_OUT))
        held = setup.share(self.cfg.held_out, n, "held_out")
        self.rows_held_out = order[:held]
        self.held_out, self.steer = take(self.validation, order[:held]), take(self.validation, order[held:])

    def prepare(self, progress: Progress) -> float:
        """Train what must be there before anything else; its cost in training steps."""
        return 0.0

    @property
    @abstractmethod
    def headline(self) -> str:
        """The measure of the test that the answer is about."""

    @abstractmethod
    def score(self, learner: mg.Learner, state: mg.TrainState) -> dict[str, float]:
        """What is read at each metastep: `held_out_loss`, which chooses among them, and others."""

    @abstractmethod
    def judged(self, learner: mg.Learner, state: mg.TrainState) -> dict[str, float]:
        """The measures of a model on the test rows."""

    @abstractmethod
    def worth(self, learner: mg.Learner, state: mg.TrainState, examples: Fields) -> float:
        """How well a model does on examples, by which a filter is tuned: higher is better."""

    @abstractmethod
    def rivals(self, search: Search) -> dict[str, Choice]:
        """Other choices of data, by what is appended to their measures' names."""

    def found(self, kept: Tensor) -> dict[str, float]:
        """How well kept rows [n] are those that are known to be right; empty where nothing is known."""
        return {}

    def chosen(self, selection: Selection) -> dict[str, Choice]:
        """What the descent chose, "" above all, and what follows from it."""
        examples, weights = selection.apply(self.train)
        kept = take(self.train, selection.kept)
        return {
            "": Choice(f"metagradient: learned {selection.unit}", examples, weights, selection.kept),
            "kept_only": Choice("metagradient: kept rows", kept, None, selection.kept),
        }

    @abstractmethod
    def leave(self, record: Record, selection: Selection) -> None:
        """selection.csv, and the chosen rows of a file of the user's."""

    @abstractmethod
    def draw(
        self, record: Record, selection: Selection, readings: Sequence[Reading], references: Mapping[str, float]
    ) -> None:
        """The figures and report.html; `references` are values of the headline to stand beside the metasteps."""

    @abstractmethod
    def answer(self, results: Mapping[str, float], selection: Selection, cost: float) -> str:
        """The sentence at the end: of the headline's mean by choice."""

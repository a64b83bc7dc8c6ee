"""Selection among examples with targets: the validation rows are trusted, wrong labels may be known."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from omegaconf import DictConfig
from torch import Tensor
from torchmetrics.functional.classification import binary_f1_score

import metagradient as mg
from metagradient.data import Splits
from metagradient.descent import Reading, Selection
from metagradient.evaluation import MEASURES, filter_by_loss, join, mean_cross_entropy, take
from metagradient.evaluation.measures import Measure
from metagradient.reporting import Record
from metagradient.streams import Selection as Streams
from metagradient.studies import routines, setup
from metagradient.studies.selection.looking import draw, gain, leave
from metagradient.studies.selection.task import Choice, Search, Task
from metagradient.training.batches import Fields
from metagradient.training.random import fold_in

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Labelled(Task):
    """Classes, numbers or several labels."""

    splits: Splits

    @property
    def measure(self) -> Measure:
        return MEASURES[self.splits.task]

    @property
    def headline(self) -> str:
        return f"test_{self.measure.name}"

    def score(self, learner: mg.Learner, state: mg.TrainState) -> dict[str, float]:
        return {
            "held_out_loss": mean_cross_entropy(learner, state, self.held_out),
            f"held_out_{self.measure.name}": self.measure(learner, state, self.held_out),
        }

    def judged(self, learner: mg.Learner, state: mg.TrainState) -> dict[str, float]:
        tests = {"": self.splits.test, **{f"_{name}": test for name, test in self.splits.extra_tests.items()}}
        return {f"{self.headline}{name}": self.measure(learner, state, test) for name, test in tests.items()}

    def worth(self, learner: mg.Learner, state: mg.TrainState, examples: Fields) -> float:
        return self.measure(learner, state, examples)

    def found(self, kept: Tensor) -> dict[str, float]:
        """F1 for both readings of clean: the label is correct; the row was not redrawn."""
        truth = self.splits.truth
        clean = {} if truth is None else {"f1_clean": ~truth.wrong, "f1_not_redrawn": ~truth.redrawn}
        return {name: float(binary_f1_score(kept.int(), mask.int())) for name, mask in clean.items()}

    def rivals(self, search: Search) -> dict[str, Choice]:
        by_loss, dropped = filter_by_loss(
            search.tuner,
            self.train,
            self.validation,
            search.cfg.filter_fractions,
            fold_in(search.seed, Streams.FILTER),
            search.progress.callback("filter"),
        )
        truth = self.splits.truth
        correct = None if truth is None else ~truth.wrong
        rivals = {
            "all_data": Choice("all data", self.train),
            "oracle": None
            if correct is None or not correct.any()
            else Choice("oracle: correct labels only", take(self.train, correct)),
            "validation_only": Choice("validation only", self.validation),
            "loss_filter": Choice(
                f"high-loss filter, {dropped:.0%} dropped", take(self.train, by_loss), None, by_loss, search.tuner.runs
            ),
        }
        return {key: choice for key, choice in rivals.items() if choice is not None}

    def chosen(self, selection: Selection) -> dict[str, Choice]:
        own = super().chosen(selection)
        learned, kept = own[""], own["kept_only"]
        more = torch.ones(len(next(iter(self.validation.values()))))
        weights = None if learned.weights is None else torch.cat([learned.weights, more])
        return own | {
            "with_validation": Choice(
                "metagradient: kept rows + validation", join(kept.examples, self.validation), None, kept.kept
            ),
            "weights_with_validation": Choice(
                f"metagradient: {selection.unit} + validation",
                join(learned.examples, self.validation),
                weights,
                kept.kept,
            ),
        }

    def leave(self, record: Record, selection: Selection) -> None:
        leave(record, self.splits, selection)

    def draw(
        self, record: Record, selection: Selection, readings: Sequence[Reading], references: Mapping[str, float]
    ) -> None:
        draw(record, self.splits, selection, readings, self.measure.title, self.measure.name, references)

    def answer(self, results: Mapping[str, float], selection: Selection, cost: float) -> str:
        learned, everything = results[""], results["all_data"]
        return (
            f"Trained on the learned {selection.unit} the test {self.measure.title} is {learned:.3f}, on all data {everything:.3f}, "
            f"on the validation rows alone {results['validation_only']:.3f}; the descent cost {cost:.0f} trainings."
            f"{gain(learned, results['kept_only'], everything)}"
        )


def labelled(cfg: DictConfig, splits: Splits) -> Labelled:
    """The task of a data set with targets."""
    splits = setup.classification(cfg, splits=splits)
    if splits.source and cfg.data.get("split") is None:
        log.info(
            "the validation rows decide which training rows are wanted, so they must be right; a column of data.split=COLUMN, or a source "
            "that is divided already, says which they are"
        )
    routine = routines.classifier_routine(cfg, splits)
    return Labelled(cfg, splits, routine, splits.train, splits.validation)

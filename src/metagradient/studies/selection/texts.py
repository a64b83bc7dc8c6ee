"""Selection among texts: the pool is what a language model is tuned on, the target what it should get better at."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from omegaconf import DictConfig
from torch import Tensor
from torchmetrics.functional.classification import binary_f1_score

import metagradient as mg
from metagradient.data import TextSplits
from metagradient.descent import Reading, Selection
from metagradient.errors import UserError
from metagradient.evaluation import choice_accuracy, filter_by_loss, mean_cross_entropy, take
from metagradient.reporting import Progress, Record
from metagradient.streams import Selection as Streams
from metagradient.studies import routines
from metagradient.studies.selection.influence import (
    best_share,
    influence_scores,
    less_scores,
    random_rows,
    rival,
    trained_run,
)
from metagradient.studies.selection.looking import draw, leave
from metagradient.studies.selection.pretraining import pretrained
from metagradient.studies.selection.task import Choice, Search, Task
from metagradient.training.batches import Fields
from metagradient.training.random import fold_in, generator

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Texts(Task):
    """The validation and test rows are of the target task."""

    splits: TextSplits

    def __post_init__(self) -> None:
        super().__post_init__()
        options = self.splits.choices.get("validation")
        self.options = None if options is None else _of_questions(options, self.rows_held_out)

    def prepare(self, progress: Progress) -> float:
        settings, corpus = self.cfg.pretraining, self.splits.corpus
        if settings is None:
            return 0.0
        if corpus is None:
            raise UserError(f"data={self.splits.name} has no corpus to pretrain on: set pretraining=null")
        seed = fold_in(self.cfg.seed, Streams.PRETRAINING)
        self.routine = pretrained(
            self.routine, corpus, settings.steps, settings.learning_rate, seed, progress.callback("pretraining")
        )
        return float(settings.steps)

    @property
    def headline(self) -> str:
        return "target_loss"

    def score(self, learner: mg.Learner, state: mg.TrainState) -> dict[str, float]:
        return _measures(learner, state, self.held_out, self.options, "held_out")

    def judged(self, learner: mg.Learner, state: mg.TrainState) -> dict[str, float]:
        return _measures(learner, state, self.splits.test, self.splits.choices.get("test"), "target")

    def worth(self, learner: mg.Learner, state: mg.TrainState, examples: Fields) -> float:
        return -mean_cross_entropy(learner, state, examples)

    def found(self, kept: Tensor) -> dict[str, float]:
        """F1 of the kept rows against those whose response is right."""
        truth = self.splits.truth
        return {} if truth is None else {"f1_clean": float(binary_f1_score(kept.int(), (~truth.wrong).int()))}

    def rivals(self, search: Search) -> dict[str, Choice]:
        s, pool, tuned = search.cfg.rivals, self.train, search.tuner
        n = len(self.splits.sources)
        rng = generator(search.seed, Streams.RANDOM)
        kept = random_rows(n, int(search.chosen.kept.sum()), rng)
        found = {
            "all_data": Choice("all data", pool),
            "random": Choice("random rows, as many", take(pool, kept), None, kept),
            "target": Choice("the target's own rows", self.validation),
        }
        run = trained_run(search, self.routine, pool, fold_in(search.seed, Streams.FILTER))
        scorers = {"less": ("LESS", less_scores)} if _adam(run.learner) else {}
        if s.influence is not None:
            scorers["influence"] = (f"influence {s.influence}", influence_scores)
        for key, (label, scorer) in scorers.items():
            scores, cost = scorer(search, run, self.steer)
            before = tuned.runs
            chosen, share = best_share(search, pool, self.held_out, scores, s.shares)
            found[key] = rival(label, share, pool, chosen, cost + tuned.runs - before)
        before = tuned.runs
        by_loss, dropped = filter_by_loss(
            tuned,
            pool,
            self.held_out,
            search.cfg.filter_fractions,
            fold_in(search.seed, Streams.FILTER),
            search.progress.callback("filter"),
        )
        label = f"high-loss filter, {dropped:.0%} dropped"
        found["loss_filter"] = Choice(label, take(pool, by_loss), None, by_loss, tuned.runs - before)
        if self.splits.truth is not None:
            right = ~self.splits.truth.wrong
            found["oracle"] = Choice("oracle: right responses only", take(pool, right), None, right)
        return found

    def leave(self, record: Record, selection: Selection) -> None:
        leave(record, self.splits, selection)
        if len(self.splits.source_names) > 1:
            record.table("kept_by_source", ["source", "rows", "kept", "mean weight"], self._by_source(selection))

    def _by_source(self, selection: Selection) -> list[list[object]]:
        rows: list[list[object]] = []
        for number, name in enumerate(self.splits.source_names):
            own = self.splits.sources == number
            if bool(own.any()):
                kept = float(selection.kept[own].float().mean())
                rows.append([name, int(own.sum()), kept, float(selection.weights[own].mean())])
        return rows

    def draw(
        self, record: Record, selection: Selection, readings: Sequence[Reading], references: Mapping[str, float]
    ) -> None:
        draw(record, self.splits, selection, readings, "loss", "loss", references)

    def answer(self, results: Mapping[str, float], selection: Selection, cost: float) -> str:
        names = {"all_data": "all data", "random": "random rows", "less": "LESS", "influence": "influence"}
        others = ", ".join(f"on {name} {results[key]:.3f}" for key, name in names.items() if key in results)
        return (
            f"Tuned on the learned {selection.unit} the target's loss is {results['']:.3f} nats a token, {others}; the descent cost "
            f"{cost:.0f} trainings."
        )


def _measures(
    learner: mg.Learner, state: mg.TrainState, rows: Fields, options: Fields | None, name: str
) -> dict[str, float]:
    found = {f"{name}_loss": mean_cross_entropy(learner, state, rows)}
    if options is not None:
        found[f"{name}_accuracy"] = choice_accuracy(learner, state, options)
    return found


def _of_questions(options: Fields, questions: Tensor) -> dict[str, Tensor]:
    """The options of some questions, given by their places in the split."""
    names = options["question"].unique()  # the split's rows are its questions, in their order
    return take(options, torch.isin(options["question"], names[questions]))


def texts(cfg: DictConfig, splits: TextSplits) -> Texts:
    """The task of a pool of texts."""
    routine = routines.language_routine(cfg, splits)
    learner = routine.learner(cfg.seed, 1)
    learner.configure_for_steps(1)
    if not _adam(learner):
        log.info(
            "LESS reads Adam's moments, so it is not among what the descent is compared with: learner=adam has them"
        )
    return Texts(cfg, splits, routine, dict(splits.train), dict(splits.validation))


def _adam(learner: mg.Learner) -> bool:
    return isinstance(learner.update.optimizer, mg.Adam)

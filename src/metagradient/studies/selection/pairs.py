"""Selection among pairs of images and texts: the model is for a target, often a style that the pool has none of."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from omegaconf import DictConfig
from torch import Tensor
from torchmetrics.functional.classification import binary_f1_score

import metagradient as mg
from metagradient.data import PairSplits
from metagradient.descent import Reading, Selection
from metagradient.evaluation import Retrieval, retrieval, take
from metagradient.reporting import Record
from metagradient.streams import Selection as Streams
from metagradient.studies import routines
from metagradient.studies.selection.filters import best_filter, influence_filter, pool_model
from metagradient.studies.selection.influence import random_rows
from metagradient.studies.selection.looking import gain
from metagradient.studies.selection.pair_looking import draw_pairs, leave_pairs
from metagradient.studies.selection.task import Choice, Search, Task
from metagradient.training.batches import Fields
from metagradient.training.random import fold_in, generator

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Pairs(Task):
    """Judged zero-shot: the right text of an image among others, of the target's pairs."""

    splits: PairSplits
    filters: list[list[object]] = field(default_factory=list, init=False)

    @property
    def headline(self) -> str:
        return "test_accuracy"

    def score(self, learner: mg.Learner, state: mg.TrainState) -> dict[str, float]:
        """`held_out_loss` is the retrieval's, among as many as its accuracy, which is too coarse to choose by."""
        found = self._retrieval(learner, state, self.held_out)
        return {"held_out_loss": found.loss, "held_out_accuracy": found.text}

    def judged(self, learner: mg.Learner, state: mg.TrainState) -> dict[str, float]:
        found = self._retrieval(learner, state, self.splits.test)
        return {"test_accuracy": found.text, "test_image_accuracy": found.image, "test_loss": found.loss}

    def worth(self, learner: mg.Learner, state: mg.TrainState, examples: Fields) -> float:
        return self._retrieval(learner, state, examples).text

    def _retrieval(self, learner: mg.Learner, state: mg.TrainState, pairs: Fields) -> Retrieval:
        s = self.cfg.pairs
        return retrieval(learner, state, pairs, s.among, s.groupings, fold_in(self.cfg.seed, Streams.RETRIEVAL))

    def found(self, kept: Tensor) -> dict[str, float]:
        """F1 of the kept pairs against those that an insider would choose."""
        wanted = self.splits.oracle
        return {} if wanted is None else {"f1_oracle": float(binary_f1_score(kept.int(), wanted.int()))}

    def rivals(self, search: Search) -> dict[str, Choice]:
        pool, wanted = self.train, self.splits.oracle
        kept = random_rows(
            len(search.chosen.kept), int(search.chosen.kept.sum()), generator(search.seed, Streams.RANDOM)
        )
        found = {
            "all_data": Choice("no filter", pool),
            "random": Choice("random pairs, as many", take(pool, kept), None, kept),
        }
        model = pool_model(search, self.routine, pool)
        found["best_filter"], self.filters = best_filter(search, self.splits, model)
        if search.cfg.pairs.influence:
            found["influence"] = influence_filter(search, self.splits, model, self.steer)
        if wanted is not None:
            found["oracle"] = Choice("oracle: what an insider would choose", take(pool, wanted), None, wanted)
        return found

    def leave(self, record: Record, selection: Selection) -> None:
        leave_pairs(record, self.splits, selection)

    def draw(
        self, record: Record, selection: Selection, readings: Sequence[Reading], references: Mapping[str, float]
    ) -> None:
        record.table("filters_on_validation", ["filter", "validation accuracy", "share kept"], self.filters)
        draw_pairs(record, self.splits, selection, readings, references)

    def answer(self, results: Mapping[str, float], selection: Selection, cost: float) -> str:
        names = {
            "all_data": "no filter",
            "best_filter": "the best filter",
            "influence": "influence",
            "oracle": "an oracle",
        }
        others = ", ".join(f"with {name} {results[key]:.3f}" for key, name in names.items() if key in results)
        return (
            f"Trained on the learned {selection.unit} an image finds its text among {self.cfg.pairs.among} with accuracy "
            f"{results['']:.3f}, {others}; the descent cost {cost:.0f} trainings."
            f"{gain(results[''], results['kept_only'], results['all_data'])}"
        )


def pairs(cfg: DictConfig, splits: PairSplits) -> Pairs:
    """The task of a pool of pairs."""
    n, size = len(splits.captions["train"]), cfg.learner.batch_size
    if size is not None and n < size:
        log.warning("the pool has %d pairs, fewer than learner.batch_size=%d: each step takes all of them", n, size)
    return Pairs(cfg, splits, routines.pairs_routine(cfg, splits), dict(splits.train), dict(splits.validation))

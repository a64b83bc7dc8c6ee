"""The run that `attribution` asks about."""

import functools
import os
import re
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import torch
from omegaconf import DictConfig
from torch import Tensor

import metagradient as mg
from metagradient.attribution import TrainedRun
from metagradient.data import PairSplits, Splits, TextSplits
from metagradient.errors import UserError
from metagradient.evaluation import leave_one_out, subsets, take
from metagradient.streams import Attribution
from metagradient.studies import routines, setup
from metagradient.training.batches import Fields
from metagradient.training.random import fold_in


@dataclass(frozen=True, eq=False, kw_only=True)
class Task(TrainedRun):
    """A trained run and what is asked about it: `queries` are scored and judged, `held_out` only choose the damping.

    Attributes:
        seconds: that one plain training took; None for a model that was trained elsewhere.
        whole: the set that one score for each training example is about; None: not asked for.
    """

    routine: mg.Routine
    held_out: Fields
    queries: Fields
    seconds: float | None
    whole: Fields | None = None


def make_task(cfg: DictConfig) -> tuple[Task, Splits | TextSplits]:
    """The run that is asked about, trained, and its data."""
    splits = setup.data(cfg)
    text = isinstance(splits, TextSplits)
    if isinstance(splits, PairSplits):
        splits = setup.classification(cfg, splits=splits)  # which refuses them
    if cfg.brittleness and not text and splits.task != "classes":
        raise UserError(f"brittleness flips classes, and these targets are {splits.task}: set brittleness=[]")
    routine = routines.language_routine(cfg, splits) if text else routines.classifier_routine(cfg, splits)
    batches = routine.batches(splits.train, cfg.seed)
    learner = routine.learner(cfg.seed, len(batches))
    there = len(next(iter(splits.validation.values())))
    tuning = cfg.held_out if cfg.drop else min(cfg.held_out, there)  # without retrainings there is nothing to tune by
    for name, wanted, split in (("queries", cfg.queries, "test"), ("held_out", tuning, "validation")):
        if wanted > (rows := len(next(iter(getattr(splits, split).values())))):
            raise UserError(
                f"{name}={wanted}, but there are only {rows} {split} rows: set {name}={rows}, or a larger data.{split}"
            )
    held_out = take(splits.validation, torch.arange(tuning))
    queries = take(splits.test, torch.arange(cfg.queries))
    sets = {"queries": queries, "validation": splits.validation, "test": splits.test}
    seconds = None
    if cfg.checkpoint is None:
        mg.train(learner, batches, stop=min(20, len(batches)))  # warm
        start = perf_counter()
        state = mg.train(learner, batches)
        seconds = perf_counter() - start
    else:
        learner.configure_for(batches)
        state = mg.initial_state(learner)
    task = Task(
        learner=learner,
        batches=batches,
        state=state,
        routine=routine,
        held_out=held_out,
        queries=queries,
        seconds=seconds,
        whole=None if cfg.aggregate is None else sets[cfg.aggregate],
        words=functools.partial(words_of, splits) if splits.kind == "text" else None,
    )
    return task, splits


def words_of(splits: Splits | TextSplits, texts: Fields) -> list[list[str]]:
    """The words of each of some texts, and its other signs, in small letters."""
    if isinstance(splits, TextSplits):
        said = splits.describe(texts["tokens"], texts.get("mask"))
    else:
        said = splits.describe(texts["x"])
    return [re.findall(r"\w+|[^\w\s]", text.lower()) for text in said]


def removals(cfg: DictConfig, n: int) -> dict[float, Tensor]:
    """Which of n examples are kept, [R, n], by the share removed; 0: single ones."""
    kept = {
        float(drop): subsets(n, drop, cfg.retrainings, fold_in(cfg.seed, Attribution.REMOVALS)) for drop in cfg.drop
    }
    if cfg.leave_one_out:
        kept[0.0] = leave_one_out(n, cfg.leave_one_out, fold_in(cfg.seed, Attribution.LEAVE_ONE_OUT))
    return kept


def cache() -> Path:
    """Where retrainings are kept."""
    root = os.environ.get("METAGRADIENT_CACHE") or "~/.cache/metagradient"
    return Path(root).expanduser() / "retrainings"

"""Which rows are deleted, or added."""

import logging
import math

import torch
from omegaconf import DictConfig
from torch import Tensor

import metagradient as mg
from metagradient.data import Splits
from metagradient.errors import UserError
from metagradient.evaluation import (
    example_losses_of,
    hard_labels,
    take,
)
from metagradient.reporting import Progress
from metagradient.streams import Unlearning
from metagradient.studies.unlearning.named import called, named_rows
from metagradient.training.random import generator
from metagradient.unlearning import RecordedRun, Request

log = logging.getLogger(__name__)

CHOICES = ("random", "class", "highest_loss", "highest_influence", "file")


def amount(settings: DictConfig, total: int, name: str) -> int:
    """The number of rows that `fraction` or `count` asks for."""
    if settings.count is not None:
        if not isinstance(settings.count, int) or settings.count < 0:
            raise UserError(f"{name}.count must be a whole number of rows, not {settings.count}: set {name}.count=1")
        return settings.count
    if not 0 <= settings.fraction <= 1:
        raise UserError(f"{name}.fraction must lie in [0, 1], not {settings.fraction}: set {name}.fraction=0.01")
    return max(1, round(settings.fraction * total)) if settings.fraction else 0


def to_add(cfg: DictConfig, n: int) -> list[Tensor]:
    """`sets` disjoint random sets of rows that the run is first trained without; empty where nothing is added."""
    size = amount(cfg.add, n, "add")
    if size * cfg.sets >= n:
        raise UserError(f"{cfg.sets} sets of {size} added rows leave none of the {n} to train on first: set sets=1")
    order = torch.randperm(n, generator=generator(cfg.seed, Unlearning.ADDED))
    return [part.sort().values for part in order[: size * cfg.sets].split(size)] if size else []


def check(cfg: DictConfig, splits: Splits) -> None:
    """Refuse at once what would be refused after the run that is recorded."""
    if splits.task != "classes":
        needing = {"delete.rows=class": cfg.delete.rows == "class", "klom.models": bool(cfg.klom.models)}
        for name in (name for name, wanted in needing.items() if wanted):
            raise UserError(
                f"{name} needs classes, and these targets are {splits.task}: set delete.rows=random klom.models=0"
            )
    if cfg.delete.rows not in CHOICES:
        raise UserError(f"delete.rows must be one of {', '.join(CHOICES)}, not '{cfg.delete.rows}'")
    if cfg.delete.rows == "file":
        named = Request("delete", named_rows(cfg.delete, splits))
        named.mask(len(splits.train["y"]))
        log.info("delete.file names %d training rows by their %s", len(named.rows), called(splits))
    if cfg.history.storage not in ("memory", "disk"):
        raise UserError(
            f"history.storage must be memory or disk, not '{cfg.history.storage}': set history.storage=memory"
        )
    if cfg.stream.requests and cfg.delete.rows != "random":
        raise UserError(
            f"a stream draws its rows at random, not by delete.rows={cfg.delete.rows}: set delete.rows=random"
        )
    if not isinstance(cfg.output_noise, int | float) or not 0 <= cfg.output_noise < math.inf:
        raise UserError(f"output_noise must be a standard deviation >= 0, not {cfg.output_noise}: set output_noise=0")


def to_delete(cfg: DictConfig, run: RecordedRun, splits: Splits, progress: Progress) -> list[Tensor]:
    """`sets` sets of rows after the rule `delete.rows`; a rule that leaves nothing to chance gives one set."""
    rows, settings = run.present.nonzero().flatten(), cfg.delete
    size = amount(settings, len(rows), "delete")
    if settings.rows == "file":
        return [named_rows(settings, splits)]
    if settings.rows == "class":
        label, labels = settings.label, hard_labels(splits.train["y"])
        if not isinstance(label, int) or not 0 <= label < splits.num_classes:
            raise UserError(
                f"delete.label must be one of 0 .. {splits.num_classes - 1}, not {label}: set delete.label=0"
            )
        rows = rows[labels[rows] == label]
        if settings.count is None and settings.fraction == 1:
            return [rows]
    if size == 0:
        raise UserError("there is nothing to delete or to add: set delete.fraction=0.01 or add.fraction=0.01")
    if size > len(rows):
        raise UserError(f"cannot delete {size} of {len(rows)} rows: set a smaller delete.fraction")
    if settings.rows == "highest_loss":
        losses = example_losses_of(run.learner, run.final, take(splits.train, rows))
        return [rows[losses.argsort(descending=True)[:size]].sort().values]
    if settings.rows == "highest_influence":
        influence = _influence(run, splits, progress)
        return [influence.abs().argsort(descending=True)[:size].sort().values]
    draws = (torch.randperm(len(rows), generator=generator(cfg.seed, Unlearning.DELETED, i)) for i in range(cfg.sets))
    return [rows[order[:size]].sort().values for order in draws]


def _influence(run: RecordedRun, splits: Splits, progress: Progress) -> Tensor:
    """d (test loss) / d (weight) of every row, by an exact replay of the run."""
    run.learner.adopt(run.initial)
    weights, objective = mg.DataWeights(run.present.float()), mg.mean_loss(splits.test)
    found = mg.metagradient(run.learner, run.batches_of(run.present), weights, objective, progress=progress.callback())
    return found["weights"].cpu() * run.present

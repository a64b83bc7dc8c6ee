"""Metasmoothness as the experiments read it: of which metaparameters, and the reading at the start of a descent."""

import logging
import math

import torch
from omegaconf import DictConfig

import metagradient as mg
from metagradient.errors import UserError
from metagradient.replay.smoothness import Smoothness
from metagradient.reporting import Progress, Record
from metagradient.streams import Metasmoothness
from metagradient.training.batches import Fields
from metagradient.training.random import fold_in

log = logging.getLogger(__name__)
KINDS = ("weights", "pixels", "schedule")


def metaparameter(kind: str, routine: mg.Routine, train: Fields, rows: torch.Tensor | None = None) -> mg.Metaparameter:
    """Data weights around 1, pixels of `rows` (None: of all examples), or the logarithm of each step's learning rate."""
    n = len(next(iter(train.values())))
    if kind == "weights":
        return mg.DataWeights(torch.ones(n))
    if kind == "pixels":
        index = torch.arange(n) if rows is None else rows
        return mg.InputPerturbation(torch.zeros(len(index), *train["x"].shape[1:]), index=index)
    if kind == "schedule":
        learner, batches = fresh_run(routine, train, 0)
        learner.configure_for(batches)
        rates = [learner.schedule(t) for t in range(len(batches))]
        if min(rates) <= 0:
            raise UserError(
                f"the schedule reaches a learning rate of {min(rates)}, which has no logarithm: set learner.schedule=constant"
            )
        return mg.LearningRates(torch.tensor(rates).log(), log=True)
    raise UserError(f"metaparameters must be among {', '.join(KINDS)}, not '{kind}': set metaparameters=[weights]")


def fresh_run(routine: mg.Routine, train: Fields, seed: int) -> tuple[mg.Learner, mg.Batches]:
    """A learner and its batches."""
    batches = routine.batches(train, seed)
    return routine.learner(seed, len(batches)), batches


def at_the_start(
    cfg: DictConfig,
    record: Record,
    progress: Progress,
    routine: mg.Routine,
    train: Fields,
    kind: str,
    rows: torch.Tensor | None = None,
) -> Smoothness | None:
    """What a descent reads before it begins, and warns of; off with `smoothness=null`. See `metaparameter`."""
    if cfg.smoothness is None:
        return None
    reading = mg.measure_smoothness(
        lambda seed: fresh_run(routine, train, seed),
        metaparameter(kind, routine, train, rows),
        directions=cfg.smoothness.directions,
        h=cfg.smoothness.h,
        seed=fold_in(cfg.seed, Metasmoothness.READING),
        progress=progress.callback("metasmoothness"),
    )
    warning = reading.verdict()
    if warning is not None:
        log.warning("%s", warning)
    else:
        log.info("metasmoothness %.2f", reading.value)
    record.result({"metasmoothness": reading.value if math.isfinite(reading.value) else None})
    record.cost(training_runs=reading.cost)
    return reading

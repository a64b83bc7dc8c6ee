"""Is this training routine fit for metagradients? Its empirical metasmoothness, and what raises it.

Three trainings a direction, at z, z + h v and z + 2 h v, say whether the trained parameters respond smoothly to data
weights, pixels or the learning-rate schedule: 1 is smooth, 0 is chance. Every variant of the routine (one edit at a time)
is read with the same directions and seeds, with its test accuracy and one exact metagradient beside it.

`metagradient smoothness` (ResNet-9, width 4, on 300 digits; three directions; 50 s): .04 for the standard network, .08 with
average pooling alone, .22 with GELU alone, .07 with norms before the activation alone, .95 with the three together, at
the accuracy of the standard network or above.
"""

import logging
import math
import re
import statistics
from pathlib import Path

import torch
from omegaconf import DictConfig

import metagradient as mg
from metagradient.data import Splits
from metagradient.evaluation import MEASURES
from metagradient.replay.smoothness import ROUGH, GradientHealth, Smoothness
from metagradient.reporting import Progress, Record
from metagradient.reporting.estimate import Stage
from metagradient.reporting.figures import descent as descent_figures
from metagradient.streams import Metasmoothness
from metagradient.studies import routines, setup, smoothness
from metagradient.studies.trainer import TrainerFit
from metagradient.training.random import fold_in

log = logging.getLogger(__name__)


def run(cfg: DictConfig, record: Record) -> float:
    setup.prepare(cfg, "smoothness")
    splits = setup.classification(cfg, inputs="pixels" in cfg.metaparameters)
    variants = {"as configured": cfg} | {
        str(name): setup.variant(cfg, edits) for name, edits in (cfg.variants or {}).items()
    }
    record.scratch("replay-*")
    measure = MEASURES[splits.task]
    test, key = f"test {measure.title}", f"test_{measure.name}"
    rows, first_readings = [], dict[str, Smoothness]()
    cases = [(name, kind) for name in variants for kind in cfg.metaparameters]
    with Progress([Stage("cases", len(cases))]) as progress:
        for name, kind in progress.track(cases, "smoothness", stage="cases"):
            reading, tests, health, cost = _read(variants[name], splits, kind, progress, record.directory)
            record.cost(training_runs=cost)
            value = statistics.fmean(tests) if tests else None
            rows.append(_row(name, kind, reading, first_readings.setdefault(kind, reading), {test: value}, health))

    columns = [column for column in rows[0] if rows[0][column] is not None or column != "gradient norm"]
    record.table("metasmoothness", columns, [[row[column] for column in columns] for row in rows])
    record.figure("smoothness_against_accuracy", descent_figures.smoothness_figure(rows, test))
    for row in rows[1:]:
        name = re.sub(r"\W+", "_", f"{row['variant']} {row['of']}".lower())
        record.result({f"metasmoothness_{name}": row["metasmoothness"], f"{key}_{name}": row[test]})
    first = rows[0]
    record.result({"metasmoothness": first["metasmoothness"], key: first[test]})
    record.result({"metasmoothness_low": first["low"], "metasmoothness_high": first["high"]})
    known = math.isfinite(first["low"])
    interval = f"; 95 % interval {first['low']:.2f} to {first['high']:.2f}" if known else ", one direction"
    record.answer(
        f"The metasmoothness of the routine as configured is {first['metasmoothness']:.2f} in {first['of']} "
        f"(1 smooth, 0 chance{interval})."
    )
    return float(first["metasmoothness"])


def _read(
    cfg: DictConfig, splits: Splits, kind: str, progress: Progress, folder: Path
) -> tuple[Smoothness, list[float], GradientHealth | None, float]:
    """The metasmoothness in one kind of metaparameter, the test accuracy (R2 of numbers) of each run at z, the health of one
    metagradient, and what all that cost."""
    routine, tests = routines.classifier_routine(cfg, splits), list[float]()
    z = smoothness.metaparameter(kind, routine, splits.train)
    reading = mg.measure_smoothness(
        lambda seed: smoothness.fresh_run(routine, splits.train, seed),
        z,
        directions=cfg.directions,
        h=cfg.h,
        seed=fold_in(cfg.seed, Metasmoothness.READING),
        on_trained=lambda learner, state: tests.append(MEASURES[splits.task](learner, state, splits.test)),
        progress=progress.callback(),
    )
    if not cfg.gradient:
        return reading, tests, None, reading.cost
    fit = TrainerFit(cfg, progress, folder)
    try:
        learner, batches = smoothness.fresh_run(
            routine, splits.train, fold_in(cfg.seed, Metasmoothness.ACCURACY) % 2**31
        )
        result = fit(learner, batches, [z], mg.mean_loss(splits.validation))
        gradient, cost = result[z.name], result.cost
    except (mg.NonFiniteLoss, mg.NonFiniteCotangent) as error:
        log.warning("%s", error)
        gradient, cost = torch.full((1,), torch.nan), 1.0
    return reading, tests, GradientHealth.of(gradient), reading.cost + cost


def _row(
    name: str,
    kind: str,
    reading: Smoothness,
    first: Smoothness,
    tested: dict[str, float | None],
    health: GradientHealth | None,
) -> dict[str, object]:
    low, high = reading.interval
    gain, gain_low, gain_high = reading.against(first)
    rough = reading.finite and reading.value < ROUGH and "rough"
    problem = rough or (reading.failed and "not finite, or no movement")
    if not reading.finite:
        log.warning("%s: %s", name, reading.verdict())
    sick = health and health.verdict()
    return {
        "variant": name,
        "of": kind,
        "metasmoothness": reading.value,
        "low": low,
        "high": high,
        "against the first": None if reading is first else gain,
        "from": None if reading is first else gain_low,
        "to": None if reading is first else gain_high,
        **tested,
        "relative movement": reading.movement,
        "gradient norm": None if health is None else f"{health.norm:.2g}",
        "remark": "; ".join(filter(None, [problem, sick and "metagradient: " + sick.partition(".")[0]])) or "",
    }


if __name__ == "__main__":
    from metagradient.cli.command import launch

    launch("smoothness")

"""What does a metagradient cost? Time and peak memory of a replay against plain training, for every checkpoint plan.

Beside them a naive unroll and the packages `higher` and `torchopt` where installed. Times are interleaved in one
process, a repeat of each contender at a time, and divided by the plain training of the same repeat; medians over
repeats are shown. Peak memory is the peak resident size of a process of its own, after a warm-up; on a GPU that of its
allocator. Beside both stands what the replay predicted of itself before it began. A second table says how far metagradients
in each precision are from float64, and why lower ones are refused.
"""

import logging
import statistics
from functools import partial
from typing import Any

import torch
from omegaconf import DictConfig

from metagradient.errors import UserError
from metagradient.replay import Metagradients
from metagradient.replay.budget import format_bytes, parse_bytes, smallest_memory
from metagradient.reporting import Progress, Record, figures
from metagradient.studies import setup, stages
from metagradient.studies.cost import contenders, measuring, precision
from metagradient.studies.trainer import device

log = logging.getLogger(__name__)


def run(cfg: DictConfig, record: Record) -> float:
    setup.prepare(cfg, "cost")
    if cfg.trainer.precision != "32-true":
        raise UserError("cost measures in float32, and other precisions beside it: leave trainer.precision=32-true")
    where = device(cfg)
    rows: list[dict[str, Any]] = []
    compared: list[precision.Compared] = []
    with Progress(stages.cost(cfg)) as progress:
        for model in cfg.models:
            size = measuring.footprint(model, cfg.seed, where)
            tight = max(size.taped_step * cfg.tape_steps // 10, smallest_memory(2, size) * 5 // 4)
            tight = parse_bytes(cfg.tight_memory) if cfg.tight_memory else tight
            sizes = [format_bytes(bytes_) for bytes_ in (size.state, size.taped_step, tight)]
            log.info("%s: a state is %s, a taped step %s; tight memory is %s", model, *sizes)
            for steps in cfg.steps:
                names = ["plain", *(name for name in cfg.plans if measuring.possible(name, steps, size, where))]
                seconds, results = measuring.times(
                    model, steps, names, tight, cfg.seed, cfg.repeats, partial(progress.track, stage="timing"), where
                )
                peaks = {
                    name: measuring.peak(model, steps, name, tight, cfg.seed, cfg.trainer.threads, where)
                    for name in progress.track(names, f"memory: {model}, {steps} steps", stage="memory")
                }
                gradients = {name: contenders.gradient_of(found[-1]) for name, found in results.items()}
                truth = next((gradient for gradient in gradients.values() if gradient is not None), None)
                for name in names:
                    ratios = [t / p for t, p in zip(seconds[name], seconds["plain"], strict=True)]
                    rows.append(
                        {
                            "model": model,
                            "steps": steps,
                            "plan": name,
                            "time_ratio": statistics.median(ratios),
                            "time_low": min(ratios),
                            "time_high": max(ratios),
                            "seconds": statistics.median(seconds[name]),
                            "memory_mib": peaks[name][0],
                            "memory_ratio": peaks[name][0] / peaks["plain"][0],
                            "memory_above_mib": peaks[name][1],
                            **_predicted(results[name], seconds["plain"]),
                            "difference": _difference(gradients[name], truth),
                        }
                    )
            if cfg.precision_steps:
                found = precision.compare(
                    model, cfg.precision_steps, cfg.seed, where, partial(progress.track, stage="precision"),
                    unrolled=measuring.possible("naive", cfg.precision_steps, size, where),
                )  # fmt: skip
                compared += [precision.Compared(model, name, *pair) for name, pair in found.items()]
    if compared:
        headers = ["model", "precision", "relative error", "time"]
        record.table("error_against_float64", headers, [list(c) for c in compared])
        record.result(
            {f"error_{c.model}_{c.precision.replace(' ', '_')}": c.error for c in compared if c.error is not None}
        )
    columns = list(rows[0])
    record.csv("cost", columns, [[row[column] for column in columns] for row in rows])
    shown = []
    for r in rows:
        spread = f"{r['time_low']:.2f} - {r['time_high']:.2f}"
        time, peak = r["predicted_time"], r["predicted_mib"]
        predicted = [None, None] if time is None else [round(time, 2), round(peak)]
        sizes = round(r["memory_mib"]), round(r["memory_above_mib"])
        measured = [round(r["time_ratio"], 2), spread, predicted[0], *sizes, predicted[1]]
        shown.append([r["model"], r["steps"], r["plan"], *measured, r["difference"]])
    times, memory = ["time", "range", "predicted time"], ["peak MiB", "above warm", "predicted MiB"]
    headers = ["model", "T", "plan", *times, *memory, "rel. difference"]
    record.table("cost_in_plain_trainings", headers, shown)
    drawn = [r for r in rows if r["plan"] not in ("plain", "plain, compiled", "torch loop") and " x" not in r["plan"]]
    if drawn:
        record.figure("cost", figures.cost_figure(drawn))
    record.result(_shares(rows))
    headline = ([r for r in rows if r["plan"] == "auto"] or rows)[-1]
    record.result({"cost_ratio": headline["time_ratio"], "peak_memory_ratio": headline["memory_ratio"]})
    record.answer(
        f"A metagradient of {headline['steps']} steps of {headline['model']} takes {headline['time_ratio']:.2f} plain trainings "
        f"(range {headline['time_low']:.2f} to {headline['time_high']:.2f}) and {headline['memory_ratio']:.2f} times their peak memory "
        f"({headline['plan']})."
    )
    record.cost(training_runs=sum((cfg.repeats + 1) * r["time_ratio"] for r in rows))
    return headline["time_ratio"]


def _predicted(found: list[contenders.Found], plain: list[float]) -> dict[str, float | None]:
    """What `auto` said before: plain trainings and MiB above the process; None of other packages, and of several objectives."""
    ours = [f for f in found if isinstance(f, Metagradients) and f.objective.dim() == 0]
    pairs = [(f.predicted, p) for f, p in zip(ours, plain, strict=False) if f.predicted is not None]
    if not pairs:
        return {"predicted_time": None, "predicted_mib": None}
    return {
        "predicted_time": statistics.median(p.seconds / unit for p, unit in pairs),
        "predicted_mib": pairs[0][0].peak / 2**20,
    }


def _difference(result: torch.Tensor | None, truth: torch.Tensor | None) -> float | None:
    """Relative difference of two metagradients of one objective."""
    if result is None or truth is None or result.shape != truth.shape:
        return None
    return float((result - truth).norm() / truth.norm())


def _shares(rows: list[dict[str, Any]]) -> dict[str, float]:
    """`PLAN xQ`: the time of Q objectives in one replay over that of Q replays, by model."""
    time = {(r["model"], r["steps"], r["plan"]): r["time_ratio"] for r in rows}
    shares = {}
    for (model, steps, name), many in time.items():
        plan, _, objectives = name.partition(" x")
        if objectives and (model, steps, plan) in time:
            shares[f"share_{model}_{plan}_x{objectives}"] = many / (int(objectives) * time[model, steps, plan])
    return shares


if __name__ == "__main__":
    from metagradient.cli.command import launch

    launch("cost")

"""What does a metagradient cost? Time and peak memory of a replay against plain training, for every checkpoint plan.

Beside them a naive unroll and the packages `higher` and `torchopt` where installed. Times are interleaved in one
process, a repeat of each contender at a time, and divided by the plain training of the same repeat; medians over
repeats are shown. Peak memory is the peak resident size of a process of its own, after a warm-up.
"""

import gc
import logging
import multiprocessing
import statistics
import time
from multiprocessing.connection import Connection

import psutil
import torch
from metagradient.experiments import _contenders, _setup
from omegaconf import DictConfig

from metagradient.replay.budget import Footprint, format_bytes, measure, parse_bytes
from metagradient.reporting import Progress, Record, figures, memory
from metagradient.training import Batches, DataWeights, initial_state
from metagradient.training.run import run_mode

log = logging.getLogger(__name__)
COLUMNS = [
    *("model", "steps", "plan", "time_ratio", "time_low", "time_high", "seconds"),
    *("memory_mib", "memory_ratio", "memory_above_mib", "difference"),
]


def run(cfg: DictConfig, record: Record) -> float:
    _setup.prepare(cfg)
    rows: list[dict] = []
    with Progress() as progress:
        for model in cfg.models:
            footprint = _footprint(model)
            tight = int(
                parse_bytes(cfg.tight_memory) if cfg.tight_memory else 0.1 * footprint.taped_step * cfg.tape_steps
            )
            sizes = [format_bytes(size) for size in (footprint.state, footprint.taped_step, tight)]
            log.info("%s: a state is %s, a taped step %s; tight memory is %s", model, *sizes)
            for steps in cfg.steps:
                names = [name for name in cfg.plans if _possible(name, steps, footprint)]
                cell = f"{model}, {steps} steps"
                times, results = _times(model, steps, names, tight, cfg, progress, cell)
                peaks = {
                    name: _in_process(_peak, model, steps, name, tight, cfg.trainer.threads)
                    for name in progress.track(["plain", *names], f"memory: {cell}")
                }
                reference = next((results[n] for n in names if results[n] is not None), None)
                for name in ["plain", *names]:
                    ratios = [t / p for t, p in zip(times[name], times["plain"], strict=True)]
                    result = results[name]
                    rows.append(
                        {
                            "model": model,
                            "steps": steps,
                            "plan": name,
                            "time_ratio": statistics.median(ratios),
                            "time_low": min(ratios),
                            "time_high": max(ratios),
                            "seconds": statistics.median(times[name]),
                            "memory_mib": peaks[name][0],
                            "memory_ratio": peaks[name][0] / peaks["plain"][0],
                            "memory_above_mib": peaks[name][1],
                            "difference": None
                            if result is None
                            else float((result - reference).norm() / reference.norm()),
                        }
                    )
    record.csv("cost", COLUMNS, [[row[key] for key in COLUMNS] for row in rows])
    shown = []
    for r in rows:
        spread = f"{r['time_low']:.2f} - {r['time_high']:.2f}"
        sizes = round(r["memory_mib"]), round(r["memory_above_mib"])
        shown.append([r["model"], r["steps"], r["plan"], round(r["time_ratio"], 2), spread, *sizes, r["difference"]])
    record.table(
        "cost_in_plain_trainings",
        ["model", "T", "plan", "time", "range", "peak MiB", "above warm", "rel. difference"],
        shown,
    )
    drawn = [r for r in rows if r["plan"] not in ("plain", "torch loop") and " x" not in r["plan"]]
    record.figure("cost", figures.cost_figure(drawn))
    record.result(_shares(rows))
    headline = [r for r in rows if r["plan"] == "auto"] or rows[-1:]
    record.result({"cost_ratio": headline[-1]["time_ratio"], "peak_memory_ratio": headline[-1]["memory_ratio"]})
    record.cost(training_runs=sum(cfg.repeats * r["time_ratio"] for r in rows))
    return headline[-1]["time_ratio"]


def _difference(result: torch.Tensor | None, reference: torch.Tensor | None) -> float | None:
    if result is None or reference is None or result.shape != reference.shape:
        return None
    return float((result - reference).norm() / reference.norm())


def _shares(rows: list[dict]) -> dict[str, float]:
    """`PLAN xQ`: the time of Q objectives in one replay over that of Q replays, by model."""
    time = {(r["model"], r["steps"], r["plan"]): r["time_ratio"] for r in rows}
    shares = {}
    for (model, steps, name), many in time.items():
        plan, _, objectives = name.partition(" x")
        if objectives and (model, steps, plan) in time:
            shares[f"share_{model}_{plan}_x{objectives}"] = many / (int(objectives) * time[model, steps, plan])
    return shares


def _possible(name: str, steps: int, footprint: Footprint) -> bool:
    """Leave out, and say so, what is not installed or keeps more graphs than there is memory for."""
    if not _contenders.installed(name):
        log.warning("%s is not installed: pip install 'metagradient[peers]'", name)
        return False
    need, free = 1.5 * steps * footprint.taped_step, psutil.virtual_memory().available
    if _contenders.keeps_every_graph(name) and need > 0.5 * free:
        log.warning("%s at %d steps would need about %.0f GiB: left out", name, steps, need / 2**30)
        return False
    return True


def _times(model, steps, names, tight, cfg, progress, cell):  # type: ignore[no-untyped-def]
    """Seconds of each repeat by contender, and each contender's metagradient."""
    everyone = ["plain", *names]
    for name in everyone:
        _contenders.make_contender(name, tight)(_contenders.make_case(model, 8))
    case = _contenders.make_case(model, steps)
    seconds: dict[str, list[float]] = {name: [] for name in everyone}
    results: dict[str, torch.Tensor | None] = dict.fromkeys(everyone)
    for _, name in progress.track([(r, n) for r in range(cfg.repeats) for n in everyone], f"timing: {cell}"):
        gc.collect()
        start = time.perf_counter()
        results[name] = _contenders.make_contender(name, tight)(case)
        seconds[name].append(time.perf_counter() - start)
    return seconds, results


def _footprint(model: str) -> Footprint:
    case = _contenders.make_case(model, 8)
    learner, batches = _contenders._Learner(case), Batches(case.examples, case.plan)
    with run_mode(learner, batches):
        return measure(learner, batches, initial_state(learner), [DataWeights(case.weights)], 0)


def _peak(pipe: Connection, model: str, steps: int, name: str, tight: int, threads: int | None) -> None:
    """In a process of its own: (peak resident MiB, of it above the warm process)."""
    if threads is not None:
        torch.set_num_threads(threads)
    contender = _contenders.make_contender(name, tight)
    contender(_contenders.make_case(model, 8))
    case = _contenders.make_case(model, steps)
    gc.collect()
    memory.reset_peak()
    warm = psutil.Process().memory_info().rss / 2**20
    contender(case)
    peak = memory.peak_mib()
    pipe.send((peak, peak - warm))


def _in_process(function, *arguments):  # type: ignore[no-untyped-def]
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=function, args=(theirs, *arguments))
    process.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError as error:
        process.join()
        raise RuntimeError(f"the measuring process died with exit code {process.exitcode} (out of memory?)") from error
    finally:
        process.join()


if __name__ == "__main__":
    from metagradient.cli import launch

    launch("cost")

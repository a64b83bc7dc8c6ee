"""Times of contenders interleaved in one process, and peak memory of each in a process of its own."""

import gc
import logging
import multiprocessing
import time
from collections.abc import Callable, Iterable, Sequence
from multiprocessing.connection import Connection
from typing import Any

import psutil
import torch

from metagradient.memory import peak_mib, reset_peak
from metagradient.replay.budget import Footprint, measure
from metagradient.studies.cost import contenders
from metagradient.training import Batches, DataWeights, initial_state
from metagradient.training.run import run_mode

log = logging.getLogger(__name__)
WARM_UP = 8  # steps
_START = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"

Track = Callable[[Sequence[Any], str], Iterable[Any]]


def footprint(model: str, seed: int) -> Footprint:
    """Bytes of a state and of a taped step."""
    case = contenders.make_case(model, WARM_UP, seed)
    learner, batches = contenders.CaseLearner(case, None), Batches(case.examples, case.plan)
    with run_mode(learner, batches):
        return measure(learner, batches, initial_state(learner), [DataWeights(case.weights)], 0)


def possible(name: str, steps: int, size: Footprint) -> bool:
    """Leave out, and say so, what is not installed or keeps more graphs than there is memory for."""
    if lacking := contenders.missing(name):
        log.warning("%s; left out", lacking)
        return False
    need, free = 1.5 * steps * size.taped_step, psutil.virtual_memory().available
    if contenders.keeps_every_graph(name) and need > 0.5 * free:
        log.warning("%s at %d steps would need about %.0f GiB: left out", name, steps, need / 2**30)
        return False
    return True


def times(
    model: str, steps: int, names: Sequence[str], tight: int, seed: int, repeats: int, track: Track
) -> tuple[dict[str, list[float]], dict[str, torch.Tensor | None]]:
    """Seconds of each repeat by contender, and each contender's metagradient; one repeat of each in turn."""
    calls = {name: contenders.make_contender(name, tight) for name in names}
    for contender in calls.values():
        contender(contenders.make_case(model, WARM_UP, seed))
    case = contenders.make_case(model, steps, seed)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    results: dict[str, torch.Tensor | None] = dict.fromkeys(names)
    for name in track(list(names) * repeats, f"timing: {model}, {steps} steps"):
        gc.collect()
        start = time.perf_counter()
        results[name] = calls[name](case)
        seconds[name].append(time.perf_counter() - start)
    return seconds, results


def peak(model: str, steps: int, name: str, tight: int, seed: int, threads: int | None) -> tuple[float, float]:
    """(peak resident MiB, of it above the warm process), measured in a process of its own."""
    context: Any = multiprocessing.get_context(_START)
    if _START == "forkserver":  # imports once, for all
        context.set_forkserver_preload([__name__])
    ours, theirs = context.Pipe()
    process = context.Process(target=_peak, args=(theirs, model, steps, name, tight, seed, threads))
    process.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError as error:
        process.join()
        raise RuntimeError(f"the measuring process died with exit code {process.exitcode} (out of memory?)") from error
    finally:
        process.join()


def _peak(pipe: Connection, model: str, steps: int, name: str, tight: int, seed: int, threads: int | None) -> None:
    if threads is not None:
        torch.set_num_threads(threads)
    contender = contenders.make_contender(name, tight)
    contender(contenders.make_case(model, WARM_UP, seed))
    case = contenders.make_case(model, steps, seed)
    gc.collect()
    reset_peak()
    warm = psutil.Process().memory_info().rss / 2**20
    contender(case)
    pipe.send((peak_mib(), peak_mib() - warm))

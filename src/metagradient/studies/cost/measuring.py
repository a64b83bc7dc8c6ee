"""Times of contenders interleaved in one process, and peak memory of each in a process of its own."""

import gc
import logging
import multiprocessing
import time
from collections.abc import Callable, Iterable, Sequence
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import psutil
import torch

from metagradient.memory import peak_mib, reset_peak
from metagradient.replay import mean_loss
from metagradient.replay.heap import give_back
from metagradient.replay.trial import Footprint, measure
from metagradient.studies.cost import contenders
from metagradient.training import Batches, DataWeights, initial_state
from metagradient.training.run import run_mode

log = logging.getLogger(__name__)
WARM_UP = 8  # steps
_START = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"

Result = TypeVar("Result")
Track = Callable[[Sequence[Any], str], Iterable[Any]]


def footprint(model: str, seed: int, device: torch.device) -> Footprint:
    """What a step takes, and the objective."""
    case = contenders.make_case(model, WARM_UP, seed).to(device)
    learner, batches = contenders.CaseLearner(case, None), Batches(case.examples, case.plan)
    with run_mode(learner, batches):
        return measure(
            learner, batches, initial_state(learner), [DataWeights(case.weights)], 0, mean_loss(case.validation)
        )


def possible(name: str, steps: int, size: Footprint, device: torch.device) -> bool:
    """Leave out, and say so, what is not installed or keeps more graphs than there is memory for."""
    if lacking := contenders.missing(name):
        log.warning("%s; left out", lacking)
        return False
    on_gpu = device.type == "cuda"
    free = torch.cuda.mem_get_info(device)[0] if on_gpu else psutil.virtual_memory().available
    need = 1.5 * steps * size.taped_step
    if contenders.keeps_every_graph(name) and need > 0.5 * free:
        log.warning("%s at %d steps would need about %.0f GiB: left out", name, steps, need / 2**30)
        return False
    return True


def times(
    model: str,
    steps: int,
    names: Sequence[str],
    tight: int,
    seed: int,
    repeats: int,
    track: Track,
    device: torch.device,
) -> tuple[dict[str, list[float]], dict[str, list[contenders.Found]]]:
    """Seconds of each repeat by contender, and what it returned; one repeat of each in turn."""
    calls = {name: contenders.make_contender(name, tight) for name in names}
    for contender in calls.values():
        contender(contenders.make_case(model, WARM_UP, seed).to(device))
    case = contenders.make_case(model, steps, seed).to(device)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    results: dict[str, list[contenders.Found]] = {name: [] for name in names}
    for name in track(list(names) * repeats, f"timing: {model}, {steps} steps"):
        found, taken = timed(calls[name], case)
        results[name].append(found)
        seconds[name].append(taken)
    return seconds, results


def timed(contender: Callable[[contenders.Case], Result], case: contenders.Case) -> tuple[Result, float]:
    """What a contender gives, and its seconds."""
    gc.collect()
    settle(case.like.device)
    start = time.perf_counter()
    result = contender(case)
    settle(case.like.device)
    return result, time.perf_counter() - start


def settle(device: torch.device) -> None:
    """Wait until a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak(
    model: str, steps: int, name: str, tight: int, seed: int, threads: int | None, device: torch.device
) -> tuple[float, float]:
    """(peak resident MiB, of it above the warm process), measured in a process of its own; on a GPU of its allocator."""
    context: Any = multiprocessing.get_context(_START)
    if _START == "forkserver":  # imports once, for all
        context.set_forkserver_preload([__name__])
    ours, theirs = context.Pipe()
    process = context.Process(target=_peak, args=(theirs, model, steps, name, tight, seed, threads, device))
    process.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError as error:
        process.join()
        raise RuntimeError(f"the measuring process died with exit code {process.exitcode} (out of memory?)") from error
    finally:
        process.join()


def _peak(
    pipe: Connection,
    model: str,
    steps: int,
    name: str,
    tight: int,
    seed: int,
    threads: int | None,
    device: torch.device,
) -> None:
    if threads is not None:
        torch.set_num_threads(threads)
    contender = contenders.make_contender(name, tight)
    contender(contenders.make_case(model, WARM_UP, seed).to(device))
    case = contenders.make_case(model, steps, seed).to(device)
    gc.collect()
    give_back()
    reset_peak()
    on_gpu = device.type == "cuda"
    warm = (torch.cuda.memory_allocated(device) if on_gpu else psutil.Process().memory_info().rss) / 2**20
    contender(case)
    pipe.send((peak_mib(), peak_mib() - warm))

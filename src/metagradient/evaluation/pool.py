"""A pool of processes for jobs that cannot be stacked, such as the trainings of a convolutional network."""

from __future__ import annotations

import multiprocessing
import pickle
import signal
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from time import monotonic
from typing import TYPE_CHECKING, Any

import torch

from metagradient.errors import UserError

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext, SpawnContext

Tick = Callable[[int], None]
"""`tick(steps)`, called by a job now and then: so many of its steps are done."""

_EVERY = 0.2  # seconds between two ticks that a worker sends


class Unsendable(Exception):
    """A job cannot go to another process; the message says why."""


def spread(
    job: Callable[[Any, Tick], Any], arguments: Sequence[Any], workers: int, tick: Callable[[int, int], None]
) -> Generator[tuple[int, Any]]:
    """`job(argument, tick)` for every argument in `workers` processes of one thread each: (index, result) as they finish.

    Args:
        job: sent to each process once, then only arguments and results travel (arrays, not tensors: torch would
            share their memory by file descriptors). tick(index, steps) hears of the jobs at work.
        arguments: one tuple for each call.
        workers: processes.
        tick: called after each result.

    Closing the iterator ends the processes at once; they also end when this process does, however it ends.

    Raises:
        Unsendable: a process cannot read the job.
        UserError: a process was killed, or a job raised one.
        RuntimeError: the.
        traceback of what else a job raised.
    """
    try:
        sent = pickle.dumps(job)
    except Exception as error:  # whatever an object's own __reduce__ raises
        raise Unsendable(f"{type(error).__name__}: {error}") from error
    if multiprocessing.current_process().daemon:
        raise Unsendable("this process is a daemon itself")
    todo, pool = iter(enumerate(arguments)), dict[Connection, BaseProcess]()
    try:
        for _ in range(min(workers, len(arguments))):
            ours, process = _start()
            pool[ours] = process
        for pipe, process in pool.items():
            with _alive(process, workers):
                pipe.send_bytes(sent)
        del sent  # a copy of the data
        while pool:
            ready = wait(list(pool))
            for pipe in [pipe for pipe in pool if pipe in ready]:
                with _alive(pool[pipe], workers):
                    kind, index, value = pipe.recv()
                if kind == "tick":
                    tick(index, value)
                    continue
                if kind == "failed":
                    raise value
                following = next(todo, None)
                if following is None:  # the closed pipe tells the process to end
                    pipe.close()
                    pool.pop(pipe).join()
                else:
                    with _alive(pool[pipe], workers):
                        pipe.send(following)
                if kind == "done":
                    yield index, value
    finally:
        for process in pool.values():
            process.kill()
        for pipe, process in pool.items():
            process.join()
            pipe.close()


def _start() -> tuple[Connection, BaseProcess]:
    """A worker and our end of the pipe to it: forked, where possible, from a server that has imported everything once."""
    context: ForkServerContext | SpawnContext
    if "forkserver" in multiprocessing.get_all_start_methods():
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
    else:
        context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs,), daemon=True)
    with _ctrl_c_blocked():  # which the server inherits
        process.start()
    theirs.close()
    return ours, process


@contextmanager
def _ctrl_c_blocked() -> Iterator[None]:
    """A terminal sends it to all processes; it is ours alone."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _alive(process: BaseProcess, workers: int) -> Iterator[None]:
    """A pipe that breaks inside means that the process at its other end is gone."""
    try:
        yield
    except (EOFError, OSError) as error:
        process.join()
        code = process.exitcode or 0
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        raise UserError(
            f"one of {workers} worker processes {how}{' (too little memory?)' if code == -9 else ''}; what is finished is "
            "kept. workers=1 does the rest in this process, one after the other"
        ) from error


def _work(pipe: Connection) -> None:
    """A worker's life: the job, then arguments and answers, until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    with suppress(EOFError, OSError):  # who asked is gone
        try:
            job = pickle.loads(pipe.recv_bytes())
        except Exception as error:
            pipe.send(("failed", -1, Unsendable(f"{type(error).__name__}: {error}")))
            return
        pipe.send(("ready", -1, None))
        while True:
            index, argument = pipe.recv()
            try:
                result = job(argument, _ticker(pipe, index))
            except UserError as error:
                pipe.send(("failed", index, UserError(str(error))))
            except Exception:
                pipe.send(("failed", index, RuntimeError(traceback.format_exc())))
            else:
                pipe.send(("done", index, result))


def _ticker(pipe: Connection, index: int) -> Tick:
    last = monotonic()

    def tick(steps: int) -> None:
        nonlocal last
        if monotonic() - last > _EVERY:
            pipe.send(("tick", index, steps))
            last = monotonic()

    return tick

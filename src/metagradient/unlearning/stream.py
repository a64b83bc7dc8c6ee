"""One request after the other, each to the run that the last one left."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import torch

from metagradient.errors import UserError
from metagradient.replay.storage import MemoryStorage, Storage
from metagradient.training.run import Progress
from metagradient.training.state import TrainState
from metagradient.unlearning import stored
from metagradient.unlearning.methods import Method
from metagradient.unlearning.requests import Request
from metagradient.unlearning.run import RecordedRun


@dataclass(frozen=True, eq=False)
class Served:
    """The stream after `done` requests.

    original: the model before the first of them. seconds, gradients: spent on all of them so far, savings apart.
    """

    run: RecordedRun
    original: TrainState
    done: int
    seconds: float
    gradients: int


def stream(
    method: Method,
    start: RecordedRun,
    requests: Sequence[Request],
    folder: str | Path,
    *,
    storage: Callable[[], Storage] = MemoryStorage,
    progress: Progress | None = None,
) -> Iterator[Served]:
    """Serve the requests in turn, keeping the whole state in `folder` after each; yields after each.

    Called again with the same requests on a folder where it was interrupted, it goes on after the last one that was
    kept, to the same bits. UserError at once where any request cannot be met, or the folder's stream is another one.
    """
    present = start.present
    key = _key(requests)
    run, done, seconds, gradients, original = start, 0, 0.0, 0, start.final
    if stored.exists(folder):
        run, notes, tensors = stored.load(folder, start.learner, start.batches, storage(), initial=start.initial)
        if notes.get("stream") != key:
            raise UserError(f"{folder} holds another stream of requests: give another run_folder")
        done, seconds, gradients = notes["done"], notes["seconds"], notes["gradients"]
        original = TrainState(tensors["original"].to(start.final.params), (), start.final.buffers)
    for request in requests:  # refuse the hundredth now, not in an hour
        present = request.apply(present)
    for request in requests[done:]:
        started = perf_counter()
        answer = method(run, request, keep=storage(), progress=progress)
        assert answer.run is not None
        seconds, gradients, done = seconds + perf_counter() - started, gradients + answer.gradients, done + 1
        if run is not start:
            run.history.free()
        run = answer.run
        notes = {"stream": key, "done": done, "seconds": seconds, "gradients": gradients}
        stored.save(run, folder, notes, original=original.params)
        yield Served(run, original, done, seconds, gradients)


def _key(requests: Sequence[Request]) -> str:
    parts = [torch.cat([torch.tensor([r.sign, len(r.rows)]), r.rows.cpu()]) for r in requests]
    return f"{len(requests)}:{zlib.crc32(torch.cat(parts).numpy().data):08x}"

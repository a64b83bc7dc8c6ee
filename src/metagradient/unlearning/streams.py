"""One request after the other, each to the run that the last one left."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
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

    Attributes:
        original: the model before the first of them. seconds, gradients: spent on all of them so far, savings
            apart.
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

    Called again with the same method and requests on a folder where it was interrupted, it first yields what was kept
    there, then goes on after it, to the same bits. UserError at once where any request cannot be met, or the folder's
    stream is another one.
    """
    present = start.present
    for request in requests:  # refuse the hundredth now, not in an hour
        present = request.apply(present)
    key, state = _key(method, requests), Served(start, start.final, 0, 0.0, 0)
    if stored.exists(folder):
        run, notes, tensors = stored.load(folder, start.learner, start.batches, storage(), initial=start.initial)
        if notes.get("stream") != key:
            raise UserError(
                f"{folder} holds another stream (other requests, or another method): give another run_folder"
            )
        original = replace(start.final, params=tensors["original"].to(start.final.params), slots=())
        state = Served(run, original, notes["done"], notes["seconds"], notes["gradients"])
        yield state
    for request in requests[state.done :]:
        started = perf_counter()
        answer = method(state.run, request, keep=storage(), progress=progress)
        assert answer.run is not None
        seconds = state.seconds + perf_counter() - started
        if state.run is not start:
            state.run.history.free()
        state = Served(answer.run, state.original, state.done + 1, seconds, state.gradients + answer.gradients)
        notes = {"stream": key, "done": state.done, "seconds": seconds, "gradients": state.gradients}
        stored.save(state.run, folder, notes, original=state.original.params)
        yield state


def _key(method: Method, requests: Sequence[Request]) -> str:
    parts = [torch.cat([torch.tensor([r.sign, len(r.rows)]), r.rows.cpu()]) for r in requests]
    words = zlib.crc32(repr(method).encode())
    return f"{len(requests)}:{zlib.crc32(torch.cat(parts).numpy().data, words):08x}"

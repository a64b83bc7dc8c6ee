"""Is it worth it? What DeltaGrad will save on a request, predicted from a few timed steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from statistics import median
from time import perf_counter
from typing import TypeVar

import torch

from metagradient.replay.heap import keep_large_blocks
from metagradient.training.run import cast, check_loss, run_mode
from metagradient.training.steps import step
from metagradient.unlearning.deltagrad import DeltaGrad, Walk
from metagradient.unlearning.requests import Request
from metagradient.unlearning.run import Change, RecordedRun, batch_sizes

T = TypeVar("T")

WORTHWHILE = 1.2
"""A smaller saving in time is not worth an approximate answer: retrain instead."""


def predicted_saving(method: DeltaGrad, run: RecordedRun, request: Request, steps: int = 15) -> float:
    """(time of a retraining) / (time of DeltaGrad), from the first `steps` steps, every third of them exact.

    Each is taken twice in turn: as a retraining would, and as DeltaGrad would, whole, with its pairs, its products and
    all that Python costs; so are both preparations of the batches. The median times of a plain, an exact and an
    approximate step then stand for the run's.

    Left out: steps that a guard will refuse (predicted: none), and with `adaptive` the period that will be found
    (`period` stands in). Where most requests are like this one, ask once.
    """
    change, preparing = _timed(lambda: Change(run, request))
    _, masking = _timed(lambda: batch_sizes(run.batches_of(request.apply(run.present)).plan))
    walk = Walk(replace(method, burn_in=0, period=3, adaptive=None), run, change, None)
    learner, state, times = run.learner, run.initial, dict[str, list[float]]()

    def plain(t: int) -> None:
        nonlocal state
        batch = cast(change.kept(t), state)
        before = state
        state, loss, _ = step(learner, state, batch, t)
        check_loss(loss, batch, t, learner, before)

    total = run.history.steps
    with run_mode(learner, run.batches), keep_large_blocks():
        for t, (w, g) in zip(range(min(steps, total)), run.history, strict=False):
            before = walk.count["exact_steps"]
            alone = _timed(lambda t=t: plain(t))[1]  # type: ignore[misc]
            ours = _timed(lambda t=t, w=w, g=g: walk.step(t, w, g))[1]  # type: ignore[misc]
            if t > 0:  # the first one warms up
                times.setdefault("plain", []).append(alone)
                times.setdefault("exact" if walk.count["exact_steps"] > before else "short", []).append(ours)
    if "short" not in times:
        return 1.0  # every step is exact
    one = {kind: median(seconds) for kind, seconds in times.items()}
    exact = min(method.burn_in + 1, total)
    exact += (total - exact) // method.period
    return (masking + total * one["plain"]) / (preparing + exact * one["exact"] + (total - exact) * one["short"])


def _timed(call: Callable[[], T]) -> tuple[T, float]:
    """What it returns, and the seconds it took."""
    _wait()
    started = perf_counter()
    result = call()
    _wait()
    return result, perf_counter() - started


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()

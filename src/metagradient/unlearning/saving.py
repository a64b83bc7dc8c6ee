"""Is it worth it? What DeltaGrad will save on a request, predicted from a few timed steps."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from time import perf_counter

import torch

from metagradient.training.run import cast, run_mode
from metagradient.training.step import step
from metagradient.unlearning.deltagrad import DeltaGrad
from metagradient.unlearning.gradients import mean_gradient
from metagradient.unlearning.lbfgs import SecantPairs
from metagradient.unlearning.requests import Request
from metagradient.unlearning.run import Change, RecordedRun

WORTHWHILE = 1.2
"""A smaller saving in time is not worth an approximate answer: retrain instead."""


def predicted_saving(method: DeltaGrad, run: RecordedRun, request: Request, repeats: int = 5) -> float:
    """(time of a retraining) / (time of DeltaGrad), from the median times of its parts at one step.

    A training step p, the changed examples' gradient h and a product with B; an exact step costs p + h, an approximate
    one h and the product, beside an update. With `adaptive` the period is not known beforehand: `period` stands in.
    Where most requests are like this one, ask once.
    """
    change = Change(run, request)
    sizes = [change.sizes(t) for t in range(run.history.steps)]
    t = sorted(range(len(sizes)), key=lambda t: sizes[t].changed)[len(sizes) // 2]
    state, learner = run.final, run.learner
    kept, changed = cast(change.kept(t), state), sizes[t].changed > 0
    v = torch.randn_like(state.params)
    pairs = SecantPairs(method.pairs)
    for _ in range(method.pairs):
        pairs.push(torch.randn_like(v), v)
        pairs.push(v, v)

    def approximate() -> None:
        pairs.product(v)
        if changed:
            mean_gradient(learner, state.params, state.buffers, cast(change.changed(t), state))
        hyper = {"learning_rate": learner.schedule(t), **learner.optimizer.hyper()}
        learner.optimizer.update(state.params, v, state.slots, t, hyper, learner.decay_mask)

    with run_mode(learner, run.batches):
        plain = _seconds(lambda: step(learner, state, cast(change.kept(t), state) if len(kept) else kept, t), repeats)
        short = _seconds(approximate, repeats)
    total = len(sizes)
    burn_in = min(method.burn_in + 1, total)
    exact = burn_in + (total - burn_in) // method.period
    return total * plain / (exact * (plain + short) + (total - exact) * short)


def _seconds(run: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats + 1):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        started = perf_counter()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(perf_counter() - started)
    return median(times[1:])

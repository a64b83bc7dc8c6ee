"""What one step of a replay takes, in bytes and seconds: tried on the run's own learner and batches."""

from __future__ import annotations

import statistics
import time
import weakref
from collections.abc import Callable, Hashable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from metagradient.learners.learner import Learner
from metagradient.memory import resident_rise
from metagradient.replay.heap import give_back
from metagradient.replay.trial.allocations import Allocations
from metagradient.replay.trial.differentiable import pull, refuse_wrong_functions, warn_of_signs
from metagradient.replay.trial.footprint import Footprint
from metagradient.training.batches import Batch, Batches
from metagradient.training.metaparameters import Metaparameter
from metagradient.training.run import cast
from metagradient.training.saved_tensors import watching_saved_tensors
from metagradient.training.state import TrainState
from metagradient.training.steps import step

_GRAPH_BYTES = 48 * 1024
"""Graph nodes and allocator overhead of one taped step, on top of its tensors (measured on a two-layer MLP)."""

_HOLES = 1.1
"""Of a tape in a CPU's heap: between the tensors that stay are holes of those that went (measured: 3 to 15 % of the tape)."""

_TRIED_FOR, _TRIES = 0.05, 5
"""Seconds and repeats in which short steps are timed; a step that takes longer is timed once."""

Result = TypeVar("Result")


@runtime_checkable
class Divisible(Protocol):
    """An objective that can be tried on some of its examples."""

    def tried_in_part(self, learner: Learner, rows: int) -> tuple[Callable[[Learner], Tensor], float, float]:
        """The same of at most `rows` examples, and how many times as much memory and time the whole takes."""
        ...


def measure(
    learner: Learner,
    batches: Batches,
    state: TrainState,
    z: Sequence[Metaparameter],
    first: int,
    objective: Callable[[Learner], Tensor] | None = None,
) -> Footprint:
    """Try the step with the largest batch from `first` on, since others may be short or empty.

    It is taped and pulled through, and so is a part of what metaparameters do in one step alone, and of an objective that
    is `Divisible`. What cannot be differentiated twice is refused here. A learner is tried once for runs that are alike.
    """
    key = _key(learner, batches, state, z, first)
    if key not in learner.tried:
        learner.tried[key] = _tried(learner, batches, state, z, first)
    found: Footprint = learner.tried[key]
    if not isinstance(objective, Divisible):
        return found
    trial = _Trial(learner, batches, state)
    some, larger, times = objective.tried_in_part(learner, _rows_at_once(learner, batches))
    _, seconds = trial.watched(lambda: trial.objective(some))
    passing = max(found.passing, int(larger * trial.peak))
    return replace(found, passing=passing, once_seconds=found.once_seconds + times * seconds)


def _key(learner: Learner, batches: Batches, state: TrainState, z: Sequence[Metaparameter], first: int) -> Hashable:
    """What decides a trial of this learner."""
    fields = tuple((name, str(x.dtype), tuple(x.shape[1:])) for name, x in batches.examples.items())
    values = tuple((type(m).__name__, m.only_step, tuple(m.value.shape), getattr(m, "chunk", None)) for m in z)
    states = tuple((tuple(x.shape), x.dtype, x.device) for x in state.tensors())
    how = (_rows_at_once(learner, batches), learner.graphs is None, learner.group.size)
    return batches.n_examples, tuple(batches.plan.shape), first, fields, values, states, how


def _rows_at_once(learner: Learner, batches: Batches) -> int:
    """Rows that a step runs together."""
    return batches.plan.shape[1] if learner.micro_batches is None else learner.micro_batches.size


def _tried(learner: Learner, batches: Batches, state: TrainState, z: Sequence[Metaparameter], first: int) -> Footprint:
    t, rows = _largest(batches.plan, first), _rows_at_once(learner, batches)
    everywhere = [m for m in z if m.only_step is None]
    trial = _Trial(learner, batches, state)
    trial.batch(t)
    reading = trial.reading

    on_cpu, compiled = state.params.device.type == "cpu", learner.graphs is not None
    if on_cpu:
        give_back()  # so that what is taken shows
    with resident_rise() as rise:
        trial.watched(lambda: trial.plain(t, everywhere), compiled)  # the first step, which is slower than others
    beside = max(0, rise[0] - trial.peak) if on_cpu and rise and not compiled else 0
    taped, seconds = trial.watched(lambda: trial.tape_and_pull(t, everywhere), compiled)
    taped = int((max(taped, state.nbytes) + _GRAPH_BYTES) * (_HOLES if on_cpu else 1))
    passing = taped if compiled else max(0, trial.peak - taped)  # of compiled code nothing is seen
    if (learner.group.alone and seconds < _TRIED_FOR) or compiled:  # the first time compiles
        seconds = trial.median(lambda: trial.tape_and_pull(t, everywhere))
    plain = trial.median(lambda: trial.plain(t, everywhere))

    once = 0.0
    for m in z:
        if m.only_step is not None:
            some, larger, times = m.part(learner, rows)
            _, own = trial.watched(partial(trial.act_once, some))
            once += times * own
            passing = max(passing, int(trial.peak + trial.slope(m, rows, larger) * (1 - 1 / larger)))
    warn_of_signs(learner)
    refuse_wrong_functions(learner, trial.batch(t), state)
    return Footprint(state.nbytes, taped, on_cpu, 1, passing, plain + reading, seconds + reading, once, beside)


def _largest(plan: Tensor, first: int) -> int:
    """The last of the steps with the largest batch: what acts in one step alone acts in the first of the replay."""
    rows = plan[first:]
    if rows.stride(0) == 0:
        return len(plan) - 1
    sizes = (rows >= 0).sum(dim=1)
    return first + int((sizes == sizes.max()).nonzero()[-1])


class _Trial:
    """Steps of a run, tried one at a time from one state."""

    def __init__(self, learner: Learner, batches: Batches, state: TrainState) -> None:
        self.learner, self.batches, self.state = learner, batches, state
        self.peak = 0
        self._batches: dict[int, Batch] = {}
        self.reading = 0.0  # seconds that the last batch took

    def batch(self, t: int) -> Batch:
        """That of step t, read once."""
        if t not in self._batches:
            self._batches[t], self.reading = self._timed(lambda: cast(self.batches(t), self.state))
        return self._batches[t]

    def tape_and_pull(self, t: int, z: Sequence[Metaparameter]) -> int:
        """Tape step t and pull through it; the bytes that its tape kept."""
        state, learner = self.state, self.learner
        leaves, start, batch = [m.leaf(state.params) for m in z], state.leaf(), self.batch(t)
        data = (self.batches.plan, *(x for x in self.batches.examples.values() if isinstance(x, Tensor)))
        lasting = (*data, *learner.parameters(), *learner.buffers(), *learner.layout.constants())
        lasting = (*lasting, *(m.value for m in leaves))
        before = {x.untyped_storage()._cdata for x in lasting}
        saved: dict[int, weakref.ref[torch.UntypedStorage]] = {}

        def see(x: Tensor) -> None:
            storage = x.untyped_storage()
            saved[storage._cdata] = weakref.ref(storage)

        with watching_saved_tensors(see):
            end = step(learner, start, batch, t, leaves, tape=True).state
        # What the graph of the gradient does not need is gone by now.
        there = [storage for key, kept in saved.items() if key not in before and (storage := kept()) is not None]
        size = sum(storage.nbytes() for storage in there)
        del there
        pull(learner, batch, state, [*start.tensors(), *(m.value for m in leaves)], end.tensors())
        return size

    def plain(self, t: int, z: Sequence[Metaparameter]) -> None:
        """Run step t."""
        leaves = [m.leaf(self.state.params) for m in z]
        fixed = [m.with_value(m.value.detach()) for m in leaves]
        step(self.learner, self.state, self.batch(t), t, fixed)

    def act_once(self, m: Metaparameter) -> None:
        """What a metaparameter adds to the gradient of its only step, and its derivative."""
        assert m.only_step is not None
        leaf, start, batch = m.leaf(self.state.params), self.state.leaf(), self.batch(m.only_step)
        with torch.enable_grad():
            nothing = torch.zeros_like(start.params)
            added = leaf.on_gradient(nothing, self.learner, start.params, start.buffers, m.only_step)
        pull(self.learner, batch, self.state, [start.params, leaf.value], [added])

    def slope(self, m: Metaparameter, rows: int, larger: float) -> float:
        """Bytes that the whole of what was just watched would add to none of it, by half as many rows."""
        whole = self.peak
        fewer, smaller, _ = m.part(self.learner, max(1, rows // 2))
        if larger == 1 or smaller == larger:
            return 0.0
        self.watched(lambda: self.act_once(fewer))
        half, self.peak = self.peak, whole
        return max(0.0, (whole - half) / (1 / larger - 1 / smaller))

    def objective(self, function: Callable[[Learner], Tensor]) -> None:
        """An objective and its derivative, at the state."""
        leaf = self.state.leaf()
        with torch.enable_grad(), self.learner.evaluating(leaf):
            value = function(self.learner)
        if value.requires_grad:
            torch.autograd.grad(value, leaf.tensors(), allow_unused=True)

    def watched(self, run: Callable[[], Result], compiled: bool = False) -> tuple[Result, float]:
        """What a run gives, and its seconds; then `peak` tells how many bytes of tensors there were at once: 0 of compiled code,
        which cannot be watched."""
        count = Allocations()
        with nullcontext() if compiled else count:
            found = self._timed(run)
        self.peak = count.peak
        return found

    def median(self, run: Callable[[], object]) -> float:
        """Seconds of a run; where it is short, the median of some."""
        found: list[float] = []
        alone = self.learner.group.alone  # all processes of a run must take the same steps
        while not found or (alone and sum(found) < _TRIED_FOR and len(found) < _TRIES):
            found.append(self._timed(run)[1])
        return statistics.median(found)

    def _timed(self, run: Callable[[], Result]) -> tuple[Result, float]:
        start = self._now()
        result = run()
        return result, self._now() - start

    def _now(self) -> float:
        if self.state.params.device.type == "cuda" and torch.cuda.is_available():  # a device may be pretended
            torch.cuda.synchronize(self.state.params.device)
        return time.perf_counter()

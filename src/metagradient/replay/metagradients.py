"""One call: train, replay, return the metagradient."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

from torch import Tensor

from metagradient.distributed import leaving_word
from metagradient.errors import UserError
from metagradient.learners.learner import Learner
from metagradient.replay.adjoint import Objective, objective_cotangents, replay
from metagradient.replay.budget import available_bytes, choose, format_bytes, parse_bytes, plan_named
from metagradient.replay.heap import keep_freed_memory
from metagradient.replay.plans import Plan
from metagradient.replay.recording import Recording
from metagradient.replay.saving import Backward, Saving, asked_for
from metagradient.replay.storage import MemoryStorage, SharedStorage, Storage, make_storage
from metagradient.replay.trial import Divisible, Prediction, measure
from metagradient.training.batches import Batches
from metagradient.training.metaparameters import Metaparameter
from metagradient.training.parallel.agreement import agree_on_end, agree_on_run
from metagradient.training.run import Progress, cast, check_loss, initial_state, run_mode
from metagradient.training.state import TrainState
from metagradient.training.steps import step

log = logging.getLogger(__name__)
_LONG = 60  # seconds from which on a replay is told of before it begins


@dataclass(frozen=True, eq=False)
class Metagradients:
    """The outcome of a replayed run.

    Attributes:
        gradients: d objective / d value by metaparameter name, in the value's shape ([Q, *shape] for Q objectives).
        objective: its value at the end of training, [] or [Q].
        state: the final training state.
        plan: the checkpoint plan that ran.
        cost: training-run equivalents: a step counts 1, a taped step with its pull 3.
        predicted: what the replay was to take, before it began; None where a saved one went on.
    """

    gradients: dict[str, Tensor]
    objective: Tensor
    state: TrainState
    plan: Plan
    cost: float
    predicted: Prediction | None = None

    def __getitem__(self, name: str) -> Tensor:
        return self.gradients[name]


def describe(plan: Plan) -> str:
    """A plan in one line."""
    if len(plan.segments) == 1:
        return f"replay plan {plan.name}: the whole run of {plan.steps} steps on tape"
    return (
        f"replay plan {plan.name}: {plan.steps} steps in segments of {plan.longest_segment}, {plan.slots} states "
        f"stored, {plan.forward_runs:.2f} plain runs before taping"
    )


@dataclass(frozen=True)
class HowToReplay:
    """The settings of a replay: see `metagradient`."""

    checkpoints: str = "auto"
    memory: str | int | None = None
    storage: str | Storage = "memory"
    save_to: str | Path | None = None
    save_every: float = 300.0


def start_recording(
    learner: Learner, batches: Batches, z: Sequence[Metaparameter], objective: Objective, how: HowToReplay
) -> tuple[Recording, TrainState]:
    """Check the metaparameters, choose the plan and give the state of step `Recording.start`; the learner must be in `run_mode`."""
    names = [m.name for m in z]
    if not names or len(set(names)) != len(names):
        raise UserError(f"a replay needs one or more metaparameters with distinct names, not {names}")
    for m in z:
        m.check(batches.n_examples, len(batches))
    like = learner.layout.params()
    state = initial_state(learner, [m.leaf(like) for m in z])
    agree_on_run(learner, batches, z, state)
    first = max(0, min(m.first_step for m in z))
    if first >= len(batches):
        raise UserError(f"the metaparameters enter at step {first}, but the run has only {len(batches)} steps")
    if like.device.type == "cpu":
        keep_freed_memory()
    store, saving = make_storage(how.storage), None
    if how.save_to is not None:
        saving = _saving(learner, batches, z, objective, state, how, store)
        if saving.found is not None:
            plan = plan_named(saving.found.plan, len(batches) - first)
            log.info("the replay saved in %s goes on with its plan, %s", how.save_to, plan.name)
            return Recording(learner, batches, z, plan, first, saving.storage, like, saving), saving.found.state
    footprint = measure(learner, batches, state, z, first, objective)
    budget = available_bytes(like.device) if how.memory is None else parse_bytes(how.memory)
    if not learner.group.alone:  # all processes walk the same plan
        mine = [footprint.taped_step, footprint.passing, footprint.beside, -budget]
        taped, passing, beside, less = learner.group.largest(mine)
        size, budget = learner.group.size, -less
        footprint = replace(footprint, taped_step=taped, passing=passing, beside=beside, processes=size)
    in_memory = isinstance(store, MemoryStorage)
    if not learner.group.alone:
        store = SharedStorage(store, learner.group)
    plan = choose(how.checkpoints, len(batches) - first, footprint, budget, stored_in_memory=in_memory)
    recording = Recording(learner, batches, z, plan, first, saving.storage if saving else store, like, saving)
    recording.predicted = Prediction(footprint.peak(plan, in_memory) + footprint.beside, footprint.seconds(plan, first))
    tell = log.info if recording.predicted.seconds > _LONG and isinstance(objective, Divisible) else log.debug
    span = timedelta(seconds=round(recording.predicted.seconds))
    tell("%s; about %s and %s are predicted", describe(plan), format_bytes(recording.predicted.peak), span)
    return recording, state


def _saving(
    learner: Learner,
    batches: Batches,
    z: Sequence[Metaparameter],
    objective: Objective,
    start: TrainState,
    how: HowToReplay,
    store: Storage,
) -> Saving:
    if not learner.group.alone:
        raise UserError(f"a replay is saved in one process, not in {learner.group.size}: leave save_to out")
    asked = asked_for(learner, batches, z, objective, start, how.checkpoints)
    return Saving(Path(str(how.save_to)), how.save_every, asked, store, start.params.device)


def _record(r: Recording, state: TrainState, progress: Progress | None) -> None:
    """Train to the end. Whoever holds a state here holds the graph of the last segment, which must go once it is pulled."""
    with r.batches.ahead(range(r.start, len(r.batches))):
        for t in range(r.start, len(r.batches)):
            state = r.enter(t, state)
            batch = cast(r.batches(t), state)
            before = state
            state, loss, _ = step(r.learner, state, batch, t, r.z, tape=r.taping)
            check_loss(loss, batch, t, r.learner, before, last=t + 1 == len(r.batches))
            if progress is not None:
                progress("training", t + 1, len(r.batches))
    r.finish(state)


def finish_recording(recording: Recording, objective: Objective, progress: Progress | None = None) -> Metagradients:
    """Differentiate the objective at the end of the recorded run and walk back."""
    r = recording
    backward = r.backward if r.backward is not None else _begun(r, objective)
    gradients = replay(r, backward, progress)
    if r.saving is not None:
        r.saving.close()
    cost = (r.first + r.plan.advanced_steps + 3 * r.plan.steps) / (r.first + r.plan.steps)
    return Metagradients(gradients, backward.value, backward.final, r.plan, cost, r.predicted)


def _begun(r: Recording, objective: Objective) -> Backward:
    """The backward pass before its first pull."""
    assert r.end is not None
    final = r.end.detach()
    agree_on_end(r.learner, final)
    with leaving_word(r.learner.group):
        value, cotangents, puller = objective_cotangents(r.learner, final, objective)
    lead = () if puller.queries is None else (puller.queries,)
    totals = [m.value.new_zeros((*lead, *m.value.shape)) for m in r.leaves]
    return Backward(value, final, cotangents, totals, puller.queries, puller.batched)


def metagradient(
    learner: Learner,
    batches: Batches,
    metaparameters: Metaparameter | Sequence[Metaparameter],
    objective: Objective,
    *,
    checkpoints: str = "auto",
    memory: str | int | None = None,
    storage: str | Storage = "memory",
    save_to: str | Path | None = None,
    save_every: float = 300.0,
    progress: Progress | None = None,
) -> Metagradients:
    """The exact gradient of an objective of the trained model with respect to metaparameters of its training.

    Trains `learner` on `batches` from the module's own parameters (which stay as they are) and replays the run
    backwards. With T steps, d phi(theta_T) / dz = sum_t d(A_{t+1} . h_t(s_t, z)) / dz (REPLAY, arXiv 2503.13751).

    Args:
        learner: its parameters are the run's start, and stay as they are.
        batches: the run's batches.
        metaparameters: one or more, with distinct names.
        objective: learner -> scalar, or [Q] for Q objectives in one replay; called in evaluation mode.
        checkpoints: auto, tape, all, sqrt, every(segment), tree(k), binomial(slots).
        memory: what checkpoints and tape may take, for instance "2GiB" (default: a quarter of the free memory).
        storage: memory, pinned or disk.
        save_to: a folder of its own, in which the replay saves its position now and then. Asked again for the same after it was
            killed, it goes on from there and ends in the same bits; then the folder goes. Checkpoints on disk lie there as well.
            (A run whose whole graph is kept, as under `tape`, starts again.) It keeps its plan, whatever `memory` is now. None: nowhere.
        save_every: seconds between two positions.
        progress: called now and then.

    Raises:
        UserError: what was given does not fit, no plan fits the memory, or `save_to` holds another replay.
        NonFiniteLoss: training diverged; the step is named.
        NonFiniteCotangent: a derivative is not finite; the step and the tensor are named.
        ReplayMismatch: a recomputed state differs from the recorded one.
    """
    z = [metaparameters] if isinstance(metaparameters, Metaparameter) else list(metaparameters)
    with run_mode(learner, batches):
        how = HowToReplay(checkpoints, memory, storage, save_to, save_every)
        recording, state = start_recording(learner, batches, z, objective, how)
        _record(recording, state, progress)
    return finish_recording(recording, objective, progress)

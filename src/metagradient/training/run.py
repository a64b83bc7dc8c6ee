"""Runs without a Trainer: the bare loop over the one step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from metagradient.distributed import leaving_word
from metagradient.errors import UserError, few
from metagradient.training.batches import Batch, Batches
from metagradient.training.metaparameters import Metaparameter
from metagradient.training.model import Model
from metagradient.training.modules.replayable import in_modes, modes_of
from metagradient.training.parallel.agreement import agree_on_end, agree_on_run
from metagradient.training.state import TrainState
from metagradient.training.steps import step

Progress = Callable[[str, int, int], None]
"""`progress(description, done, total)`, called now and then; whoever passes it in draws the bar."""


class NonFiniteLoss(UserError):
    """The loss became NaN or infinite at step `t`."""

    def __init__(self, message: str, t: int) -> None:
        super().__init__(message)
        self.t = t


def initial_state(learner: Model, z: Sequence[Metaparameter] = (), *, tape: bool = False) -> TrainState:
    """s_0: the module's own parameters (or what a metaparameter puts in their place), empty slots, its buffers."""
    layout = learner.layout
    params = layout.params()
    for m in z:
        params = m.on_start(params)
    params = params if tape else params.detach()
    return learner.update.start(params, layout.buffers(like=params).detach().clone())


def train(
    learner: Model,
    batches: Batches,
    z: Sequence[Metaparameter] = (),
    *,
    state: TrainState | None = None,
    start: int = 0,
    stop: int | None = None,
    progress: Progress | None = None,
) -> TrainState:
    """Run steps start .. stop - 1 (default: all) and return the state; the learner's own parameters stay as they were.

    `learner.adopt(state)` moves the result into the module. `z` enters with its values, nothing is taped.
    """
    stop = len(batches) if stop is None else stop
    for m in z:
        m.check(batches.n_examples, len(batches))
    with run_mode(learner, batches):
        state = initial_state(learner, z) if state is None else state
        agree_on_run(learner, batches, z, state)
        z = [m.with_value(m.value.detach().to(state.params.device, state.params.dtype)) for m in z]
        with batches.ahead(range(start, stop)):
            for t in range(start, stop):
                batch = cast(batches(t), state)
                before = state
                state, loss, _ = step(learner, state, batch, t, z)
                check_loss(loss, batch, t, learner, before, last=t + 1 == stop)
                if progress is not None:
                    progress("training", t + 1 - start, stop - start)
        agree_on_end(learner, state)
    return state


def cast(batch: Batch, state: TrainState) -> Batch:
    """The batch on the state's device and in its dtype."""
    return batch.to(state.params.device, state.params.dtype)


@contextmanager
def run_mode(learner: Model, batches: Batches) -> Iterator[None]:
    """Training mode for the length of a run; every module gets its own mode back afterwards."""
    if not callable(getattr(learner, "probe", None)):
        raise UserError(
            f"{type(learner).__name__} is no Learner: a model goes into mg.Classifier(model), a LightningModule into "
            "mg.Learner.from_lightning(module, losses)"
        )
    with leaving_word(learner.group), in_modes(modes_of(learner.modules())):
        learner.train()
        learner.probe(batches)
        yield


def check_loss(loss: Tensor, batch: Batch, t: int, learner: Model, before: TrainState, *, last: bool = False) -> None:
    """Stop at the first loss that is not finite. On a GPU only every 50th step and the last are looked at: each look is a sync.

    Rows are named whose inputs are not finite, or whose own loss at the state `before` the step is not. Of runs that are
    stacked, [R], the first whose loss is not finite is looked at.
    """
    if loss.is_cuda and t % 50 and not last:
        return
    value = loss.item() if loss.dim() == 0 else loss.sum().item()
    if math.isfinite(value):
        return
    if loss.dim():
        value, batch, before = _one_run(loss, batch, before)
    raise NonFiniteLoss(
        f"the training loss is {value} at step {t} ({_culprits(batch, t, learner, before)}; "
        f"learning rate {float(learner.update.hyper(t)['learning_rate']):.3g}): lower learner.learning_rate or look at these rows",
        t,
    )


def _one_run(losses: Tensor, batch: Batch, before: TrainState) -> tuple[float, Batch, TrainState]:
    """The first of R runs whose loss is not finite: its loss, batch and state."""
    run = int((~losses.isfinite()).nonzero()[0]) if not bool(losses.isfinite().all()) else 0
    if batch.index.dim() == 2:
        fields = {name: field[run] for name, field in batch.fields.items()}
        batch = Batch(batch.t, batch.index[run], fields, batch.seed)
    return losses[run].item(), batch, TrainState.of([x[run] for x in before.tensors()])


def _culprits(batch: Batch, t: int, learner: Model, before: TrainState) -> str:
    """What is wrong with which rows of the training set, in words."""
    for name, field in batch.fields.items():
        if field.is_floating_point() and field.dim() > 1 and not bool(field.isfinite().all()):
            return f"{name} is not finite in rows {_named(batch, ~field.isfinite().flatten(1).all(1))}"
    if not bool(before.params.isfinite().all()):
        return "the parameters were not finite any more"
    with torch.no_grad(), learner.running(before.params, before.buffers, batch.seed, t):
        bad = ~learner.losses(batch).isfinite()
    if bool(bad.all()):
        return f"that of each of the batch's {len(batch)} rows is not finite"
    return (
        f"batch rows {_named(batch, bad)}" if bool(bad.any()) else "though that of each of the batch's rows is finite"
    )


def _named(batch: Batch, bad: Tensor) -> str:
    return few(batch.index[bad.to(batch.index.device)].tolist())

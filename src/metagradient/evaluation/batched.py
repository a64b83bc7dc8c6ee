"""Many trainings at once: states stacked to [R, P], moved by the one step."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from metagradient.errors import UserError
from metagradient.learners.learner import Learner
from metagradient.training.batches import Batch, Batches, Fields
from metagradient.training.metaparameters import DataWeights
from metagradient.training.run import Progress, cast, check_loss, initial_state, run_mode, train
from metagradient.training.sources import in_order
from metagradient.training.state import TrainState
from metagradient.training.steps import step

log = logging.getLogger(__name__)


def train_batched(
    learner: Learner,
    batches: Batches | Sequence[Batches],
    weights: Tensor | None = None,
    initial: TrainState | None = None,
    *,
    at_once: int = 50,
    progress: Progress | None = None,
) -> TrainState:
    """R trainings; their final states stacked, tensors [R, P].

    The runs differ in any of three ways; what is given once is shared by all:

    Args:
        learner: lends its architecture, losses and update.
        batches: one `Batches` (the same order, the same augmentation), or R of them with equal numbers of steps and
            of examples in each step.
        weights: [R, n] loss weights of the examples, 0 for a removed one; None: all 1.
        initial: a stacked state of R; one state for all; None: the learner's own parameters.
        at_once: runs moved together.
        progress: called now and then.

    The runs move together, `at_once` at a time, through `step` on stacked states (`torch.func.vmap` of the losses).
    They agree with single runs to rounding, not to the bit. Convolutions, batch norms and dropout gain nothing from
    it, or have no batching rule: such models are trained one run after the other, to the same result.

    Raises:
        UserError: the three disagree about R.
        NonFiniteLoss: a run diverged.
    """
    initial = initial_state(learner) if initial is None else initial
    runs = _count(batches, weights, initial)
    together = can_batch(learner)
    if not together:
        log.info("%d runs of %s are trained one after the other", runs, type(learner).__name__)
    parts, done = [], 0
    steps = len(batches if isinstance(batches, Batches) else batches[0])
    for rows in torch.arange(runs).split(at_once if together else 1):
        chosen = slice(int(rows[0]), int(rows[-1]) + 1)
        orders = batches if isinstance(batches, Batches) else batches[chosen]
        state = TrainState.of([x if x.dim() == 1 else x[chosen] for x in initial.tensors()])
        part = None if weights is None else weights[chosen]
        if together:
            parts.append(_train_stack(learner, orders, part, state, len(rows), (done, runs), progress))
        else:
            state = TrainState.of([x if x.dim() == 1 else x[0] for x in state.tensors()])
            order = orders if isinstance(orders, Batches) else orders[0]
            z = () if part is None else (DataWeights(part[0]),)
            parts.append(TrainState.stack([train(learner, order, z, state=state)]))
        done += len(rows)
        if progress is not None:
            progress("retraining", done * steps, runs * steps)
    return TrainState.of([torch.cat(column) for column in zip(*(p.tensors() for p in parts), strict=True)])


def losses_of_runs(learner: Learner, states: TrainState, examples: Fields, chunk: int = 2048) -> Tensor:
    """The loss of each example under each of the stacked states, [R, n], in evaluation mode, on the CPU."""
    columns = []

    def losses(params: Tensor, buffers: Tensor, batch: Batch) -> Tensor:
        with learner.evaluating(TrainState(params, (), buffers)):
            return learner.losses(batch)

    with torch.no_grad():
        for rows, fields in in_order(examples, chunk):
            batch = Batch(0, rows, fields).to(states.params.device, states.params.dtype)
            if can_batch(learner):
                part = torch.func.vmap(losses, in_dims=(0, 0, None))(states.params, states.buffers, batch)
            else:
                pairs = zip(states.params, states.buffers, strict=True)
                part = torch.stack([losses(params, buffers, batch) for params, buffers in pairs])
            columns.append(part.cpu())
    return torch.cat(columns, dim=1)


def can_batch(learner: Learner) -> bool:
    """Whether stacked states are worth while: no convolution, batch norm or active dropout in the learner."""
    alone = (nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm)
    return not any(
        isinstance(m, alone) or (isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0) for m in learner.modules()
    )


def _count(batches: Batches | Sequence[Batches], weights: Tensor | None, initial: TrainState) -> int:
    """R, as all that is given for each run says."""
    said = {
        "batches": None if isinstance(batches, Batches) else len(batches),
        "weights": None if weights is None else len(weights),
        "initial": len(initial.params) if initial.params.dim() == 2 else None,
    }
    counts = {name: count for name, count in said.items() if count is not None}
    if len(set(counts.values())) != 1:
        raise UserError(f"train_batched needs the same number of runs wherever there is one per run, not {counts}")
    return next(iter(counts.values()))


def _train_stack(
    learner: Learner,
    batches: Batches | Sequence[Batches],
    weights: Tensor | None,
    state: TrainState,
    runs: int,
    done: tuple[int, int],
    progress: Progress | None,
) -> TrainState:
    state = TrainState.of([x.expand(runs, -1) if x.dim() == 1 else x for x in state.tensors()])
    first = batches if isinstance(batches, Batches) else batches[0]
    z = () if weights is None else (DataWeights(weights.to(state.params.device, state.params.dtype)),)
    for m in z:
        m.check(first.n_examples, len(first))
    with run_mode(learner, first):
        for t, batch in enumerate(_batches(batches)):
            batch = cast(batch, state)
            before = state
            state, loss, _ = step(learner, state, batch, t, z)
            check_loss(loss, batch, t, learner, before, last=t + 1 == len(first))
            if progress is not None:
                progress("retraining", done[0] * len(first) + (t + 1) * runs, done[1] * len(first))
    return state


def _batches(batches: Batches | Sequence[Batches]) -> Iterator[Batch]:
    """Step by step, the batch of all runs: one that they share, or theirs stacked."""
    if isinstance(batches, Batches):
        with batches.ahead(range(len(batches))):
            yield from (batches(t) for t in range(len(batches)))
        return
    if len({len(b) for b in batches}) != 1:
        raise UserError(f"runs that are trained at once need equally many steps, not {[len(b) for b in batches]}")
    for t in range(len(batches[0])):
        rows = [b(t) for b in batches]
        if len({len(batch) for batch in rows}) != 1:
            raise UserError(f"runs that are trained at once need batches of one size; at step {t} they differ")
        fields = {name: torch.stack([batch[name] for batch in rows]) for name in rows[0].fields}
        yield Batch(t, torch.stack([batch.index for batch in rows]), fields, rows[0].seed)

"""The loss gradient of a step whose batch is shared by a group of processes.

What a metaparameter does to a batch, to its weights or to the update, all processes do alike, for the whole batch. Only the
losses are divided: each process runs those of its own rows, and the gradient is the sum over all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor

from metagradient.distributed import SOLO, Group, copy, gather, leaving_word, reduce, summed
from metagradient.errors import UserError
from metagradient.training.batches import Batch
from metagradient.training.losses import computed_with, contrast, differ, rows_of
from metagradient.training.microbatches import a_little_beside, refuse_tied
from metagradient.training.model import Differentiate, Embedding, LossGradient, Model
from metagradient.training.random import Part, part_of_batch

_WAY_OUT = "run it in one process"
_checked: WeakSet[Model] = WeakSet()


@contextmanager
def by_itself(learner: Any) -> Iterator[Group]:
    """Inside, this process runs the learner without the others of its group, which is given."""
    group, learner.group = learner.group, SOLO
    try:
        with leaving_word(group):
            yield group
    finally:
        learner.group = group


def over_ranks(own: Differentiate, learner: Model) -> Differentiate:
    """`own`, the loss gradient of the rows of one process, as that of the whole batch: the same values up to rounding.

    Raises:
        UserError: losses in which examples see each other otherwise than by batch norm, or that draw from torch's global
            generator.
    """
    if learner.group.alone:
        return own
    return _contrasted if isinstance(learner, Embedding) else partial(_summed, own)


def _summed(
    own: Differentiate,
    learner: Model,
    params: Tensor,
    buffers: Tensor,
    batch: Batch,
    coefficients: Tensor | None,
    t: int,
    *,
    tape: bool,
) -> LossGradient:
    group, total = learner.group, len(batch)
    _refuse(learner, params, buffers, batch, t)
    if coefficients is None:
        coefficients = params.new_full((total,), 1 / total)
    start, stop, counted = group.rows(total)
    moved = [name for name, x in batch.fields.items() if x.requires_grad]

    first = float(group.rank == 0)  # whose buffers, the same in all processes, are those of the step

    def of_own_rows(params: Tensor, buffers: Tensor, coefficients: Tensor, *fields: Tensor) -> tuple[Tensor, ...]:
        rows = rows_of(batch.replace(**dict(zip(moved, fields, strict=True))), start, stop)
        params = params if tape else params.detach().requires_grad_()
        with part_of_batch(Part(start, stop, total, batch.fields, group)):
            factors = counted * coefficients[..., start:stop]
            gradient, after, loss = own(learner, params, buffers, rows, factors, t, tape=tape)
        return gradient, loss, first * after

    with torch.set_grad_enabled(tape):
        gradient, loss, after = summed(
            group, of_own_rows, params, buffers, coefficients, *(batch[name] for name in moved)
        )
    return gradient, after, loss


def _contrasted(
    learner: Model,
    params: Tensor,
    buffers: Tensor,
    batch: Batch,
    coefficients: Tensor | None,
    t: int,
    *,
    tape: bool,
) -> LossGradient:
    """Where a row's loss is a function of the features of all rows: each process embeds its own, and all contrast all.

    With f_r the features of process r and L the loss as a function of all of them, the gradient is the sum over r of
    (d f_r / d theta)^T dL/df_r, and dL/d theta at fixed features, which all processes find alike.
    """
    assert isinstance(learner, Embedding)
    group, total = learner.group, len(batch)
    dim = params.dim() - 1  # of the rows: stacked runs come first
    _refuse(learner, params, buffers, batch, t)
    start, stop, counted = group.rows(total)
    moved = [name for name, x in batch.fields.items() if x.requires_grad]
    with torch.set_grad_enabled(tape):
        own, own_buffers, *fields, zero = copy(
            group, params, buffers, *(batch[name] for name in moved), params.new_zeros(())
        )
    with torch.enable_grad():
        own, fixed = (own, params.view_as(params)) if tape else (x.detach().requires_grad_() for x in (own, params))
        rows = rows_of(batch.replace(**dict(zip(moved, fields, strict=True))), start, stop)
        with part_of_batch(Part(start, stop, total, batch.fields, group)):
            features, after = computed_with(learner, own, own_buffers, rows, t, learner.embed)
        shown = [x.narrow(dim, 0, counted * (stop - start)) for x in features]
        # In one call: the cotangents of several might be summed in another order elsewhere.
        features = gather(group, total, *shown, dim=dim)
        losses, _ = computed_with(learner, fixed, buffers, batch, t, contrast(learner), *features)
        loss = losses.mean(dim=-1) if coefficients is None else (coefficients * losses).sum(dim=-1)
        found, at_fixed = torch.autograd.grad(loss.sum(), (own, fixed), create_graph=tape, materialize_grads=True)
    with torch.set_grad_enabled(tape):
        # The buffers are the same in all processes: those of the first are the step's.
        gradient, after = reduce(group, found + zero, float(group.rank == 0) * after)
        return at_fixed + gradient, after, loss


def _refuse(learner: Model, params: Tensor, buffers: Tensor, batch: Batch, t: int) -> None:
    """What would not be the whole batch's; once a learner, and alike in all processes.

    Of a few rows, at parameters a little beside these (a head of zeros hides what comes before it), the losses or features that
    the processes find together must be those that one finds, and the buffers that they leave.
    """
    if learner in _checked or params.dim() != 1 or len(batch) == 1:
        return
    group = learner.group
    if learner.needs.foreign_randomness:
        raise UserError(
            "losses() draw from torch's global generator, so several devices would draw other numbers than one: use nn.Dropout, "
            f"or {_WAY_OUT}"
        )
    if learner.graphs is not None:
        raise UserError(f"compiled steps run on one device: set learner.compiled=false, or {_WAY_OUT}")
    if learner.micro_batches is not None:
        if isinstance(learner, Embedding):
            raise UserError(
                f"a contrastive loss over several devices embeds a share at once: set learner.micro_batch=null, or {_WAY_OUT}"
            )
        refuse_tied(learner, params, buffers, batch, t)
    function = learner.embed if isinstance(learner, Embedding) else learner.losses
    rows, beside = rows_of(batch, 0, min(len(batch), 2 * group.size)), a_little_beside(params)
    total = len(rows)
    start, stop, counted = group.rows(total)
    with torch.no_grad():
        together, left = computed_with(learner, beside, buffers, rows, t, function)
        with part_of_batch(Part(start, stop, total, rows.fields, group)):
            own, after = computed_with(learner, beside, buffers, rows_of(rows, start, stop), t, function)
        own, together = ((x,) if isinstance(x, Tensor) else x for x in (own, together))
        apart = gather(group, total, *(x[: counted * (stop - start)] for x in own))
    other = any(differ(x, y) for x, y in zip(together, apart, strict=True)) or differ(left, after)
    if group.largest([int(other)])[0]:
        raise UserError(
            "an example's loss depends on the others of its batch, or changes buffers by them, so shares of several devices are "
            "not the whole batch: use batch, group or layer norms, write embed(batch) and losses_of(features, batch), or "
            f"{_WAY_OUT}"
        )
    _checked.add(learner)

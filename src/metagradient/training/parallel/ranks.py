"""The loss gradient of a step whose batch is shared by a group of processes.

What a metaparameter does to a batch, to its weights or to the update, all processes do alike, for the whole batch. Only the
losses are divided: each process runs those of its own rows, and the gradient is the sum over all of them.
"""

from __future__ import annotations

from functools import partial
from weakref import WeakSet

import torch
from torch import Tensor

from metagradient.distributed import copy, gather, reduce, summed
from metagradient.errors import UserError
from metagradient.training.batches import Batch
from metagradient.training.losses import computed_with, contrast, rows_of
from metagradient.training.microbatches import refuse_statistics, refuse_tied
from metagradient.training.model import Differentiate, Embedding, LossGradient, Model
from metagradient.training.random import part_of_batch, part_within

_PARTS, _WAY_OUT = "shares of several devices", "train on one, trainer.devices=1"
_checked: WeakSet[Model] = WeakSet()


def over_ranks(own: Differentiate, learner: Model) -> Differentiate:
    """`own`, the loss gradient of the rows of one process, as that of the whole batch: the same values up to rounding.

    Raises:
        UserError: losses in which examples see each other (batch statistics), or that draw from torch's global generator.
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
    total = len(batch)
    _refuse(learner, params, buffers, batch, t)
    if coefficients is None:
        coefficients = params.new_full((total,), 1 / total)
    start, stop, counted = learner.group.rows(total)
    moved = [name for name, x in batch.fields.items() if x.requires_grad]

    def of_own_rows(params: Tensor, buffers: Tensor, coefficients: Tensor, *fields: Tensor) -> tuple[Tensor, ...]:
        rows = rows_of(batch.replace(**dict(zip(moved, fields, strict=True))), start, stop)
        params = params if tape else params.detach().requires_grad_()
        with part_of_batch(part_within(start, stop, total, batch.fields)):
            factors = counted * coefficients[..., start:stop]
            gradient, after, loss = own(learner, params, buffers, rows, factors, t, tape=tape)
        refuse_statistics(learner, buffers, after, _PARTS, _WAY_OUT)
        return gradient, loss

    with torch.set_grad_enabled(tape):
        gradient, loss = summed(
            learner.group, of_own_rows, params, buffers, coefficients, *(batch[name] for name in moved)
        )
    return gradient, buffers, loss


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
    group, total, dim = learner.group, len(batch), params.dim() - 1  # of the rows: stacked runs come first
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
        with part_of_batch(part_within(start, stop, total, batch.fields)):
            features, after = computed_with(learner, own, own_buffers, rows, t, learner.embed)
        refuse_statistics(learner, buffers, after, _PARTS, _WAY_OUT)
        shown = [x.narrow(dim, 0, counted * (stop - start)) for x in features]
        features = gather(
            group, total, *shown, dim=dim
        )  # in one call: several might come back in another order elsewhere
        losses, _ = computed_with(learner, fixed, buffers, batch, t, contrast(learner), *features)
        loss = losses.mean(dim=-1) if coefficients is None else (coefficients * losses).sum(dim=-1)
        found, at_fixed = torch.autograd.grad(loss.sum(), (own, fixed), create_graph=tape, materialize_grads=True)
    with torch.set_grad_enabled(tape):
        return at_fixed + reduce(group, found + zero)[0], buffers, loss


def _refuse(learner: Model, params: Tensor, buffers: Tensor, batch: Batch, t: int) -> None:
    """What would not be the whole batch's; once a learner, and alike in all processes."""
    if learner in _checked or params.dim() != 1:
        return
    if learner.needs.foreign_randomness:
        raise UserError(
            "losses() draw from torch's global generator, so several devices would draw other numbers than one: use nn.Dropout, "
            f"or {_WAY_OUT}"
        )
    if isinstance(learner, Embedding) and learner.micro_batches is not None:
        raise UserError(
            f"a contrastive loss over several devices embeds a share at once: set learner.micro_batch=null, or {_WAY_OUT}"
        )
    if len(batch) > 1:
        refuse_tied(learner, params, buffers, batch, t, _PARTS, _WAY_OUT)
        _checked.add(learner)

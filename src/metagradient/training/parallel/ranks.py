"""The loss gradient of a step whose batch is shared by a group of processes.

What a metaparameter does to a batch, to its weights or to the update, all processes do alike, for the whole batch. Only the
losses are divided: each process runs those of its own rows, and the gradient is the sum over all of them.
"""

from __future__ import annotations

from functools import partial
from weakref import WeakSet

import torch
from torch import Tensor

from metagradient.distributed import summed
from metagradient.errors import UserError
from metagradient.training.batches import Batch
from metagradient.training.losses import rows_of
from metagradient.training.microbatches import refuse_statistics, refuse_tied
from metagradient.training.model import Differentiate, Embedding, LossGradient, Model
from metagradient.training.random import part_of_batch, part_within

_PARTS, _WAY_OUT = "shares of several devices", "train on one, trainer.devices=1"
_checked: WeakSet[Model] = WeakSet()


def over_ranks(own: Differentiate, learner: Model) -> Differentiate:
    """`own`, the loss gradient of the rows of one process, as that of the whole batch: the same values up to rounding.

    Processes without rows, of a batch that is smaller than the group, take part with zeros.

    Raises:
        UserError: losses in which examples see each other (batch statistics), or that draw from torch's global generator.
    """
    return own if learner.group.alone else partial(_summed, own)


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
    total, runs = len(batch), params.shape[:-1]
    _refuse(learner, params, buffers, batch, t)
    if coefficients is None:
        coefficients = params.new_full((total,), 1 / total)
    start, stop = learner.group.share(total)
    moved = [name for name, x in batch.fields.items() if x.requires_grad]

    def of_own_rows(params: Tensor, buffers: Tensor, coefficients: Tensor, *fields: Tensor) -> tuple[Tensor, ...]:
        if start == stop:
            return torch.zeros_like(params), params.new_zeros(runs)
        rows = rows_of(batch.replace(**dict(zip(moved, fields, strict=True))), start, stop)
        params = params if tape else params.detach().requires_grad_()
        with part_of_batch(part_within(start, stop, total, batch.fields)):
            gradient, after, loss = own(learner, params, buffers, rows, coefficients[..., start:stop], t, tape=tape)
        refuse_statistics(learner, buffers, after, _PARTS, _WAY_OUT)
        return gradient, loss

    with torch.set_grad_enabled(tape):
        gradient, loss = summed(
            learner.group, of_own_rows, params, buffers, coefficients, *(batch[name] for name in moved)
        )
    return gradient, buffers, loss


def _refuse(learner: Model, params: Tensor, buffers: Tensor, batch: Batch, t: int) -> None:
    """What would not be the whole batch's; once a learner, and alike in all processes."""
    if learner in _checked or params.dim() != 1:
        return
    if learner.needs.foreign_randomness:
        raise UserError(
            "losses() draw from torch's global generator, so several devices would draw other numbers than one: use nn.Dropout, "
            f"or {_WAY_OUT}"
        )
    if isinstance(learner, Embedding):
        raise UserError(f"contrastive losses over several devices are not there yet: {_WAY_OUT}")
    if len(batch) > 1:
        refuse_tied(learner, params, buffers, batch, t, _PARTS, _WAY_OUT)
        _checked.add(learner)

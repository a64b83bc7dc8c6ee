"""Gradient accumulation: a step whose batch is run a few rows at a time, forwards and in the adjoint."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from metagradient.errors import UserError
from metagradient.training.batches import Batch
from metagradient.training.losses import (
    computed_with,
    contrast,
    differ,
    losses_and_buffers,
    losses_in_parts,
    rows_of,
)
from metagradient.training.model import Embedding, LossGradient, Model
from metagradient.training.modules.pulling import pulled
from metagradient.training.random import Part, part_of_batch, part_within
from metagradient.training.saved_tensors import watching_saved_tensors

Compute = Callable[..., tuple[Tensor, ...]]
"""(create_graph, params, buffers, *inputs) -> outputs; connected to the inputs with `create_graph`."""

_WAY_OUT = "set learner.micro_batch=null"


class MicroBatches:
    """The loss gradient of a step as a sum over micro-batches of at most `size` rows.

    Called like `steps.loss_gradient`, whose values it gives up to rounding, with the activations of one micro-batch in
    memory at a time: a taped step keeps none of them, its adjoint computes each micro-batch again. Random draws are those
    of the whole batch.

    Losses of a learner that is an `Embedding` see the features of the whole batch. With f_m the features of micro-batch m
    and L the loss as a function of all of them, the gradient is the sum over m of (d f_m / d theta)^T dL/df_m,
    and dL/d theta at fixed features.

    Raises:
        UserError: examples see each other otherwise (batch statistics), or draw from torch's global generator.
    """

    def __init__(self, size: int) -> None:
        if size < 1:
            raise UserError(f"micro_batch must be an integer >= 1, or None, not {size}: {_WAY_OUT}")
        self.size, self._checked = size, False

    def __call__(
        self,
        learner: Model,
        params: Tensor,
        buffers: Tensor,
        batch: Batch,
        coefficients: Tensor | None,
        t: int,
        *,
        tape: bool,
    ) -> LossGradient:
        if learner.needs.foreign_randomness:
            raise UserError(
                "losses() draw from torch's global generator, so micro-batches would draw other numbers than the whole batch: "
                f"use nn.Dropout, or {_WAY_OUT}"
            )
        if not self._checked and params.dim() == 1 and len(batch) > 1:
            self._checked = True
            refuse_tied(learner, params, buffers, batch, t)
        if coefficients is None:
            coefficients = params.new_full((len(batch),), 1 / len(batch))
        differentiate = _contrasted if isinstance(learner, Embedding) else _summed
        gradient, loss = differentiate(learner, params, buffers, batch, coefficients, t, self.size, tape)
        return gradient, buffers, loss


def _parts(
    learner: Model, batch: Batch, t: int, size: int, function: Callable[..., Any]
) -> list[tuple[Compute, tuple[Tensor, ...], slice]]:
    """Of each micro-batch: `function` of its rows as a `Compute` of (params, buffers, *inputs, *fields), its fields, its rows."""

    def compute(
        rows: Batch, part: Part, create_graph: bool, params: Tensor, buffers: Tensor, *inputs: Tensor
    ) -> tuple[Tensor, ...]:
        given = dict(zip(rows.fields, inputs[len(inputs) - len(rows.fields) :], strict=True))
        here = Batch(t, rows.index, given, rows.seed)
        with part_of_batch(part):
            return function(create_graph, params, buffers, here, *inputs[: len(inputs) - len(given)])

    found: list[tuple[Compute, tuple[Tensor, ...], slice]] = []
    for start in range(0, len(batch), size):
        stop = min(start + size, len(batch))
        rows = rows_of(batch, start, stop)
        found.append(
            (
                partial(compute, rows, part_within(start, stop, len(batch), batch.fields)),
                tuple(rows.fields.values()),
                slice(start, stop),
            )
        )
    return found


def _summed(
    learner: Model,
    params: Tensor,
    buffers: Tensor,
    batch: Batch,
    coefficients: Tensor,
    t: int,
    size: int,
    tape: bool,
) -> tuple[Tensor, Tensor]:
    """(gradient, loss) where a row's loss is its own."""

    def of_rows(
        create_graph: bool, params: Tensor, buffers: Tensor, rows: Batch, coefficients: Tensor
    ) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            losses, after = losses_and_buffers(learner, params, buffers, rows, t)
            _refuse_statistics(learner, buffers, after)
            loss = (coefficients * losses).sum(dim=-1)
            (found,) = torch.autograd.grad(loss.sum(), params, create_graph=create_graph)
        return found, loss

    gradient, loss = torch.zeros_like(params), params.new_zeros(params.shape[:-1])
    for compute, fields, rows in _parts(learner, batch, t, size, of_rows):
        found, value = _apply(compute, tape, params, buffers, coefficients[..., rows], *fields)
        gradient, loss = gradient + found, loss + value
    return gradient, loss


def _contrasted(
    learner: Model,
    params: Tensor,
    buffers: Tensor,
    batch: Batch,
    coefficients: Tensor,
    t: int,
    size: int,
    tape: bool,
) -> tuple[Tensor, Tensor]:
    """(gradient, loss) where a row's loss is a function of the features of all rows."""
    assert isinstance(learner, Embedding)
    row_wise = learner.embed

    def embed(create_graph: bool, params: Tensor, buffers: Tensor, rows: Batch) -> tuple[Tensor, ...]:
        with torch.set_grad_enabled(create_graph):
            features, after = computed_with(learner, params, buffers, rows, t, row_wise)
            _refuse_statistics(learner, buffers, after)
        return tuple(features)

    def pull(create_graph: bool, params: Tensor, buffers: Tensor, rows: Batch, *cotangents: Tensor) -> tuple[Tensor]:
        features = embed(True, params, buffers, rows)
        return (pulled(features, [params], cotangents, create_graph)[0],)

    parts = [
        _apply(compute, tape, params, buffers, *fields) for compute, fields, _ in _parts(learner, batch, t, size, embed)
    ]
    dim = params.dim() - 1  # of the rows: stacked runs come first
    features = [torch.cat(column, dim) for column in zip(*parts, strict=True)]
    with torch.enable_grad():
        if not tape:
            features = [x.detach().requires_grad_(x.is_floating_point()) for x in features]
        # Another node than `params`, so that its gradient is the one at fixed features.
        own = params.view_as(params)
        losses, _ = computed_with(learner, own, buffers, batch, t, contrast(learner), *features)
        loss = (coefficients * losses).sum(dim=-1)
        gradient, *cotangents = pulled([loss.sum()], [own, *features], [torch.ones_like(loss.sum())], tape)
    for compute, fields, rows in _parts(learner, batch, t, size, pull):
        own_rows = [x.narrow(dim, rows.start, rows.stop - rows.start) for x in cotangents]
        (found,) = _apply(compute, tape, params, buffers, *own_rows, *fields)
        gradient = gradient + found
    return gradient, loss


def _apply(compute: Compute, tape: bool, params: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    """The outputs; of a taped step without what lies between, but for stacked runs, which nothing differentiates."""
    if tape and params.dim() == 1:
        return _Recomputed.apply(compute, params, *inputs)  # type: ignore[no-untyped-call, no-any-return]
    return compute(tape, params, *inputs)


class _Recomputed(torch.autograd.Function):
    """What a `Compute` gives, keeping its inputs alone: its adjoint makes the graph, pulls through it and drops it."""

    @staticmethod
    def forward(ctx: Any, compute: Compute, params: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        ctx.compute = compute
        ctx.save_for_backward(params, *inputs)
        with watching_saved_tensors(lambda x: None):  # whoever watches the step need not see what is gone after it
            outputs = compute(False, params.detach().requires_grad_(), *inputs)
        return tuple(x.detach() for x in outputs)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        wanted = ctx.needs_input_grad[1:]
        leaves = [x.detach().requires_grad_(need) for x, need in zip(ctx.saved_tensors, wanted, strict=True)]
        leaves[0].requires_grad_()
        with torch.enable_grad():
            outputs = ctx.compute(True, *leaves)
        found = pulled(outputs, leaves, cotangents)
        return None, *(x if need else None for x, need in zip(found, wanted, strict=True))


def _refuse_statistics(learner: Model, before: Tensor, after: Tensor) -> None:
    if before.numel() and not torch.equal(after, before):
        raise UserError(
            f"the losses change buffers ({_statistics(learner) or 'batch statistics?'}), so micro-batches are not the whole "
            f"batch: use group or layer norms, or {_WAY_OUT}"
        )


def _statistics(learner: Model) -> str:
    """The modules that normalise by the batch, in words."""
    found = [name for name, m in learner.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    return f"batch norm {found[0]}{f' and {len(found) - 1} more' if len(found) > 1 else ''}" if found else ""


def a_little_beside(params: Tensor) -> Tensor:
    """Parameters at which nothing is hidden by a head of zeros."""
    rng = torch.Generator().manual_seed(0)
    noise = torch.randn(params.shape, generator=rng, dtype=torch.float64).to(params)
    return params.detach() + (0.1 * params.detach().abs() + 0.05) * noise


def refuse_tied(learner: Model, params: Tensor, buffers: Tensor, batch: Batch, t: int) -> None:
    """Refuse losses of a few rows together that are not those of their halves."""
    beside = a_little_beside(params)
    rows = rows_of(batch, 0, min(len(batch), 8))
    with torch.no_grad():
        together, apart = (
            losses_in_parts(learner, beside, buffers, rows, t, size) for size in (len(rows), (len(rows) + 1) // 2)
        )
    if differ(together, apart):
        what = _statistics(learner) or "a contrastive loss, batch statistics"
        raise UserError(
            f"an example's loss depends on the others of its batch ({what}), so micro-batches are not the whole batch: use group "
            f"or layer norms, write embed(batch) and losses_of(features, batch), or {_WAY_OUT}"
        )

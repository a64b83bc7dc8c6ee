"""Gradient accumulation: a step whose batch is run a few rows at a time, forwards and in the adjoint."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from metagradient.errors import UserError
from metagradient.training.batches import Batch
from metagradient.training.model import LossGradient, Model
from metagradient.training.random import part_of_batch
from metagradient.training.saved_tensors import watching_saved_tensors
from metagradient.training.steps import losses_and_buffers

Compute = Callable[..., tuple[Tensor, Tensor]]
"""(params, buffers, coefficients, fields, create_graph) -> (gradient of the weighted sum, the sum)."""


class MicroBatches:
    """The loss gradient of a step as a sum over micro-batches of at most `size` rows.

    Called like `steps.loss_gradient`, whose values it gives up to rounding, with the activations of one micro-batch in
    memory at a time: a taped step keeps none of them, its adjoint computes each micro-batch again. Random draws are those
    of the whole batch.

    Raises:
        UserError: examples see each other (batch statistics, contrastive losses), or draw from torch's global generator.
    """

    def __init__(self, size: int) -> None:
        if size < 1:
            raise UserError(f"micro_batch must be an integer >= 1, or None, not {size}: set learner.micro_batch=null")
        self.size, self._checked = size, False

    def __call__(
        self,
        learner: Model,
        params: Tensor,
        buffers: Tensor,
        batch: Batch,
        weights: Tensor | None,
        t: int,
        *,
        tape: bool,
    ) -> LossGradient:
        if learner.needs.foreign_randomness:
            raise UserError(
                "losses() draw from torch's global generator, so micro-batches would draw other numbers than the whole batch: "
                "use nn.Dropout, or set learner.micro_batch=null"
            )
        if not self._checked and params.dim() == 1 and len(batch) > 1:
            self._checked = True
            _refuse_tied(learner, params, buffers, batch, t)
        coefficients = _coefficients(params, batch, weights, learner.normalize)
        gradient, loss = torch.zeros_like(params), params.new_zeros(params.shape[:-1])
        names, total = list(batch.fields), len(batch)
        for start in range(0, total, self.size):
            stop = min(start + self.size, total)
            rows = torch.arange(start, stop, device=batch.index.device)
            dim = batch.index.dim() - 1

            def compute(
                params: Tensor,
                buffers: Tensor,
                coefficients: Tensor,
                fields: tuple[Tensor, ...],
                create_graph: bool,
                rows: Tensor = rows,
                dim: int = dim,
            ) -> tuple[Tensor, Tensor]:
                part = Batch(t, batch.index.index_select(dim, rows), dict(zip(names, fields, strict=True)), batch.seed)
                with torch.enable_grad(), part_of_batch(int(rows[0]), int(rows[-1]) + 1, total):
                    losses, after = losses_and_buffers(learner, params, buffers, part, t)
                    if buffers.numel() and not torch.equal(after, buffers):
                        raise UserError(
                            "the losses change buffers (batch statistics?), so micro-batches are not the whole batch: use group or "
                            "layer norms, or set learner.micro_batch=null"
                        )
                    loss = (coefficients * losses).sum(dim=-1)
                    (found,) = torch.autograd.grad(loss.sum(), params, create_graph=create_graph)
                return found, loss

            fields = tuple(x.index_select(dim, rows.to(x.device)) for x in batch.fields.values())
            inputs = (params, buffers, coefficients.narrow(-1, start, stop - start), *fields)
            if tape and params.dim() == 1:
                found, value = _Gradient.apply(compute, *inputs)  # type: ignore[no-untyped-call]
            else:
                found, value = compute(params, buffers, inputs[2], fields, tape)
            gradient, loss = gradient + found, loss + value
        return gradient, buffers, loss


class _Gradient(torch.autograd.Function):
    """A micro-batch's gradient that keeps its inputs alone: its adjoint makes the graph, pulls through it and drops it."""

    @staticmethod
    def forward(
        ctx: Any, compute: Compute, params: Tensor, buffers: Tensor, coefficients: Tensor, *fields: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.compute = compute
        ctx.save_for_backward(params, buffers, coefficients, *fields)
        with watching_saved_tensors(lambda x: None):  # whoever watches the step need not see what is gone after it
            gradient, loss = compute(params.detach().requires_grad_(), buffers, coefficients, fields, False)
        return gradient.detach(), loss.detach()

    @staticmethod
    def backward(ctx: Any, on_gradient: Tensor, on_loss: Tensor) -> Any:
        wanted = ctx.needs_input_grad[1:]
        leaves = [x.detach().requires_grad_(need) for x, need in zip(ctx.saved_tensors, wanted, strict=True)]
        leaves[0].requires_grad_()
        outputs = ctx.compute(*leaves[:3], tuple(leaves[3:]), True)
        live = [(x, on) for x, on in zip(outputs, (on_gradient, on_loss), strict=True) if x.requires_grad]
        inputs = [x for x, need in zip(leaves, wanted, strict=True) if need]
        pulled = iter(
            torch.autograd.grad([x for x, _ in live], inputs, [on for _, on in live], allow_unused=True)
            if live
            else [None] * len(inputs)
        )
        return None, *(next(pulled) if need else None for need in wanted)


def _coefficients(params: Tensor, batch: Batch, weights: Tensor | None, normalize: str) -> Tensor:
    """[B] or [R, B]: the factors of the losses in the weighted mean; a run without any weight divides by 1."""
    if weights is None:
        return params.new_full((len(batch),), 1 / len(batch))
    if normalize == "batch":
        return weights / len(batch)
    total = weights.sum(dim=-1, keepdim=True)
    return weights / torch.where((weights != 0).any(dim=-1, keepdim=True), total, 1.0)


def _refuse_tied(learner: Model, params: Tensor, buffers: Tensor, batch: Batch, t: int) -> None:
    """Losses of a few rows together must be those of their halves; at parameters a little beside these, since a head of zeros
    hides what comes before it."""
    rng = torch.Generator().manual_seed(0)
    noise = torch.randn(params.shape, generator=rng, dtype=torch.float64).to(params)
    beside = params.detach() + (0.1 * params.detach().abs() + 0.05) * noise

    def of(rows: Tensor) -> Tensor:
        fields = {name: x.index_select(0, rows.to(x.device)) for name, x in batch.fields.items()}
        part = Batch(t, batch.index.index_select(0, rows.to(batch.index.device)), fields, batch.seed)
        with torch.no_grad(), part_of_batch(int(rows[0]), int(rows[-1]) + 1, len(batch)):
            return losses_and_buffers(learner, beside, buffers, part, t)[0]

    if see_each_other(of, torch.arange(min(len(batch), 8))):
        raise UserError(
            "an example's loss depends on the others of its batch (a contrastive loss, batch statistics), so micro-batches are "
            "not the whole batch: set learner.micro_batch=null"
        )


def see_each_other(losses: Callable[[Tensor], Tensor], rows: Tensor) -> bool:
    """Whether the losses of `rows` change where the rows are taken in two parts."""
    if len(rows) < 2:
        return False
    together = losses(rows)
    apart = torch.cat([losses(part) for part in rows.tensor_split(2)])
    near = 1e-8 if together.dtype == torch.float64 else 1e-4  # kernels round otherwise for other numbers of rows
    return not torch.allclose(together, apart, rtol=near, atol=near / 10, equal_nan=True)

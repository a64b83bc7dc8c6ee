"""Weights of all candidates at one step: the surrogate of count-based selection."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from metagradient.errors import UserError
from metagradient.training.batches import Batch, Fields
from metagradient.training.metaparameters.metaparameter import Metaparameter
from metagradient.training.model import Model
from metagradient.training.sources import in_order


@dataclass(frozen=True, eq=False)
class CandidateWeights(Metaparameter):
    """A term `sum_i z_i l(x_i; theta_k)` over *all* candidates, added to the loss of the single step k.

    The surrogate of count-based selection (arXiv 2503.13751): with z = 0 the run is unchanged, and
    d objective / d z_i says what one more copy of candidate i at step k would do. Candidates are visited in chunks, so
    memory does not grow with their number. Losses see the parameters and buffers at the start of step k; batch
    normalisation is computed over each chunk, dropout drawn anew for each, so with these the chunk size matters.

    value: [n]; candidates: fields of length n, as `Batches.examples`; step: k; chunk: candidates at a time.
    """

    name: str = "candidates"
    step: int = 0
    candidates: Fields = field(default_factory=dict)
    chunk: int = 1024

    @property
    def first_step(self) -> int:
        return self.step

    def check(self, examples: int, steps: int) -> None:
        lengths = {len(field) for field in self.candidates.values()}
        if lengths != {len(self.value)} or not 0 <= self.step < steps or self.chunk < 1:
            raise UserError(
                f"CandidateWeights needs {len(self.value)} candidates (not {sorted(lengths)}), a step in [0, {steps}) "
                f"(not {self.step}) and chunk >= 1 (not {self.chunk})"
            )

    def on_gradient(self, gradient: Tensor, learner: Model, params: Tensor, buffers: Tensor, t: int) -> Tensor:
        if t != self.step:
            return gradient
        return gradient + _CandidateGradient.apply(self.value, params, buffers.detach(), learner, self)  # type: ignore[no-untyped-call]

    def chunks(self, like: Tensor) -> Iterator[Batch]:
        """The candidates `chunk` at a time, on `like`'s device and in its dtype."""
        for part, fields in in_order(self.candidates, self.chunk):
            yield Batch(self.step, part, fields).to(like.device, like.dtype)


class _CandidateGradient(torch.autograd.Function):
    """G(z, theta) = sum_i z_i grad l_i(theta) [P]; its pullback of c gives c . grad l_i and (sum_i z_i H_i) c."""

    @staticmethod
    def forward(ctx, z, params, buffers, learner, spec):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(z, params, buffers)
        ctx.learner, ctx.spec = learner, spec
        total = torch.zeros_like(params)
        if not bool((z != 0).any()):
            return total
        for batch in spec.chunks(params):
            with torch.enable_grad():
                leaf = params.detach().requires_grad_()
                losses = _candidate_losses(learner, leaf, buffers, batch)
                (part,) = torch.autograd.grad((z[batch.index].detach() * losses).sum(), leaf)
            total += part
        return total

    @staticmethod
    def backward(ctx, cotangent):  # type: ignore[no-untyped-def]
        z, params, buffers = ctx.saved_tensors
        on_z, on_params = [], torch.zeros_like(params)
        flat = not bool((z != 0).any())  # then the second term vanishes
        for batch in ctx.spec.chunks(params):
            with torch.enable_grad():
                leaf = params.detach().requires_grad_()
                weights = z[batch.index].detach().requires_grad_()
                losses = _candidate_losses(ctx.learner, leaf, buffers, batch)
                (gradient,) = torch.autograd.grad((weights * losses).sum(), leaf, create_graph=True)
                product = (gradient * cotangent).sum()
                if flat:
                    (dz,) = torch.autograd.grad(product, weights)
                else:
                    dz, dp = torch.autograd.grad(product, (weights, leaf))
                    on_params += dp
            on_z.append(dz)
        return torch.cat(on_z), on_params, None, None, None


def _candidate_losses(learner: Model, params: Tensor, buffers: Tensor, batch: Batch) -> Tensor:
    with learner.running(params, buffers, batch.seed, batch.t):
        return learner.losses(batch)

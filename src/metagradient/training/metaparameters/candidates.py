"""Weights of all candidates at one step: the surrogate of count-based selection."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

from metagradient.distributed import SOLO, Group, reduce
from metagradient.errors import UserError
from metagradient.streams import Library
from metagradient.training.batches import Batch, Fields
from metagradient.training.losses import losses_in_parts
from metagradient.training.metaparameters.metaparameter import Metaparameter
from metagradient.training.model import Model
from metagradient.training.random import generator
from metagradient.training.sources import in_order, stream, take


@dataclass(frozen=True, eq=False)
class CandidateWeights(Metaparameter):
    """A term `sum_i z_i l(x_i; theta_k)` over *all* candidates, added to the loss of the single step k.

    The surrogate of count-based selection (arXiv 2503.13751): with z = 0 the run is unchanged, and
    d objective / d z_i says what one more copy of candidate i at step k would do. Candidates are visited in chunks, so
    memory does not grow with their number. Losses see the parameters and buffers at the start of step k; batch
    normalisation is computed over each chunk, dropout drawn anew for each, so with these the chunk size matters.

    Where a candidate's loss depends on the others (a contrastive loss), it is its loss within its chunk, whose other rows
    are its negatives at weight 1: let `chunk` be the batch size of the run and `seed` the run's, which draws who stands
    together; chunks are then of equal size, but for one row. A data weight, here and in `DataWeights`, leaves its row in
    as a negative of others; a count of 0 takes it out.

    value: [n]; candidates: fields of length n, as `Batches.examples`; step: k; chunk: candidates at a time; seed: of their
    order, None for that of the rows.
    """

    name: str = "candidates"
    step: int = 0
    candidates: Fields = field(default_factory=dict)
    chunk: int = 1024
    seed: int | None = None

    @property
    def first_step(self) -> int:
        return self.step

    @property
    def only_step(self) -> int | None:
        return self.step

    def part(self, learner: Model, rows: int) -> tuple[CandidateWeights, float, float]:
        n, some = len(self.value), torch.arange(min(rows, self.chunk, len(self.value)))
        few = replace(self, value=self.value[some.to(self.value.device)], candidates=take(self.candidates, some))
        # Slopes at z = 0 keep no graph, and are taken a micro-batch at a time; otherwise the graph of a whole chunk is there.
        flat = learner.micro_batches is not None and not bool((self.value != 0).any())
        larger = 1.0 if flat else min(n, self.chunk) / len(some)
        return few, larger, n / len(some) / self.dividing(learner.group).size

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

    def chunks(self, like: Tensor, group: Group = SOLO) -> Iterator[Batch]:
        """The candidates `chunk` at a time, on `like`'s device and in its dtype; each group.size-th chunk is this process's."""
        found: Iterator[tuple[Tensor, dict[str, Tensor]]]
        if self.seed is None:
            found = islice(in_order(self.candidates, self.chunk), group.rank, None, group.size)
        else:
            found = self._drawn(self.seed, group)
        for part, fields in found:
            yield Batch(self.step, part, fields).to(like.device, like.dtype)

    def _drawn(self, seed: int, group: Group) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        n = len(self.value)
        order = torch.randperm(n, generator=generator(seed, Library.CANDIDATES))
        parts = order.tensor_split(-(-n // self.chunk))[group.rank :: group.size]
        yield from zip(parts, stream(self.candidates, ((0, rows) for rows in parts)), strict=True)

    def dividing(self, group: Group) -> Group:
        """The processes that share the chunks: all of the group, or each alone where some would have none."""
        return group if -(-len(self.value) // self.chunk) >= group.size else SOLO


log = logging.getLogger(__name__)


class _CandidateGradient(torch.autograd.Function):
    """G(z, theta) = sum_i z_i grad l_i(theta) [P]; its pullback of c gives c . grad l_i and (sum_i z_i H_i) c."""

    @staticmethod
    def forward(ctx, z, params, buffers, learner, spec):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(z, params, buffers)
        ctx.learner, ctx.spec = learner, spec
        ctx.group = spec.dividing(learner.group)
        total = torch.zeros_like(params)
        if not bool((z != 0).any()):
            return total
        for batch in spec.chunks(params, ctx.group):
            with torch.enable_grad():
                leaf = params.detach().requires_grad_()
                losses = _candidate_losses(learner, leaf, buffers, batch)
                (part,) = torch.autograd.grad((z[batch.index].detach() * losses).sum(), leaf)
            total += part
        return ctx.group.add(total)

    @staticmethod
    def backward(ctx, cotangent):  # type: ignore[no-untyped-def]
        z, params, buffers = ctx.saved_tensors
        rows, on_z, on_params = [], [], torch.zeros_like(params)
        flat = not bool((z != 0).any())  # then the second term vanishes
        slopes = _by_tangents
        for batch in ctx.spec.chunks(params, ctx.group):
            rows.append(batch.index)
            if not flat:
                dz, dp = _both(ctx.learner, params, buffers, batch, cotangent, z[batch.index])
                on_params += dp
            else:
                try:
                    dz = slopes(ctx.learner, params, buffers, batch, cotangent)
                except (RuntimeError, NotImplementedError) as error:
                    if slopes is _twice_backwards:
                        raise
                    log.debug("an operation has no rule for tangents (%s): twice backwards", error)
                    slopes = _twice_backwards
                    dz = slopes(ctx.learner, params, buffers, batch, cotangent)
            on_z.append(dz)
        own = torch.cat(on_z)
        on_all = own.new_zeros(len(z)).index_copy(0, torch.cat(rows), own)
        return *reduce(ctx.group, on_all, on_params), None, None, None


def _by_tangents(learner: Model, params: Tensor, buffers: Tensor, batch: Batch, direction: Tensor) -> Tensor:
    """direction . grad l_i of each candidate, [B]: one forward pass with tangents."""
    with torch.no_grad(), forward_ad.dual_level(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit", category=FutureWarning)  # torch's own use of it
        dual = forward_ad.make_dual(params.detach(), direction.detach())
        tangent = forward_ad.unpack_dual(_candidate_losses(learner, dual, buffers, batch)).tangent
    return params.new_zeros(len(batch)) if tangent is None else tangent


def _twice_backwards(learner: Model, params: Tensor, buffers: Tensor, batch: Batch, direction: Tensor) -> Tensor:
    """The same, by the derivative of the gradient in the losses' weights."""
    return _both(learner, params, buffers, batch, direction, params.new_zeros(len(batch)))[0]


def _both(
    learner: Model, params: Tensor, buffers: Tensor, batch: Batch, direction: Tensor, z: Tensor
) -> tuple[Tensor, Tensor]:
    """The slopes [B], and (sum_i z_i H_i) direction [P]."""
    with torch.enable_grad():
        leaf = params.detach().requires_grad_()
        weights = z.detach().requires_grad_()
        losses = _candidate_losses(learner, leaf, buffers, batch)
        (gradient,) = torch.autograd.grad((weights * losses).sum(), leaf, create_graph=True)
        on_z, on_params = torch.autograd.grad((gradient * direction).sum(), (weights, leaf))
    return on_z, on_params


def _candidate_losses(learner: Model, params: Tensor, buffers: Tensor, batch: Batch) -> Tensor:
    """[B]; where the run has micro-batches, as many rows at a time, with the contrast of the chunk."""
    size = len(batch) if learner.micro_batches is None else learner.micro_batches.size
    return losses_in_parts(learner, params, buffers, batch, batch.t, size)

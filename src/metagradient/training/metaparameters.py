"""Metaparameters: what a training run is differentiated with respect to, and where each enters.

A metaparameter is a tensor `value` and the one hook through which it enters the step. `DataWeights` and its
siblings below override a single method each; a new kind is one small class.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from metagradient.errors import UserError
from metagradient.training.batches import Batch, Fields
from metagradient.training.schedules import knot_position

if TYPE_CHECKING:
    from metagradient.learners.learner import Learner
    from metagradient.training.optimizers import Scalar


@dataclass(frozen=True, eq=False)
class Metaparameter:
    """A differentiable input `z` of training. `name` is the key of its gradient."""

    value: Tensor
    name: str = "metaparameter"

    @property
    def first_step(self) -> int:
        """The first step that reads the value: the replay need not go back further. -1: the initial state does."""
        return 0

    def with_value(self, value: Tensor) -> Self:
        return replace(self, value=value)

    def leaf(self, like: Tensor) -> Self:
        """The same value as a differentiable leaf on `like`'s device, in its dtype."""
        return self.with_value(self.value.detach().to(like.device, like.dtype).clone().requires_grad_())

    def check(self, examples: int, steps: int) -> None:
        """Refuse, with a UserError, a run of `steps` steps over `examples` examples that the value does not fit."""

    def on_start(self, params: Tensor) -> Tensor:
        """The initial parameters [P]."""
        return params

    def on_batch(self, batch: Batch, t: int) -> Batch:
        """The examples that step t reads."""
        return batch

    def on_weights(self, weights: Tensor, batch: Batch, t: int) -> Tensor:
        """The per-example loss weights [B]."""
        return weights

    def on_gradient(self, gradient: Tensor, learner: Learner, params: Tensor, buffers: Tensor, t: int) -> Tensor:
        """The loss gradient [P] that the optimizer receives."""
        return gradient

    def on_hyper(self, hyper: Mapping[str, Scalar], t: int) -> Mapping[str, Scalar]:
        """Learning rate, weight decay and the optimizer's other settings."""
        return hyper


@dataclass(frozen=True, eq=False)
class DataWeights(Metaparameter):
    """Per-example loss weights w [n]: step t minimises the weighted mean of w_i l_i over its batch.

    They act at steps `start <= t < stop`: all steps by default, from step k with `start=k`, only step k with
    `start=k, stop=k + 1`; weight 1 elsewhere. With `differentiate_from=k` they act as before, but only what they do
    from step k on is differentiated: a truncated metagradient, whose replay is that much shorter.

    A value [R, n] holds the weights of R stacked runs.
    """

    name: str = "weights"
    start: int = 0
    stop: int | None = None
    differentiate_from: int = 0

    @property
    def first_step(self) -> int:
        return max(self.start, self.differentiate_from)

    def check(self, examples: int, steps: int) -> None:
        if self.value.dim() not in (1, 2) or self.value.shape[-1] != examples:
            raise UserError(
                f"DataWeights needs one weight for each of the {examples} examples, not {list(self.value.shape)}"
            )

    def on_weights(self, weights: Tensor, batch: Batch, t: int) -> Tensor:
        if t < self.start or (self.stop is not None and t >= self.stop):
            return weights
        value = self.value.detach() if t < self.differentiate_from else self.value
        if batch.index.dim() == 1:
            return weights * value.index_select(-1, batch.index)
        return weights * value.expand(len(batch.index), -1).gather(1, batch.index)


@dataclass(frozen=True, eq=False)
class InputPerturbation(Metaparameter):
    """Tensors added to the inputs of chosen examples: x_i + value[j] for i = index[j], at every step (after augmentation).

    value: [m, *input shape]; index: [m] distinct rows of the training set; input_field: the batch's field.
    """

    name: str = "inputs"
    index: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    input_field: str = "x"

    def __post_init__(self) -> None:
        if len(self.index) != len(self.value) or len(self.index.unique()) != len(self.index):
            raise UserError(
                f"InputPerturbation needs one distinct training row for each of its {len(self.value)} tensors, "
                f"not {len(self.index)} rows, {len(self.index.unique())} of them distinct"
            )
        order = self.index.argsort()
        object.__setattr__(self, "_sorted", self.index[order])
        object.__setattr__(self, "_order", order)

    def check(self, examples: int, steps: int) -> None:
        if len(self.index) and not (int(self.index.min()) >= 0 and int(self.index.max()) < examples):
            raise UserError(
                f"InputPerturbation names rows {int(self.index.min())} .. {int(self.index.max())}, but the training set "
                f"has rows 0 .. {examples - 1}"
            )

    def on_batch(self, batch: Batch, t: int) -> Batch:
        if len(self.index) == 0:
            return batch
        rows, order = self._sorted.to(batch.index.device), self._order.to(batch.index.device)  # type: ignore[attr-defined]
        slot = torch.searchsorted(rows, batch.index).clamp(max=len(rows) - 1)
        hit = (rows[slot] == batch.index).nonzero().flatten()
        if len(hit) == 0:
            return batch
        shift = self.value.index_select(0, order[slot[hit]])
        return batch.replace(**{self.input_field: batch[self.input_field].index_add(0, hit, shift)})


@dataclass(frozen=True, eq=False)
class LearningRates(Metaparameter):
    """The learning rate of every step: value [T], or [K] knots spread evenly over the `steps` of the run.

    Knots are linearly interpolated; with `log` the value holds natural logarithms of learning rates.
    """

    name: str = "learning_rates"
    steps: int | None = None
    log: bool = False

    def rate(self, t: int) -> Tensor:
        """The learning rate at step t (a scalar tensor)."""
        value = _value_at(self, t)
        return value.exp() if self.log else value

    def on_hyper(self, hyper: Mapping[str, Scalar], t: int) -> Mapping[str, Scalar]:
        return {**hyper, "learning_rate": self.rate(t)}


@dataclass(frozen=True, eq=False)
class Momentum(Metaparameter):
    """The momentum of SGD at every step: value [T], or [K] knots, linearly interpolated over the `steps` of the run."""

    name: str = "momentum"
    steps: int | None = None

    def on_hyper(self, hyper: Mapping[str, Scalar], t: int) -> Mapping[str, Scalar]:
        if not hyper.get("momentum"):
            raise UserError("Momentum needs SGD with a momentum to replace: set learner.optimizer.momentum=0.9")
        return {**hyper, "momentum": _value_at(self, t)}


def _value_at(m: LearningRates | Momentum, t: int) -> Tensor:
    """The value at step t, a scalar: an entry of [T], or between two of [K] knots where `steps` is given."""
    value = m.value
    if m.steps is None:
        if t >= len(value):
            raise UserError(f"{type(m).__name__} has {len(value)} values but the run reaches step {t}: give steps=T")
        return value[t]
    left, fraction = knot_position(t, len(value), m.steps)
    return value[left] + fraction * (value[left + 1] - value[left]) if fraction else value[left]


@dataclass(frozen=True, eq=False)
class WeightDecay(Metaparameter):
    """The weight-decay coefficient of the optimizer, a scalar."""

    name: str = "weight_decay"

    def on_hyper(self, hyper: Mapping[str, Scalar], t: int) -> Mapping[str, Scalar]:
        return {**hyper, "weight_decay": self.value.reshape(())}


@dataclass(frozen=True, eq=False)
class InitialParameters(Metaparameter):
    """The initial parameters theta_0 [P], in the order of the learner's layout."""

    name: str = "initial_parameters"

    @property
    def first_step(self) -> int:
        return -1

    def on_start(self, params: Tensor) -> Tensor:
        if self.value.shape != params.shape:
            raise UserError(f"InitialParameters needs {params.numel()} values, not {list(self.value.shape)}")
        return self.value


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

    def on_gradient(self, gradient: Tensor, learner: Learner, params: Tensor, buffers: Tensor, t: int) -> Tensor:
        if t != self.step:
            return gradient
        return gradient + _CandidateGradient.apply(self.value, params, buffers.detach(), learner, self)  # type: ignore[no-untyped-call]

    def chunks(self, like: Tensor) -> list[Batch]:
        parts = torch.arange(len(self.value)).split(self.chunk)
        fields = [{k: v.index_select(0, part.to(v.device)) for k, v in self.candidates.items()} for part in parts]
        batches = [Batch(self.step, part, f) for part, f in zip(parts, fields, strict=True)]
        return [b.to(like.device, like.dtype) for b in batches]


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


def _candidate_losses(learner: Learner, params: Tensor, buffers: Tensor, batch: Batch) -> Tensor:
    with learner.running(params, buffers, batch.seed, batch.t):
        return learner.losses(batch)

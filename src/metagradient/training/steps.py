"""The one definition of a training step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from metagradient.errors import UserError
from metagradient.training.batches import Batch
from metagradient.training.losses import losses_and_buffers
from metagradient.training.metaparameters import Metaparameter
from metagradient.training.model import Differentiate, LossGradient, Model
from metagradient.training.parallel.ranks import over_ranks
from metagradient.training.state import TrainState
from metagradient.training.updates.optimizers import Scalar


class Step(NamedTuple):
    """What a training step gives.

    Attributes:
        state: s_{t+1}.
        loss: the weighted mean loss at s_t, []; of R stacked runs [R]. Detached.
        gradient: its gradient as the optimizer received it, without weight decay, [P] or [R, P]. Detached.
    """

    state: TrainState
    loss: Tensor
    gradient: Tensor


def step(
    learner: Model,
    state: TrainState,
    batch: Batch,
    t: int,
    z: Sequence[Metaparameter] = (),
    *,
    tape: bool = False,
) -> Step:
    """One training step: s_{t+1} = h_t(s_t, z), with the loss and its gradient at s_t.

    A pure function of its arguments: the learner lends its architecture, its losses and its optimizer's rule, but
    nothing in it changes. With `tape` the new state stays connected to `state` and to the values of `z`, so that it
    can be differentiated through, the loss gradient inside included; without, it is detached.
    An empty batch is a skipped step: no decay, no momentum, only the clock goes on.

    Where the learner's group has several processes, each is given the whole batch and runs the losses of its share of the rows;
    all of them end in the same bits.

    A state whose tensors are stacked, [R, P], is R runs at once (see `TrainState.stack`): every run takes the same
    step, on its own weights where a metaparameter gives [R, B], on its own batch where the batch's index is [R, B].
    """
    runs = state.params.shape[:-1]  # () or (R,)
    if len(batch) == 0:
        return _skipped(state)
    params = state.params if tape else state.params.detach().requires_grad_()
    for m in z:
        batch = m.on_batch(batch, t)
    weights: Tensor | None = None
    for m in z:
        if type(m).on_weights is not Metaparameter.on_weights:
            weights = m.on_weights(params.new_ones(len(batch)) if weights is None else weights, batch, t)
    skipped: Tensor | None = None
    if learner.normalize == "kept" and weights is not None:
        skipped = ~(weights != 0).any(dim=-1)
        if bool(skipped.all()):
            return _skipped(state)

    plain: Differentiate = loss_gradient if learner.graphs is None or runs else learner.graphs
    differentiate = over_ranks(plain if learner.micro_batches is None else learner.micro_batches, learner)
    coefficients = None if weights is None else _coefficients(weights, learner.normalize)
    gradient, buffers, loss = differentiate(learner, params, state.buffers, batch, coefficients, t, tape=tape)
    for m in z:
        gradient = m.on_gradient(gradient, learner, params, state.buffers, t)

    update = learner.update
    hyper: Mapping[str, Scalar] = update.hyper(t)
    for m in z:
        hyper = m.on_hyper(hyper, t)
    with torch.set_grad_enabled(tape):
        new = replace(update.apply(state, gradient, t, hyper), buffers=buffers)
        if runs and skipped is not None:
            pairs = zip(state.tensors(), new.tensors(), strict=True)
            new = TrainState.of([torch.where(skipped.unsqueeze(-1), old, x) for old, x in pairs])
    return Step(new if tape else new.detach(), loss.detach(), gradient.detach())


def _skipped(state: TrainState) -> Step:
    return Step(state, state.params.new_zeros(state.params.shape[:-1]), torch.zeros_like(state.params))


def loss_gradient(
    learner: Model, params: Tensor, buffers: Tensor, batch: Batch, coefficients: Tensor | None, t: int, *, tape: bool
) -> LossGradient:
    """The gradient of sum_i c_i l_i in `params`, the buffers that the forward pass left, and that loss.

    The coefficients c are [B] or, of stacked runs, [R, B]; None: 1 / B each, the mean. With `tape` all of them stay connected to
    the tensors given. (`compiled.Graphs` computes the same.)
    """
    with torch.enable_grad():
        losses, buffers = losses_and_buffers(learner, params, buffers, batch, t)
        _check_shape(losses, (*params.shape[:-1], len(batch)))
        loss = losses.mean(dim=-1) if coefficients is None else (coefficients * losses).sum(dim=-1)
        # Runs do not see each other, so the gradient of the sum is each run's own.
        (gradient,) = torch.autograd.grad(loss.sum() if loss.dim() else loss, params, create_graph=tape)
    return gradient, buffers, loss


def _check_shape(losses: Tensor, shape: tuple[int, ...]) -> None:
    if losses.shape != shape:
        raise UserError(
            f"losses(batch) must return one loss for each of the {shape[-1]} examples, shape [{shape[-1]}], "
            f"not {list(losses.shape[len(shape) - 1 :])}: use reduction='none'"
        )


def _coefficients(weights: Tensor, normalize: str) -> Tensor:
    """The factors of the losses in their weighted mean, [B] or [R, B]; a run without any weight (its step is skipped) divides
    by 1."""
    if normalize == "batch":
        return weights / weights.shape[-1]
    divisor = weights.sum(dim=-1, keepdim=True)
    return weights / (
        divisor if weights.dim() == 1 else torch.where((weights != 0).any(-1, keepdim=True), divisor, 1.0)
    )

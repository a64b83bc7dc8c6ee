"""The one definition of a training step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from metagradient.errors import UserError
from metagradient.training.batches import Batch
from metagradient.training.metaparameters import Metaparameter
from metagradient.training.state import TrainState

if TYPE_CHECKING:
    from metagradient.training.learner import Learner
    from metagradient.training.optimizers import Scalar


def step(
    learner: Learner,
    state: TrainState,
    batch: Batch,
    t: int,
    z: Sequence[Metaparameter] = (),
    *,
    tape: bool = False,
) -> tuple[TrainState, Tensor]:
    """One training step: s_{t+1} = h_t(s_t, z), and the loss at s_t.

    A pure function of its arguments: the learner lends its architecture, its losses and its optimizer's rule, but
    nothing in it changes. With `tape` the new state stays connected to `state` and to the values of `z`, so that it
    can be differentiated through, the loss gradient inside included; without, it is detached.
    An empty batch is a skipped step: no decay, no momentum, only the clock goes on.

    Returns (state, loss []).
    """
    if len(batch) == 0:
        return state, state.params.new_zeros(())
    params = state.params if tape else state.params.detach().requires_grad_()
    for m in z:
        batch = m.on_batch(batch, t)
    weights: Tensor | None = None
    for m in z:
        if type(m).on_weights is not Metaparameter.on_weights:
            weights = m.on_weights(params.new_ones(len(batch)) if weights is None else weights, batch, t)
    if learner.normalize == "kept" and weights is not None and not bool((weights != 0).any()):
        return state, state.params.new_zeros(())

    with torch.enable_grad():
        with learner.running(params, state.buffers, batch.seed, t):
            losses = learner.losses(batch)
            buffers = learner.layout.buffers(like=params)
        loss = _weighted_mean(losses, weights, len(batch), learner.normalize)
        (gradient,) = torch.autograd.grad(loss, params, create_graph=tape)
    for m in z:
        gradient = m.on_gradient(gradient, learner, params, state.buffers, t)

    hyper: Mapping[str, Scalar] = {"learning_rate": learner.schedule(t), **learner.optimizer.hyper()}
    for m in z:
        hyper = m.on_hyper(hyper, t)
    with torch.set_grad_enabled(tape):
        new_params, slots = learner.optimizer.update(params, gradient, state.slots, t, hyper, learner.decay_mask)
    new = TrainState(new_params, slots, buffers)
    return (new, loss.detach()) if tape else (new.detach(), loss.detach())


def _weighted_mean(losses: Tensor, weights: Tensor | None, batch_size: int, normalize: str) -> Tensor:
    if losses.shape != (batch_size,):
        raise UserError(
            f"losses(batch) must return one loss for each of the {batch_size} examples, shape [{batch_size}], "
            f"not {list(losses.shape)}: use reduction='none'"
        )
    if weights is None:
        return losses.mean()
    return (weights * losses).sum() / (weights.sum() if normalize == "kept" else batch_size)

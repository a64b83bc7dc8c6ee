"""Gradients and Hessian products of a mean loss, at given parameters."""

from __future__ import annotations

import torch
from torch import Tensor

from metagradient.learners.learner import Learner
from metagradient.training.batches import Batch


def mean_gradient(
    learner: Learner, params: Tensor, buffers: Tensor, batch: Batch, *, create_graph: bool = False
) -> Tensor:
    """The gradient [P] of the batch's mean loss, without L2; with `create_graph`, of a leaf `params` that needs grad."""
    leaf = params if create_graph else params.detach().requires_grad_()
    with torch.enable_grad():
        with learner.running(leaf, buffers, batch.seed, batch.t):
            loss = learner.losses(batch).mean()
        (gradient,) = torch.autograd.grad(loss, leaf, create_graph=create_graph)
    return gradient


def gradient_and_product(
    learner: Learner, params: Tensor, buffers: Tensor, batch: Batch, v: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradient g [P] of the batch's mean loss and its Hessian times v, H v [P]; without L2. Costs about 3 gradients."""
    with torch.enable_grad():
        leaf = params.detach().requires_grad_()
        gradient = mean_gradient(learner, leaf, buffers, batch, create_graph=True)
        (product,) = torch.autograd.grad(gradient @ v.detach(), leaf)
    return gradient.detach(), product

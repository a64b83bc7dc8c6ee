"""What a learner's losses need so that they can be replayed, found by one forward pass."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils._python_dispatch import TorchDispatchMode

from metagradient.errors import UserError
from metagradient.training.batches import Batches
from metagradient.training.model import Model, Needs
from metagradient.training.random import fold_in

log = logging.getLogger(__name__)


class _SeesFusedAttention(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen = self.seen or "scaled_dot_product" in func.name()
        return func(*args, **(kwargs or {}))


def probe(learner: Model, batches: Batches) -> Needs:
    """Run the losses of the first batch that is not empty, on the side, and see what they touch."""
    t = next((t for t in range(len(batches)) if len(batches(t))), None)
    if t is None:
        return Needs()
    params = learner.layout.params().requires_grad_()
    batch = batches(t).to(params.device, params.dtype)
    with torch.random.fork_rng(devices=[params.device] if params.is_cuda else []):
        torch.manual_seed(fold_in(batch.seed))
        before = _global_state(params)
        buffers = learner.layout.buffers(like=params).detach().clone()
        start = buffers.clone()
        with torch.enable_grad(), _SeesFusedAttention() as attention, learner.running(params, buffers, batch.seed, t):
            losses = learner.losses(batch)
            _refuse_in_place(learner, start, buffers)
        _refuse_once_differentiable(losses)
        _refuse_kept_parameters(learner, losses)
        foreign = not torch.equal(before, _global_state(params))
    if foreign:
        log.warning(
            "losses() draws from torch's global generator: it is forked and seeded at every step so that the run can be "
            "replayed (about 140 us a step). metagradient's SeededDropout and step_generator avoid that."
        )
    return Needs(foreign, attention.seen)


def _refuse_in_place(learner: Model, before: Tensor, after: Tensor) -> None:
    layout = learner.layout
    parts = zip(layout.buffer_names, before.split(layout.buffer_sizes), after.split(layout.buffer_sizes), strict=True)
    for name, was, is_ in parts if layout.buffer_names else ():
        if not torch.equal(was, is_):
            raise UserError(
                f"buffer '{name}' is updated in place, which loses its gradient and corrupts checkpoints: "
                f"assign a new tensor instead (self.{name.rsplit('.', 1)[-1]} = ...)"
            )


def _refuse_kept_parameters(learner: Model, losses: Tensor) -> None:
    own = {name: p for name, p in learner.named_parameters() if p.requires_grad}
    if not losses.requires_grad:
        return
    with torch.enable_grad():
        reached = torch.autograd.grad(losses.sum(), list(own.values()), allow_unused=True)
    for name, gradient in zip(own, reached, strict=True):
        if gradient is not None:
            raise UserError(
                f"losses() computes with a reference to parameter '{name}' that it keeps outside its module (in a list, "
                "say), where the step cannot replace it: read it from the module that owns it"
            )


def _refuse_once_differentiable(losses: Tensor) -> None:
    """torch raises for these only where the second derivative passes through their backward, and else drops it."""
    marked = once_differentiable(lambda *_: None).__code__
    seen, todo = set(), [losses.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        todo += [following for following, _ in node.next_functions]
        function = getattr(node, "_forward_cls", None)
        if function is not None and getattr(function.backward, "__code__", None) is marked:
            raise UserError(
                f"losses() go through {function.__name__}, whose backward is marked once_differentiable: a replay needs "
                "the derivative of the gradient. Write its backward in differentiable operations"
            )


def _global_state(like: Tensor) -> Tensor:
    return torch.cuda.get_rng_state(like.device) if like.is_cuda else torch.get_rng_state()

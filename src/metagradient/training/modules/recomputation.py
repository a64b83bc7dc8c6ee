"""Activation checkpointing (`torch.utils.checkpoint`) inside a model, made a function of the step.

A checkpointed block runs its forward pass again inside `autograd.grad`, when the modules no longer hold the vectors of
the step. Here it runs again with the same parameters, buffers, random numbers and attention setting.

Of torch's two kinds, `use_reentrant=False` leaves what it computes again to whoever differentiates twice: the graph of the
gradient holds it, so a taped step is no smaller. `use_reentrant=True` has no second derivative in torch. Here it has: a block
y = f(theta, x) and its pull (theta, x, g) -> (df/dtheta, df/dx)^T g are functions that keep their inputs alone, and the adjoint of
the pull runs the block a third time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
import torch.utils.checkpoint as checkpointing
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils import _pytree as pytree

from metagradient.errors import UserError
from metagradient.training.modules.pulling import pulled
from metagradient.training.modules.replayable import in_modes, modes_of
from metagradient.training.random import repeated_randomness
from metagradient.training.saved_tensors import watching_saved_tensors

_GENERATOR = "_checkpoint_without_reentrant_generator"  # torch.utils.checkpoint.checkpoint calls one of the two
_GENERATOR = f"{_GENERATOR}_impl" if hasattr(checkpointing, f"{_GENERATOR}_impl") else _GENERATOR
_REENTRANT = "CheckpointFunction"

Surroundings = Callable[[Tensor, Tensor], AbstractContextManager[None]]
"""Inside, the modules hold these parameters and buffers."""


@contextmanager
def recomputing_within(
    module: nn.Module, params: Tensor, buffers: Tensor, surroundings: Surroundings, taped: bool
) -> Iterator[None]:
    """Blocks of `module` that are checkpointed inside run again as they ran: within
    `surroundings(params, buffers)`, in the modes (training or evaluation) that the modules had, drawing the random numbers that they drew.

    Args:
        module: whose blocks they are.
        params: the parameters that the modules hold, [P].
        buffers: likewise, [N].
        surroundings: in which a block runs again.
        taped: whether the gradient may be differentiated; else both kinds of checkpoint are torch's `use_reentrant=False`.
    """
    before, reentrant = getattr(checkpointing, _GENERATOR), getattr(checkpointing, _REENTRANT)

    def generator(function: Callable[..., Any], *settings: Any, **kwargs: Any) -> Any:
        # `function` itself runs the block the first time; what the generator is given, every later time.
        randomness, modes = repeated_randomness(), modes_of(module.modules())

        def again(*args: Any, **kwargs: Any) -> Any:
            with surroundings(params, buffers), in_modes(modes), randomness():
                return function(*args, **kwargs)

        return before(again, *settings, **kwargs)

    def apply(function: Callable[..., Any], _: bool, *args: Any) -> Any:
        """Stands for that of torch's function of `use_reentrant=True`."""
        if not torch.is_grad_enabled():
            return function(*args)
        if not taped or torch._C._functorch.maybe_current_level() is not None:
            return checkpointing.checkpoint(function, *args, use_reentrant=False)
        kwargs: dict[str, Any] = {}
        while isinstance(function, partial):  # what it binds are arguments like others
            args, kwargs, function = (*function.args, *args), {**function.keywords, **kwargs}, function.func
        leaves, inputs = pytree.tree_flatten((args, kwargs))
        block = _Block(function, leaves, inputs, module, surroundings)
        return _recomputed(block, [x for x in leaves if isinstance(x, Tensor)], params, buffers)

    setattr(checkpointing, _GENERATOR, generator)
    # No class: one refers to itself, and would hold a step's parameters until the collector comes.
    setattr(checkpointing, _REENTRANT, SimpleNamespace(apply=apply))
    try:
        yield
    finally:
        setattr(checkpointing, _GENERATOR, before)
        setattr(checkpointing, _REENTRANT, reentrant)


class _Block:
    """A function of parameters, buffers and its tensor arguments ("state" together), which runs again as it ran the first time.

    It holds no tensor argument: the graph does, or nobody.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        leaves: Sequence[Any],
        inputs: Any,
        module: nn.Module,
        surroundings: Surroundings,
    ) -> None:
        self.places = [i for i, x in enumerate(leaves) if isinstance(x, Tensor)]
        self.others = [None if isinstance(x, Tensor) else x for x in leaves]
        self.outputs: Any = None
        self.function, self.inputs, self.module, self.surroundings = function, inputs, module, surroundings
        self.randomness, self.modes = repeated_randomness(), modes_of(module.modules())

    def _call(self, tensors: Sequence[Tensor]) -> list[Any]:
        leaves = list(self.others)
        for place, x in zip(self.places, tensors, strict=True):
            leaves[place] = x
        args, kwargs = pytree.tree_unflatten(leaves, self.inputs)
        found, self.outputs = pytree.tree_flatten(self.function(*args, **kwargs))
        return found

    def first(self, params: Tensor, buffers: Tensor, *tensors: Tensor) -> list[Any]:
        """Its outputs without any graph, drawing the step's next random numbers.

        Raises:
            UserError: it reads a tensor that is no argument of its and has a gradient, or changes the modules' buffers.
        """
        name = getattr(self.function, "__qualname__", type(self.function).__name__)
        instead = (
            "call it with use_reentrant=False (gradient_checkpointing_kwargs={'use_reentrant': False} in transformers)"
        )
        with torch.enable_grad(), self.surroundings(params.detach(), buffers.detach()):
            held = [(m, key, x) for m in self.module.modules() for key, x in m._buffers.items() if x is not None]
            versions = [x._version for *_, x in held]
            found = self._call([x.detach() for x in tensors])
            if any(m._buffers[key] is not x or x._version != v for (m, key, x), v in zip(held, versions, strict=True)):
                raise UserError(f"torch.utils.checkpoint({name}, use_reentrant=True) tracks statistics: {instead}")
        if any(isinstance(x, Tensor) and x.requires_grad for x in found):
            raise UserError(
                f"torch.utils.checkpoint({name}, use_reentrant=True) reads a tensor with a gradient that is no argument of it: "
                f"give it as one, or {instead}"
            )
        return found

    def again(self, params: Tensor, buffers: Tensor, *tensors: Tensor) -> list[Tensor]:
        """Its outputs that can have a gradient, with a graph."""
        with torch.enable_grad(), self.surroundings(params, buffers), in_modes(self.modes), self.randomness():
            return [x for x in self._call(tensors) if _has_gradient(x)]


def _has_gradient(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


def _recomputed(block: _Block, tensors: Sequence[Tensor], params: Tensor, buffers: Tensor) -> Any:
    others: list[Any] = []
    with_gradient = iter(_Forward.apply(block, others, params, buffers, *tensors))  # type: ignore[no-untyped-call]
    leaves = [next(with_gradient) if place is _Forward else place for place in others]
    return pytree.tree_unflatten(leaves, block.outputs)


def _leaves(tensors: Sequence[Tensor], wanted: Sequence[bool]) -> list[Tensor]:
    return [x.detach().requires_grad_(need) for x, need in zip(tensors, wanted, strict=True)]


class _Forward(torch.autograd.Function):
    """(theta, x) -> f(theta, x), theta being parameters and buffers."""

    @staticmethod
    def forward(ctx: Any, block: _Block, others: list[Any], *state: Tensor) -> tuple[Tensor, ...]:
        with watching_saved_tensors(lambda x: None):  # whoever watches the step need not see what is gone after it
            found = block.first(*state)
        others.extend(_Forward if _has_gradient(x) else x for x in found)
        ctx.block = block
        ctx.save_for_backward(*state)
        return tuple(x for x in found if _has_gradient(x))

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        found = iter(_Pull.apply(ctx.block, ctx.needs_input_grad[2:], *ctx.saved_tensors, *cotangents))  # type: ignore[no-untyped-call]
        return None, None, *(next(found) if need else None for need in ctx.needs_input_grad[2:])


class _Pull(torch.autograd.Function):
    """(theta, x, g) -> (df/dtheta, df/dx)^T g."""

    @staticmethod
    def forward(ctx: Any, block: _Block, wanted: tuple[bool, ...], *given: Tensor) -> tuple[Tensor, ...]:
        ctx.block, ctx.wanted = block, wanted
        ctx.save_for_backward(*given)
        inputs = _leaves(given[: len(wanted)], wanted)
        with watching_saved_tensors(lambda x: None):
            outputs = block.again(*inputs)
            found = pulled(outputs, inputs, given[len(wanted) :])
        return tuple(x for x, need in zip(found, wanted, strict=True) if need)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        given, n, needed = ctx.saved_tensors, len(ctx.wanted), ctx.needs_input_grad[2:]
        leaves = _leaves(given, [*map(bool.__or__, ctx.wanted, needed[:n]), *needed[n:]])
        with torch.enable_grad():
            first = pulled(ctx.block.again(*leaves[:n]), leaves[:n], leaves[n:], create_graph=True)
            first = [x for x, need in zip(first, ctx.wanted, strict=True) if need]
        found = pulled(first, leaves, cotangents)
        return None, None, *(x if need else None for x, need in zip(found, needed, strict=True))

"""What a learner's losses need so that they can be replayed, found by one forward pass."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from metagradient.errors import UserError
from metagradient.training.batches import Batch, Batches
from metagradient.training.model import Model, Needs
from metagradient.training.modules.replayable import DifferentiableBatchNorm
from metagradient.training.modules.substitutes import compiled, replaced
from metagradient.training.random import fold_in

log = logging.getLogger(__name__)


class _SeesOperations(TorchDispatchMode):
    """Sees fused attention, and results in half precision."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.fused_attention = False
        self.low: tuple[str, torch.dtype] | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.fused_attention = self.fused_attention or "scaled_dot_product" in func.name()
        result = func(*args, **(kwargs or {}))
        first = result[0] if isinstance(result, tuple | list) and result else result
        low = isinstance(first, Tensor) and first.is_floating_point() and torch.finfo(first.dtype).bits < 32
        if low and self.low is None:
            self.low = func.name(), first.dtype
        return result


class _SeesFunctions(TorchFunctionMode):
    """Sees functions that need a substitute, and refuses to read a number off a tensor that depends on the parameters: the
    number's derivative would be missing."""

    def __init__(self) -> None:
        super().__init__()
        self.replaced = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.replaced = self.replaced or replaced(func, args, kwargs or {})
        if func in _TO_NUMBERS and isinstance(args[0], Tensor) and args[0].requires_grad:
            raise UserError(
                f"losses() take a number off a tensor that depends on the parameters (.{func.__name__}()), so its derivative "
                "would be missing: compute with the tensor itself, or write .detach() before it where no derivative is meant"
            )
        return func(*args, **(kwargs or {}))


_TO_NUMBERS = (Tensor.item, Tensor.tolist, Tensor.__float__, Tensor.__int__)


def probe(learner: Model, batches: Batches) -> Needs:
    """Run the losses of the first batch that is not empty, on the side and twice, and see what they touch.

    Raises:
        UserError: they cannot be replayed or differentiated: hidden randomness or state, numbers taken off tensors, low
            precision, integer buffers that change, functions without a second derivative, parameters kept elsewhere.
    """
    t = next((t for t in range(len(batches)) if len(batches(t))), None)
    if t is None:
        return Needs()
    params = learner.layout.params().requires_grad_()
    _refuse_nonfinite(learner, params)
    batch = batches(t).to(params.device, params.dtype)
    with torch.random.fork_rng(devices=[params.device] if params.is_cuda else []):
        torch.manual_seed(fold_in(batch.seed))
        before, hidden = _global_state(params), _hidden_state()
        buffers = learner.layout.buffers(like=params).detach().clone()
        start = [(x, x._version) for _, x in learner.layout.named_constants()]
        seen, functions = _SeesOperations(), _SeesFunctions()
        leaf = buffers.clone().requires_grad_()  # so that writes are seen, or not, by autograd
        with torch.enable_grad(), learner.running(params, leaf, batch.seed, batch.t):
            held = [(name, x, x._version, x.grad_fn) for name, x in learner.layout.bound_buffers()]
            with _in_words(batch), seen, functions:
                losses = learner.losses(batch)
            _refuse_unseen(learner, held)
        _refuse_changed(learner, start)
        _refuse_low_precision(seen)
        if not losses.requires_grad:
            raise UserError(
                "losses() do not depend on the parameters by operations that have a derivative (argmax, round, .detach() and "
                "torch.no_grad() have none): nothing would be learned"
            )
        _refuse_once_differentiable(losses)
        _refuse_kept_parameters(learner, losses)
        foreign = not torch.equal(before, _global_state(params))
        _refuse_hidden(learner, params, buffers, batch, losses, hidden)
    if foreign:
        log.warning(
            "losses() draws from torch's global generator: it is forked and seeded at every step so that the run can be "
            "replayed (about 140 us a step). metagradient's SeededDropout and step_generator avoid that."
        )
    substitutes = functions.replaced or _tracks_statistics(learner)
    return Needs(foreign, seen.fused_attention, substitutes, any(compiled(m) for m in learner.modules()))


def _refuse_nonfinite(learner: Model, params: Tensor) -> None:
    if bool(torch.isfinite(params).all()):
        return
    parts = params.detach().split(learner.layout.sizes)
    bad = [name for name, part in zip(learner.layout.names, parts, strict=True) if not bool(torch.isfinite(part).all())]
    raise UserError(f"parameter '{bad[0]}' is not finite before the first step: give the model finite initial values")


@contextmanager
def _in_words(batch: Batch) -> Iterator[None]:
    """What torch says of a model that cannot read the first batch, with what the batch is."""
    try:
        yield
    except (UserError, NotImplementedError):
        raise
    except (RuntimeError, TypeError, AttributeError, IndexError, KeyError, ValueError) as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if isinstance(error, torch.OutOfMemoryError) or "allocate" in said:
            raise
        fields = ", ".join(f"{name} {_described(x)}" for name, x in batch.fields.items())
        raise UserError(f"losses() cannot be computed of the first batch ({fields}): {said}") from error


def _described(x: Tensor) -> str:
    return f"{list(x.shape)} {str(x.dtype).removeprefix('torch.')}"


def _tracks_statistics(learner: Model) -> bool:
    """Whether some module may keep running statistics that `DifferentiableBatchNorm` does not keep for it."""
    return any(
        getattr(m, "running_mean", None) is not None and not isinstance(m, DifferentiableBatchNorm)
        for m in learner.modules()
    )


def _refuse_low_precision(seen: _SeesOperations) -> None:
    if seen.low is not None:
        name, dtype = seen.low
        raise UserError(
            f"losses() compute in {str(dtype).removeprefix('torch.')} ({name}; autocast?), where metagradients are wrong without "
            "warning: leave out torch.autocast and casts to lower precision"
        )


def _hidden_state() -> tuple[Any, ...]:
    """The states of the generators that torch does not own."""
    generator = np.random.get_state()  # noqa: NPY002 (the one that others draw from)
    return random.getstate(), *(x.tobytes() if isinstance(x, np.ndarray) else x for x in generator)


def _refuse_hidden(
    learner: Model, params: Tensor, buffers: Tensor, batch: Batch, losses: Tensor, hidden: tuple[Any, ...]
) -> None:
    """The same losses a second time must be the same, and must not have drawn from Python's or NumPy's generators."""
    drawn = _hidden_state() != hidden
    torch.manual_seed(fold_in(batch.seed))
    leaf = params.detach().requires_grad_()  # as in a step: some kernels round otherwise where no gradient is asked for
    with torch.enable_grad(), learner.running(leaf, buffers, batch.seed, batch.t):
        again = learner.losses(batch).detach()
    same = torch.equal(torch.nan_to_num(again), torch.nan_to_num(losses.detach()))
    if drawn or not same:
        what = (
            "draw from Python's or NumPy's global generator" if drawn else "differ when they are computed a second time"
        )
        raise UserError(
            f"losses() {what}, so the run cannot be replayed: draw from metagradient.training.random.step_generator(device) "
            "or torch's generators, and keep no counter or cache between calls"
        )


def _refuse_changed(learner: Model, before: list[tuple[Tensor, int]]) -> None:
    """Buffers of integers are no part of the state, but for counters."""
    for (was, version), (name, is_) in zip(before, learner.layout.named_constants(), strict=True):
        if was is not is_ or was._version != version:
            raise UserError(
                f"losses() change '{name}', which is neither a buffer of floats nor a counter, so the change would be lost when "
                "the run is replayed: make it a buffer of floats"
            )


def _refuse_unseen(learner: Model, held: list[tuple[str, Tensor, int, Any]]) -> None:
    """A buffer that is written in place where autograd does not look has no derivative in what it was."""
    now = dict(learner.layout.bound_buffers())
    for name, x, version, node in held:
        if now[name] is x and x._version != version and x.grad_fn is node:
            raise UserError(
                f"losses() write the buffer '{name}' under torch.no_grad() (spectral norm does), so the derivative of what it says "
                "later would be wrong: write it where gradients are recorded, or keep that module in evaluation mode"
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

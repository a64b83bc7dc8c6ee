"""Whether a step's adjoint exists, tried before a run starts rather than met at its end."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

from metagradient.errors import UserError
from metagradient.learners.learner import Learner
from metagradient.training.batches import Batch
from metagradient.training.state import TrainState
from metagradient.training.steps import loss_gradient
from metagradient.training.updates import Lion, rules

_NO_DERIVATIVE = re.compile(r"derivative for '?(?:aten::)?(\w+?)'? is not implemented")
_OWN = ("torch.", "metagradient.")
_STEP = {torch.float32: 1e-2, torch.float64: 1e-5}  # relative to the parameters' norm
_TOLERANCE = {torch.float32: 0.3, torch.float64: 0.02}


def warn_of_signs(learner: Learner) -> None:
    """Say that Lion's sign has no derivative."""
    if any(isinstance(rule, Lion) for rule in rules(learner.update.optimizer)):
        warnings.warn(
            "Lion steps by the sign of a vector, and a sign has no derivative: the metagradient of anything that acts through "
            "the gradients (data weights, pixels) is 0; that of learning rates and weight decay is right",
            stacklevel=2,
        )


def pull(learner: Learner, batch: Batch, state: TrainState, first: Sequence[Tensor], last: Sequence[Tensor]) -> None:
    """Pull a cotangent from `last` to `first`, the tensors after and before a taped step with `batch`.

    Raises:
        UserError: an operation has no second derivative; it is named with the module that calls it.
    """
    live = [x for x in last if x.requires_grad]
    if not live:
        return
    try:
        torch.autograd.grad(live, list(first), [torch.ones_like(x) for x in live], allow_unused=True)
    except RuntimeError as error:
        reason = _reason(str(error), learner, batch, state)
        if reason is None:
            raise
        raise UserError(reason) from error


def _reason(message: str, learner: Learner, batch: Batch, state: TrainState) -> str | None:
    match = _NO_DERIVATIVE.search(message)
    if match is not None:
        name = match[1].removeprefix("_").removesuffix("_backward")
        where = _callers(learner, batch, state).get(_bare(name), "losses()")
        return (
            f"{name}, called in {where}, has no second derivative in torch, which a replay needs: use another operation "
            "there, or write it in operations that have one"
        )
    if "double backward" in message:
        return (
            "losses() go through a function compiled by torch.compile, which has no second derivative: leave it as it was "
            "written, and set learner.compiled=true to compile the whole step with its adjoint"
        )
    if "modified by an inplace operation" in message:
        return f"losses() overwrite a tensor that their derivative needs: write the operation out of place ({message.splitlines()[0]})"
    return None


def _bare(name: str) -> str:
    """`HardsigmoidBackward0` and `hardsigmoid` alike."""
    return re.sub(r"backward\d*$", "", name.replace("_", "").lower())


def _callers(learner: Learner, batch: Batch, state: TrainState) -> dict[str, str]:
    """For each operation of the losses, by its bare name, the module that calls it first."""
    paths = {id(module): name for name, module in learner.named_modules()}
    stack: list[nn.Module] = []
    found: dict[str, str] = {}

    class Seen(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            node = result.grad_fn if isinstance(result, Tensor) else None
            if node is not None:
                where = "losses()"
                if stack:
                    where = f"'{paths.get(id(stack[-1]), '')}' ({type(stack[-1]).__name__})"
                found.setdefault(_bare(node.name()), where)
            return result

    params = state.params.detach().requires_grad_()
    with (
        torch.enable_grad(),
        _entering(stack),
        learner.running(params, state.buffers.detach(), batch.seed, batch.t),
        Seen(),
    ):
        learner.losses(batch)
    return found


@contextmanager
def _entering(stack: list[nn.Module]) -> Iterator[None]:
    """Inside, `stack` holds the modules whose forward runs, innermost last."""

    def leave(*_: Any) -> None:
        stack.pop()

    before = register_module_forward_pre_hook(lambda module, _: stack.append(module))
    after = register_module_forward_hook(leave, always_call=True)
    try:
        yield
    finally:
        before.remove()
        after.remove()


def refuse_wrong_functions(learner: Learner, batch: Batch, state: TrainState) -> None:
    """Where the losses go through custom autograd functions, compare the derivative of their gradient with its differences.

    A `backward` that computes with something other than its saved tensors (an attribute of ctx, `.detach()`, NumPy) has
    a derivative that autograd cannot see, and it would be missing without a word. Along the gradient g, v = g / ||g||, the
    change w of the gradient by central differences is compared with autograd's: (J^T w / ||w||) v against ||w||.

    Raises:
        UserError: they differ; the functions are named.
    """
    params = state.params.detach().requires_grad_()
    with torch.enable_grad(), learner.running(params, state.buffers, batch.seed, batch.t):
        names = _custom(learner.losses(batch))
    if not names:
        return

    def gradient(at: Tensor, tape: bool = False) -> Tensor:
        return loss_gradient(learner, at, state.buffers, batch, None, batch.t, tape=tape)[0]

    taped = gradient(params, tape=True)
    size = float(taped.detach().norm())
    if not taped.requires_grad or not size > 0:
        return
    v = taped.detach() / size
    h = _STEP[params.dtype] * max(float(params.detach().norm()), 1e-3)
    ahead, behind = (gradient((params.detach() + s * h * v).requires_grad_()).detach() for s in (1, -1))
    w = (ahead - behind) / (2 * h)
    change = float(w.norm())
    if change * h < 1e3 * torch.finfo(params.dtype).eps * size:
        return  # too straight to be measured
    (pulled,) = torch.autograd.grad(taped, params, w / change, allow_unused=True)
    found = 0.0 if pulled is None else float(pulled @ v)
    if not abs(found - change) <= _TOLERANCE[params.dtype] * change:
        raise UserError(
            f"losses() go through {', '.join(names)}, written by hand, and the derivative of its backward is not what the gradient "
            f"does ({found:.3g} against {change:.3g} by differences): compute backward from ctx.saved_tensors in differentiable "
            "operations, without steps"
        )


def _custom(losses: Tensor) -> list[str]:
    """Names of the Python autograd functions in a graph that are neither torch's nor ours."""
    seen, todo, names = set(), [losses.grad_fn], set()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        todo += [following for following, _ in node.next_functions]
        function = getattr(node, "_forward_cls", None)
        if function is not None and not f"{function.__module__}.".startswith(_OWN):
            names.add(function.__name__)
    return sorted(names)

"""Per-example gradients of a learner's losses, taken with hooks from one forward and one backward pass."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metagradient.attribution.gradients.pieces import Dense, Outer, Piece, Sum
from metagradient.attribution.gradients.sides import OneHot, Patches, Plain
from metagradient.errors import UserError
from metagradient.learners.learner import Learner
from metagradient.training.batches import Batch
from metagradient.training.state import TrainState

log = logging.getLogger(__name__)

Target = Callable[[Learner, Batch], Tensor]
"""(learner, batch) -> [B], the scalar of each example that is differentiated, or [S, B] for S of them."""


@dataclass(frozen=True)
class Parameter:
    """A trainable parameter as the compressors see it: `rows` x `columns` entries from `start` on in the vector [P].

    Vectors have one column; a convolution's [O, C, kh, kw] has O rows.
    """

    name: str
    start: int
    rows: int
    columns: int

    @property
    def size(self) -> int:
        return self.rows * self.columns


def losses(learner: Learner, batch: Batch) -> Tensor:
    """The target of influence functions: the learner's own losses, [B]."""
    return learner.losses(batch)


@dataclass(frozen=True, eq=False)
class _Call:
    """One call of a module during the forward pass."""

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Tensor


class ExampleGradients:
    """Per-example gradients at a state, in evaluation mode, parameter by parameter as `Piece`s.

    For `nn.Linear`, `nn.Conv2d`, `nn.Embedding`, `nn.LayerNorm` and batch norms they come from the layer's input and
    the gradient of its output; for any other module that owns parameters from a vmap over examples of that module
    alone, which is slower and said once. The first batch is checked against single backward passes.

    Raises:
        UserError: losses in which one example sees another, and for parameters used outside their own module.
    """

    def __init__(self, learner: Learner, state: TrainState) -> None:
        self.learner, self.state = learner, learner.update.read(state.detach())
        layout = learner.layout
        self.parameters: list[Parameter] = []
        self._place: dict[tuple[int, str], int] = {}
        start = 0
        for i, (name, shape, owners) in enumerate(zip(layout.names, layout.shapes, layout.owners, strict=True)):
            rows = shape[0] if shape else 1
            self.parameters.append(Parameter(name, start, rows, shape.numel() // rows))
            start += shape.numel()
            for owner, key in owners:
                self._place[id(owner), key] = i
        self._modules = list({id(o): o for owners in layout.owners for o, _ in owners}.values())
        self._checked = False
        slow = sorted({type(m).__name__ for m in self._modules if _rule(m) is None})
        if slow:
            log.info("no rule for the per-example gradients of %s: taken by vmap, slower", ", ".join(slow))

    @property
    def size(self) -> int:
        """P, the number of trainable parameters."""
        return sum(p.size for p in self.parameters)

    def __call__(self, batch: Batch, target: Target = losses) -> Iterator[list[Piece]]:
        """The pieces of every parameter, in the order of `parameters`: once, or S times for a target [S, B]."""
        if not self._checked:
            self._checked = True
            self._check(batch)
        yield from self._pieces(batch, target)

    def _pieces(self, batch: Batch, target: Target) -> Iterator[list[Piece]]:
        batch = batch.to(self.state.params.device, self.state.params.dtype)
        leaf = self.state.leaf()
        with torch.enable_grad(), self.learner.evaluating(leaf), self._recorded() as calls:
            value = target(self.learner, batch)
        if value.shape[-1] != len(batch) or value.dim() > 2:
            raise UserError(
                f"per-example gradients need one value for each of {len(batch)} examples, not {value.shape}"
            )
        rows = value.unsqueeze(0) if value.dim() == 1 else value
        outputs = [call.output for call in calls]
        for s, row in enumerate(rows):
            deltas = torch.autograd.grad(
                row.sum(), outputs, retain_graph=s + 1 < len(rows), allow_unused=True, materialize_grads=True
            )
            with torch.no_grad(), self.learner.evaluating(self.state):
                yield self._assemble(calls, deltas, len(batch))

    @contextmanager
    def _recorded(self) -> Iterator[list[_Call]]:
        calls: list[_Call] = []

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            if not isinstance(output, Tensor):
                raise UserError(
                    f"per-example gradients need modules that return one tensor, not {type(module).__name__}'s"
                )
            calls.append(_Call(module, args, kwargs, output))

        handles = [m.register_forward_hook(hook, with_kwargs=True) for m in self._modules]
        try:
            yield calls
        finally:
            for handle in handles:
                handle.remove()

    def _assemble(self, calls: Sequence[_Call], deltas: Sequence[Tensor], examples: int) -> list[Piece]:
        found: dict[int, list[Piece]] = {}
        for call, delta in zip(calls, deltas, strict=True):
            rule = _rule(call.module) or _by_vmap
            keys = [k for k in call.module._parameters if (id(call.module), k) in self._place]
            if call.output.shape[0] != examples:
                raise UserError(
                    f"per-example gradients need the batch as the first dimension of {type(call.module).__name__}'s "
                    f"output, [{examples}, ...], not {list(call.output.shape)}"
                )
            for key, piece in rule(call, delta, keys).items():
                found.setdefault(self._place[id(call.module), key], []).append(piece)
        missing = [p.name for i, p in enumerate(self.parameters) if i not in found]
        if missing:
            raise UserError(
                f"per-example gradients of {', '.join(missing)}: the module that owns them is never called; use the "
                "parameter inside its own module's forward"
            )
        lists = [found[i] for i in range(len(self.parameters))]
        return [parts[0] if len(parts) == 1 else Sum(parts) for parts in lists]

    def _check(self, batch: Batch) -> None:
        """Two examples of the first batch against the backward pass of the first one alone."""
        two = _rows(batch, 2).to(self.state.params.device, self.state.params.dtype)
        pieces = next(self._pieces(two, losses))
        leaf = self.state.leaf()
        with torch.enable_grad(), self.learner.evaluating(leaf):
            (single,) = torch.autograd.grad(self.learner.losses(_rows(two, 1)).sum(), leaf.params)
        tolerance = 1e-3 * float(single.norm())
        for p, piece in zip(self.parameters, pieces, strict=True):
            difference = piece.dense(0, p.rows)[0] - single[p.start : p.start + p.size]
            if float(difference.norm()) > tolerance:
                raise UserError(
                    f"the per-example gradient of {p.name} is not that of the example alone: its loss depends on the "
                    "other examples of the batch (a contrastive loss, say), or the parameter is used outside its module"
                )


def _rows(batch: Batch, count: int) -> Batch:
    return Batch(batch.t, batch.index[:count], {k: v[:count] for k, v in batch.fields.items()}, batch.seed)


# -- rules: what a layer's input and its output's gradient say about its parameters --------------------------------------

Rule = Callable[[_Call, Tensor, Sequence[str]], dict[str, Piece]]


def _flat(x: Tensor) -> Plain:
    """[B, ..., D] -> rows [B T, D]."""
    return Plain(x.detach().reshape(-1, x.shape[-1]), x[0].numel() // x.shape[-1])


def _vector(x: Tensor) -> Dense:
    """[B, ..., D] summed over the positions in between: the gradient of a vector [D]."""
    return Dense(x.reshape(x.shape[0], -1, x.shape[-1]).sum(1).unsqueeze(2))


def _linear(call: _Call, delta: Tensor, keys: Sequence[str]) -> dict[str, Piece]:
    pieces: dict[str, Piece] = {}
    if "weight" in keys:
        pieces["weight"] = Outer(_flat(delta), _flat(call.args[0]), delta.shape[0])
    if "bias" in keys:
        pieces["bias"] = _vector(delta)
    return pieces


def _conv2d(call: _Call, delta: Tensor, keys: Sequence[str]) -> dict[str, Piece]:
    m: Any = call.module
    delta = delta.movedim(1, -1)  # [B, h, w, O]
    pieces: dict[str, Piece] = {}
    if "weight" in keys:
        (top, left) = m.padding
        padded = F.pad(call.args[0].detach(), (left, left, top, top))
        windows = Patches(padded, m.kernel_size, m.stride, m.dilation)
        pieces["weight"] = Outer(_flat(delta), windows, delta.shape[0])
    if "bias" in keys:
        pieces["bias"] = _vector(delta)
    return pieces


def _embedding(call: _Call, delta: Tensor, keys: Sequence[str]) -> dict[str, Piece]:
    index = call.args[0]
    hot = OneHot(index.reshape(-1), call.module.num_embeddings, index[0].numel(), delta.dtype)  # type: ignore[arg-type]
    return {"weight": Outer(hot, _flat(delta), delta.shape[0])} if keys else {}


def _layer_norm(call: _Call, delta: Tensor, keys: Sequence[str]) -> dict[str, Piece]:
    m: Any = call.module
    normal = F.layer_norm(call.args[0].detach(), m.normalized_shape, eps=m.eps)
    both = {"weight": delta * normal, "bias": delta}
    return {key: _vector(both[key]) for key in keys}


def _batch_norm(call: _Call, delta: Tensor, keys: Sequence[str]) -> dict[str, Piece]:
    m: Any = call.module
    x = call.args[0].detach().movedim(1, -1)
    normal = (x - m.running_mean) * torch.rsqrt(m.running_var + m.eps)
    delta = delta.movedim(1, -1)
    both = {"weight": delta * normal, "bias": delta}
    return {key: _vector(both[key]) for key in keys}


def _by_vmap(call: _Call, delta: Tensor, keys: Sequence[str]) -> dict[str, Piece]:
    """Any module: vmap over examples of the pullback of its forward in its own parameters."""
    own = {key: call.module._parameters[key].detach() for key in keys}  # type: ignore[union-attr]
    batched = [isinstance(a, Tensor) and a.dim() > 0 and a.shape[0] == delta.shape[0] for a in call.args]
    if call.kwargs or not all(batched):
        raise UserError(
            f"per-example gradients of {type(call.module).__name__} need a module called with batched tensors alone"
        )

    def one(cotangent: Tensor, *inputs: Tensor) -> dict[str, Tensor]:
        def forward(parameters: dict[str, Tensor]) -> Tensor:
            return torch.func.functional_call(call.module, parameters, tuple(x.unsqueeze(0) for x in inputs))

        pull: Any = torch.func.vjp(forward, own)[1]
        return pull(cotangent.unsqueeze(0))[0]

    gradients = torch.func.vmap(one)(delta, *(x.detach() for x in call.args))
    return {
        key: Dense(g.reshape(len(g), own[key].shape[0] if own[key].dim() else 1, -1)) for key, g in gradients.items()
    }


def _rule(module: nn.Module) -> Rule | None:
    if isinstance(module, nn.Linear):
        return _linear
    if isinstance(module, nn.Conv2d) and module.groups == 1 and module.padding_mode == "zeros":
        return None if isinstance(module.padding, str) else _conv2d
    if type(module) is nn.Embedding and module.padding_idx is None and not module.scale_grad_by_freq:
        return _embedding if module.max_norm is None and not module.sparse else None
    if isinstance(module, nn.LayerNorm) and len(module.normalized_shape) == 1:
        return _layer_norm
    if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
        return _batch_norm
    return None

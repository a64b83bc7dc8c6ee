"""What a layer's input and the gradient of its output say about the gradients of its parameters, example by example."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metagradient.attribution.gradients.pieces import Dense, Outer, Piece
from metagradient.attribution.gradients.sides import OneHot, Patches, Plain


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a module during the forward pass."""

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Tensor
    batched: Batched | None = None

    @property
    def tensors(self) -> dict[int | str, Any]:
        """The arguments by place or name."""
        return dict([*enumerate(self.args), *self.kwargs.items()])


@dataclass(frozen=True)
class Batched:
    """Which of a call's arguments, and whether its output, have the batch as their first dimension."""

    arguments: frozenset[int | str]
    output: bool

    @staticmethod
    def of(one: Call, two: Call) -> Batched:
        """Told by the same call with one example and with two."""

        def grows(x: Any, y: Any) -> bool:
            both = isinstance(x, Tensor) and isinstance(y, Tensor) and x.dim() == y.dim() > 0
            return both and x.shape[0] == 1 and y.shape[0] == 2

        seen = zip(one.tensors.items(), two.tensors.values(), strict=True)
        return Batched(
            frozenset(name for (name, x), y in seen if grows(x, y)),
            grows(one.output, two.output),
        )


Rule = Callable[[Call, Tensor, Sequence[str]], dict[str, Piece]]


def _flat(x: Tensor) -> Plain:
    """[B, ..., D] -> rows [B T, D]."""
    return Plain(x.detach().reshape(-1, x.shape[-1]), x[0].numel() // x.shape[-1])


def _vector(x: Tensor) -> Dense:
    """[B, ..., D] summed over the positions in between: the gradient of a vector [D]."""
    return Dense(x.reshape(x.shape[0], -1, x.shape[-1]).sum(1).unsqueeze(2))


def _linear(call: Call, delta: Tensor, keys: Sequence[str]) -> dict[str, Piece]:
    pieces: dict[str, Piece] = {}
    if "weight" in keys:
        pieces["weight"] = Outer(_flat(delta), _flat(call.args[0]), delta.shape[0])
    if "bias" in keys:
        pieces["bias"] = _vector(delta)
    return pieces


def _transposed_linear(call: Call, delta: Tensor, keys: Sequence[str]) -> dict[str, Piece]:
    """`Conv1D` of transformers: a linear map whose weight is [in, out]."""
    pieces: dict[str, Piece] = {}
    if "weight" in keys:
        pieces["weight"] = Outer(_flat(call.args[0]), _flat(delta), delta.shape[0])
    if "bias" in keys:
        pieces["bias"] = _vector(delta)
    return pieces


def _conv2d(call: Call, delta: Tensor, keys: Sequence[str]) -> dict[str, Piece]:
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


def _embedding(call: Call, delta: Tensor, keys: Sequence[str]) -> dict[str, Piece]:
    index = call.args[0]
    index = index.expand(delta.shape[0], *index.shape[1:]) if index.shape[0] == 1 else index
    hot = OneHot(index.reshape(-1), call.module.num_embeddings, index[0].numel(), delta.dtype)  # type: ignore[arg-type]
    return {"weight": Outer(hot, _flat(delta), delta.shape[0])} if keys else {}


def _layer_norm(call: Call, delta: Tensor, keys: Sequence[str]) -> dict[str, Piece]:
    m: Any = call.module
    normal = F.layer_norm(call.args[0].detach(), m.normalized_shape, eps=m.eps)
    both = {"weight": delta * normal, "bias": delta}
    return {key: _vector(both[key]) for key in keys}


def _batch_norm(call: Call, delta: Tensor, keys: Sequence[str]) -> dict[str, Piece]:
    m: Any = call.module
    x = call.args[0].detach().movedim(1, -1)
    normal = (x - m.running_mean) * torch.rsqrt(m.running_var + m.eps)
    delta = delta.movedim(1, -1)
    both = {"weight": delta * normal, "bias": delta}
    return {key: _vector(both[key]) for key in keys}


def by_vmap(call: Call, delta: Tensor, keys: Sequence[str]) -> dict[str, Piece]:
    """Any module: vmap over examples of the pullback of its forward in its own parameters."""
    own = {key: call.module._parameters[key].detach() for key in keys}  # type: ignore[union-attr]
    assert call.batched is not None
    constant = {name: x.detach() if isinstance(x, Tensor) else x for name, x in call.tensors.items()}
    mapped = {name: constant.pop(name) for name in call.tensors if name in call.batched.arguments}

    def one(cotangent: Tensor, inputs: dict[int | str, Tensor]) -> dict[str, Tensor]:
        def forward(parameters: dict[str, Tensor]) -> Tensor:
            given = {**constant, **{name: x.unsqueeze(0) for name, x in inputs.items()}}
            args = tuple(given[i] for i in range(len(call.args)))
            return torch.func.functional_call(
                call.module, parameters, args, {name: given[name] for name in call.kwargs}
            )

        pull: Any = torch.func.vjp(forward, own)[1]
        return pull(cotangent.unsqueeze(0))[0]

    gradients = torch.func.vmap(one)(delta, mapped)
    return {
        key: Dense(g.reshape(len(g), own[key].shape[0] if own[key].dim() else 1, -1)) for key, g in gradients.items()
    }


def rule_of(module: nn.Module) -> Rule | None:
    if isinstance(module, nn.Linear):
        return _linear
    if (type(module).__module__, type(module).__name__) == ("transformers.pytorch_utils", "Conv1D"):
        return _transposed_linear
    if isinstance(module, nn.Conv2d) and module.groups == 1 and module.padding_mode == "zeros":
        return None if isinstance(module.padding, str) else _conv2d
    if type(module) is nn.Embedding and module.padding_idx is None and not module.scale_grad_by_freq:
        return _embedding if module.max_norm is None and not module.sparse else None
    if isinstance(module, nn.LayerNorm) and len(module.normalized_shape) == 1:
        return _layer_norm
    if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
        return _batch_norm
    return None

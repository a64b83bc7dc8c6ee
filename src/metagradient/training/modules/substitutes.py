"""torch's functions that a replay cannot differentiate as they are, computed by other formulas while the losses run.

They are replaced by what a model calls, not by its modules' classes, so that it holds for anybody's modules:

* running statistics (`F.batch_norm`, `F.instance_norm`): the kernels write them outside autograd, and read them in
  evaluation without a derivative;
* `F.hardsigmoid`, `torch.cdist`, `F.pdist`, `F.embedding_bag`, `F.multi_margin_loss`: torch has no second derivative;
* `torch._weight_norm` (weight normalisation), `F.linear_cross_entropy`: torch's second derivative is wrong;
* `F.embedding(sparse=True)`: its gradient is a sparse tensor, which flat vectors cannot hold.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from metagradient.errors import UserError
from metagradient.training.modules.replayable import normalised_by_batch


class Substitutes(TorchFunctionMode):
    """Inside, the functions of `SUBSTITUTES` are computed by formulas that can be differentiated twice."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return SUBSTITUTES.get(func, func)(*args, **(kwargs or {}))


def replaced(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether `Substitutes` computes this call by another formula."""
    if func is F.embedding:
        given = inspect.signature(_embedding).bind(*args, **kwargs).arguments
        return any(given.get(name) for name in ("max_norm", "scale_grad_by_freq", "sparse"))
    return func in SUBSTITUTES


@contextmanager
def uncompiled() -> Iterator[None]:
    """Inside, what was handed to `torch.compile` runs as it was written: compiled graphs have no second derivative."""
    with torch.compiler.set_stance("force_eager"):
        yield


def compiled(module: nn.Module) -> bool:
    """Whether `torch.compile` was applied to this module."""
    return module._compiled_call_impl is not None or "_orig_mod" in module._modules


def _per_channel(x: Tensor) -> tuple[int, ...]:
    """The shape in which [C] broadcasts against x [B, C, ...]."""
    return (1, -1) + (1,) * (x.dim() - 2)


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    shape = _per_channel(x)
    x = x if weight is None else x * weight.view(shape)
    return x if bias is None else x + bias.view(shape)


def _track(running: Tensor, new: Tensor, momentum: float) -> None:
    """running <- (1 - momentum) running + momentum new, seen by autograd (`Layout.bind` gives each run its own copy)."""
    running.copy_((1 - momentum) * running + momentum * new)


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    shape = _per_channel(input)
    if not training and running_mean is not None and running_var is not None:
        normalised = (input - running_mean.view(shape)) * torch.rsqrt(running_var + eps).view(shape)
        return _affine(normalised, weight, bias)
    tracked = running_mean is not None and running_var is not None
    output, mean, var = normalised_by_batch(input, weight, bias, eps, tracked)
    if running_mean is not None and running_var is not None:
        _track(running_mean, mean, momentum)
        _track(running_var, var, momentum)
    return output


def _torch_batch_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool = True,
) -> Tensor:
    return _batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)


def _instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not use_input_stats:
        return _batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    if running_mean is not None and running_var is not None:
        var, mean = torch.var_mean(input, list(range(2, input.dim())))
        _track(running_mean, mean.mean(0), momentum)
        _track(running_var, var.mean(0), momentum)
    return F.instance_norm(input, None, None, weight, bias, True, momentum, eps)


def _hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    return F.relu6(input + 3) / 6  # torch's values; its own first derivative has 1 / 6 rounded to float32


def _distances(difference: Tensor, p: float) -> Tensor:
    """|difference|_p over the last dimension. At 0 the derivatives of a root are taken as 0, as torch's kernel does."""
    if p == 1:
        return difference.abs().sum(-1)
    if p == float("inf"):
        return difference.abs().amax(-1)
    if p == 0:
        return (difference != 0).to(difference.dtype).sum(-1)
    powers = difference.square().sum(-1) if p == 2 else difference.abs().pow(p).sum(-1)
    zero = powers == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, powers).pow(1 / p))


def _cdist(x1: Tensor, x2: Tensor, p: float = 2.0, compute_mode: str = "") -> Tensor:
    return _distances(x1.unsqueeze(-2) - x2.unsqueeze(-3), p)


def _pdist(input: Tensor, p: float = 2.0) -> Tensor:
    rows, columns = torch.triu_indices(len(input), len(input), offset=1, device=input.device)
    return _distances(input[rows] - input[columns], p)


def _embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    _plain_rows(max_norm, scale_grad_by_freq)
    return F.embedding(input, weight, padding_idx)


def _embedding_bag(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    _plain_rows(max_norm, scale_grad_by_freq)
    if mode == "max":
        raise UserError("an embedding bag with mode='max' has no second derivative in torch: use mode='sum' or 'mean'")
    if input.dim() == 2:
        bags, width = input.shape
        bag = torch.arange(bags, device=input.device).repeat_interleave(width)
    else:
        assert offsets is not None
        starts = offsets[:-1] if include_last_offset else offsets
        bags = len(starts)
        bag = torch.searchsorted(starts.contiguous(), torch.arange(len(input), device=input.device), right=True) - 1
    flat = input.reshape(-1)
    rows = F.embedding(flat, weight, padding_idx)
    counted = torch.ones_like(flat) if padding_idx is None else (flat != padding_idx % len(weight)).long()
    rows = rows * counted.unsqueeze(-1)
    if per_sample_weights is not None:
        rows = rows * per_sample_weights.reshape(-1, 1)
    total = rows.new_zeros(bags, rows.shape[-1]).index_add(0, bag, rows)
    if mode == "sum":
        return total
    sizes = torch.zeros(bags, dtype=torch.long, device=input.device).index_add(0, bag, counted)
    return total / sizes.clamp(min=1).unsqueeze(-1)


def _plain_rows(max_norm: float | None, scale_grad_by_freq: bool) -> None:
    if max_norm is not None:
        raise UserError(
            "an embedding with max_norm rescales its weight in place while it is read, outside autograd, so the run cannot "
            "be replayed: leave out max_norm"
        )
    if scale_grad_by_freq:
        raise UserError(
            "an embedding with scale_grad_by_freq=True has a gradient that is the derivative of no loss: leave it out"
        )


def _multi_margin_loss(
    input: Tensor,
    target: Tensor,
    p: int = 1,
    margin: float = 1.0,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    true = input.gather(-1, target.unsqueeze(-1))
    terms = F.relu(margin - true + input)
    terms = terms if p == 1 else terms**p
    if weight is not None:
        terms = terms * weight[target].unsqueeze(-1)
    others = torch.ones_like(input).scatter(-1, target.unsqueeze(-1), 0.0)
    losses = (terms * others).sum(-1) / input.shape[-1]
    if reduction == "none":
        return losses
    return losses.sum() if reduction == "sum" else losses.mean()


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    over = list(range(v.dim())) if dim == -1 else [d for d in range(v.dim()) if d != dim % v.dim()]
    return v * (g / v.square().sum(over, keepdim=True).sqrt())


def _linear_cross_entropy(*args: Any, **settings: Any) -> Tensor:
    return F.linear_cross_entropy(*args, **{**settings, "options": None})


SUBSTITUTES: dict[Any, Callable[..., Any]] = {
    F.batch_norm: _batch_norm,
    torch.batch_norm: _torch_batch_norm,
    F.instance_norm: _instance_norm,
    F.hardsigmoid: _hardsigmoid,
    torch.cdist: _cdist,
    F.pdist: _pdist,
    torch.pdist: _pdist,
    F.embedding: _embedding,
    F.embedding_bag: _embedding_bag,
    F.multi_margin_loss: _multi_margin_loss,
    torch._weight_norm: _weight_norm,
}
if hasattr(F, "linear_cross_entropy"):  # torch >= 2.13
    SUBSTITUTES[F.linear_cross_entropy] = _linear_cross_entropy
"""What is computed instead, by function."""

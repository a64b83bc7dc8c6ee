"""Two operations between tensors that all processes hold alike and tensors of which each holds its own.

`copy` goes from what is replicated into a process's own computation, `reduce` comes back from it. They are conjugate: the
derivative of each is the other,

    copy:   x_r = x           cotangent of x:    sum over r of that of x_r
    reduce: y = sum_r y_r     cotangent of y_r:  that of y

so both can be differentiated any number of times. Whatever else runs between processes is made of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from metagradient.distributed.group import Group


def copy(group: Group, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Replicated tensors as this process's own; their cotangents are summed over the group, in one call for all of them."""
    return tensors if group.alone else _Copy.apply(group, *tensors)  # type: ignore[no-untyped-call, no-any-return]


def reduce(group: Group, *tensors: Tensor) -> tuple[Tensor, ...]:
    """The sums over the group of tensors that have the same shapes in each process, in one call for all of them."""
    return tensors if group.alone else _Reduce.apply(group, *tensors)  # type: ignore[no-untyped-call, no-any-return]


def gather(group: Group, total: int, *tensors: Tensor, dim: int = 0) -> tuple[Tensor, ...]:
    """The rows of all processes, replicated; each has given its share (`Group.share`) of the `total`, of one tensor or several.

    For use in what all processes compute alike: the cotangent that comes back is replicated, and each takes its own rows of it.
    """
    if group.alone:
        return tensors
    start, stop = group.share(total)

    def placed(rows: Tensor) -> Tensor:
        before, after = list(rows.shape), list(rows.shape)
        before[dim], after[dim] = start, total - stop
        return torch.cat([rows.new_zeros(before), rows, rows.new_zeros(after)], dim)

    return reduce(group, *map(placed, tensors))


def summed(group: Group, function: Callable[..., tuple[Tensor, ...]], *inputs: Tensor) -> tuple[Tensor, ...]:
    """sum_r function_r(*inputs), for replicated inputs and a function of which each process computes its own terms.

    There is one call between processes for the sums, and one in their derivative, also of a process whose function reads none
    of the inputs.
    """
    if group.alone:
        return function(*inputs)
    *own, zero = copy(group, *inputs, inputs[0].new_zeros(()))
    first, *others = function(*own)
    return reduce(group, first + zero, *others)


class _Copy(torch.autograd.Function):
    @staticmethod
    def forward(group: Group, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(x.view_as(x) for x in tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.group = inputs[0]

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        return None, *reduce(ctx.group, *cotangents)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], group: Group, *tensors: Tensor) -> Any:
        return copy(group, *tensors), in_dims[1:]


class _Reduce(torch.autograd.Function):
    @staticmethod
    def forward(group: Group, *tensors: Tensor) -> tuple[Tensor, ...]:
        found: dict[int, Tensor] = {}
        for dtype in dict.fromkeys(x.dtype for x in tensors):
            alike = [i for i, x in enumerate(tensors) if x.dtype == dtype]
            flat = group.add(torch.cat([tensors[i].reshape(-1) for i in alike]))
            parts = flat.split([tensors[i].numel() for i in alike])
            found |= {i: part.view(tensors[i].shape) for i, part in zip(alike, parts, strict=True)}
        return tuple(found[i] for i in range(len(tensors)))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.group = inputs[0]

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        return None, *copy(ctx.group, *cotangents)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], group: Group, *tensors: Tensor) -> Any:
        # A tensor that is batched in one process may be a constant in another, zeros where it has no rows.
        whole = [
            x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)
            for x, dim in zip(tensors, in_dims[1:], strict=True)
        ]
        return reduce(group, *whole), (0,) * len(whole)

"""A CUDA device that is not there: its tensors lie on the CPU, and calls that mix them with the CPU's are refused as on a GPU.

torch's own `FakeTensorMode` pretends as well, but its tensors have no values, which plans and checks of a run read, and its autograd
fails where torch was built for CUDA and there is no driver. Here all is computed, so that results can be compared as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

CUDA = torch.device("cuda", 0)
_THERE = ("cuda", "meta")
"""What the device is called: by Python, and by torch's own code, whose autograd runs on `meta` without a driver."""

_aten = torch.ops.aten
_ACROSS = {_aten._to_copy.default, _aten.copy_.default}
_INDEXING = {_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default, _aten._index_put_impl_.default}
"""The indices of these may lie on the CPU; of the others' arguments none but a pointwise operation's numbers."""


class Placed(Tensor):
    """A tensor of the device, and where its values lie."""

    values: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, values: Tensor) -> Placed:
        made = Tensor._make_wrapper_subclass(
            cls, values.shape, values.stride(), values.storage_offset(), dtype=values.dtype, device="meta"
        )
        made.values = values
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return CUDA

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True

    def tolist(self) -> Any:
        return self.values.tolist()

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"Placed({self.values})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Device(TorchDispatchMode):
    """Makes tensors where they are asked for."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Calls(TorchFunctionMode):
    """Sees what has its device before torch dispatches: generators, and constructors from numbers."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        place, drawn = kwargs.get("device"), kwargs.get("generator")
        own = any(isinstance(x, Tensor) and x.device.type in _THERE for x in tree_flatten(args)[0])
        there = own if place is None else torch.device(place).type in _THERE
        if drawn is not None and getattr(drawn, "there", False) != there:
            raise RuntimeError(f"{func}: Expected a '{'cuda' if there else 'cpu'}' device type for generator")
        if func in (torch.tensor, torch.as_tensor) and place is not None:
            made = func(*args, **{**kwargs, "device": "cpu"})
            return made.to(CUDA) if there else made
        return func(*args, **kwargs)


class Generator(torch.Generator):
    """In place of `torch.Generator`: one of the device draws there alone."""

    there: bool

    def __new__(cls, device: Any = "cpu") -> Generator:
        made = super().__new__(cls)
        made.there = torch.device(device).type in _THERE
        return made


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    flat, spec = tree_flatten((args, kwargs))
    own = [x for x in flat if isinstance(x, Placed)]
    _refuse_mixed(func, args, flat, own)
    place = kwargs.get("device")
    there = bool(own) if place is None else torch.device(place).type in _THERE
    given, named = tree_unflatten([_values(x) for x in flat], spec)
    if place is not None:
        named = {**named, "device": torch.device("cpu")}
    named.pop("pin_memory", None)  # needs a driver
    result = func(*given, **named)
    if func is _aten._to_copy.default and result is given[0]:
        result = result.clone()
    if _writes(func):  # into the tensor that it returns
        return args[0] if isinstance(result, Tensor) else result
    return tree_map(lambda x: Placed(x) if isinstance(x, Tensor) else x, result) if there else result


def _values(x: Any) -> Any:
    return x.values if isinstance(x, Placed) else x


def _writes(func: Any) -> bool:
    first = func._schema.arguments[0].alias_info if func._schema.arguments else None
    return first is not None and first.is_write


def _refuse_mixed(func: Any, args: Any, flat: list[Any], own: list[Placed]) -> None:
    """As on a GPU: what lies on the CPU may be copied, index, or be a number in a pointwise operation."""
    others = [x for x in flat if isinstance(x, Tensor) and not isinstance(x, Placed)]
    if not own or not others or func in _ACROSS:
        return
    if func in _INDEXING:
        others = [x for x in args if isinstance(x, Tensor) and not isinstance(x, Placed)]
    if torch.Tag.pointwise in func.tags:
        others = [x for x in others if x.dim()]
    if others:
        shapes = [list(x.shape) for x in flat if isinstance(x, Tensor)]
        raise RuntimeError(f"{func}: Expected all tensors to be on the same device, cuda:0 and cpu, of shapes {shapes}")


@contextmanager
def pretended_cuda(memory: int = 2**33) -> Iterator[torch.device]:
    """Inside, `cuda` is a device of so many bytes, for tensors and for the generators of a run; `torch.cuda` does not know it."""
    with pytest.MonkeyPatch.context() as patch, _Device(), _Calls():
        patch.setattr(torch.cuda, "_lazy_init", lambda: None)
        patch.setattr(torch.cuda, "get_rng_state", lambda *_: torch.get_rng_state())
        patch.setattr(torch.cuda, "set_rng_state", lambda state, *_: torch.set_rng_state(state))
        patch.setattr(torch.cuda, "mem_get_info", lambda *_: (memory, memory))
        patch.setattr(torch, "Generator", Generator)
        yield CUDA

"""Bytes of tensors that are alive at once, counted as they are made."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Allocations(TorchDispatchMode):
    """Inside, what operations allocate is counted, on any device, in the backward passes as well.

    A storage counts once, from the operation that returns it until it is freed; what an operation allocates for itself
    alone is not seen, nor what compiled code does.

    Attributes:
        alive: bytes made inside that are still held.
        peak: the most that were held at once.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.alive = self.peak = 0
        self._known: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {storage._cdata for storage in _storages((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        for storage in _storages(result):
            if storage._cdata not in given:
                self._count(storage)
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return

        def freed(_: object) -> None:
            self.alive -= size
            del self._known[key]

        self._known[key] = weakref.ref(storage, freed)
        self.alive += size
        self.peak = max(self.peak, self.alive)


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    leaves = [x for x in tree_leaves(tree) if isinstance(x, Tensor) and x.layout == torch.strided]
    return [x.untyped_storage() for x in leaves]

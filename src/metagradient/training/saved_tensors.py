"""What autograd saves for its backward passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def watching_saved_tensors(see: Callable[[Tensor], None]) -> Iterator[None]:
    """Inside, `see(x)` is called for each tensor that autograd saves, and hooks further out are not.

    What is saved is an alias of x: a pack hook that returned an operation's own output would make a reference cycle
    through C++ (output -> its node -> saved tensor -> output), which Python's garbage collector cannot see.
    """

    def pack(x: Tensor) -> Tensor:
        see(x)
        return x.detach()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        yield

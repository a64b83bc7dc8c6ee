"""The processes that share a run, and what they ask each other outside autograd."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import pairwise
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from metagradient.errors import UserError

T = TypeVar("T")


class ProcessLost(UserError):
    """Another process of the run has ended, so that this one cannot go on."""


@dataclass(frozen=True)
class Group:
    """`size` processes that share each batch of a run; this one is number `rank`.

    Every process of the group makes the same calls in the same order. A group of one asks nobody and costs nothing.

    Attributes:
        rank: the number of this process, from 0.
        size: how many processes there are.
        process_group: torch's, None for the default one.
    """

    rank: int = 0
    size: int = 1
    process_group: Any = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.size:
            raise UserError(f"the rank lies in [0, {self.size}), the size of its group, not {self.rank}")

    def __deepcopy__(self, memo: dict[int, Any]) -> Group:
        return self

    def __reduce__(self) -> tuple[type[Group], tuple[()]]:
        return Group, ()  # elsewhere it would be another process, alone

    @property
    def alone(self) -> bool:
        """Whether there is nobody to ask."""
        return self.size == 1

    def share(self, total: int) -> tuple[int, int]:
        """Rows start .. stop - 1 of `total`: contiguous shares in the order of the ranks, whose sizes differ by one at most."""
        return self.rank * total // self.size, (self.rank + 1) * total // self.size

    def shares(self, total: int) -> list[int]:
        """How many of `total` rows each process has."""
        bounds = [rank * total // self.size for rank in range(self.size + 1)]
        return [stop - start for start, stop in pairwise(bounds)]

    def rows(self, total: int) -> tuple[int, int, int]:
        """Rows start .. stop - 1 of `total` that this process runs, and 1; or row 0 and the factor 0, where its share is empty.

        A process without rows runs one for nothing, so that its graph is like those of the others: what fails or falls back on
        another way, in a pull of many cotangents for one, does so in all of them.
        """
        start, stop = self.share(total)
        return (start, stop, 1) if start < stop else (0, 1, 0)

    def add(self, x: Tensor) -> Tensor:
        """The sum over all processes, the same bits in each, written into x (contiguous) and returned."""
        if not self.alone:
            self._ask(lambda: dist.all_reduce(x, group=self.process_group))
        return x

    def gather(self, x: Tensor) -> Tensor:
        """The tensors [k, ...] of all processes one after another, [W k, ...], bit for bit."""
        if self.alone:
            return x
        whole = x.new_empty((self.size * len(x), *x.shape[1:]))
        self._ask(lambda: dist.all_gather_into_tensor(whole, x.contiguous(), group=self.process_group))
        return whole

    def largest(self, numbers: Sequence[int]) -> list[int]:
        """The largest of each number over all processes."""
        return [max(column) for column in zip(*self.told(tuple(numbers)), strict=True)]

    def told(self, value: Any) -> list[Any]:
        """What each process says, in the order of their ranks: small picklable objects."""
        if self.alone:
            return [value]
        found: list[Any] = [None] * self.size
        self._ask(lambda: dist.all_gather_object(found, value, group=self.process_group))
        return found

    def divided(self, count: int, one: Callable[[int], T]) -> list[T]:
        """[one(0), ..., one(count - 1)], in all processes alike; each computes a share of them by itself, the first one one(0)."""
        own = {i: one(i) for i in range(self.rank, count, self.size)}
        found = {i: value for part in self.told(own) for i, value in part.items()}
        return [found[i] for i in range(count)]

    def wait(self) -> None:
        """Go on when all processes have come here."""
        self.told(None)

    def _ask(self, collective: Callable[[], object]) -> None:
        try:
            collective()
        except RuntimeError as error:  # of torch.distributed: a connection that closed, or a time limit
            if is_no_answer(error):
                raise ProcessLost(_said(self, error)) from error
            raise


SOLO = Group()
"""A process on its own."""

_runs = [0]
"""How many runs this process has begun: as many as the others of its group."""


def current() -> Group:
    """The group that this process has joined (`world`); a group of one where it has joined none."""
    there = dist.is_available() and dist.is_initialized()
    return Group(dist.get_rank(), dist.get_world_size()) if there else SOLO


def world(minutes: float = 30, store: Any = None) -> Group:
    """The group of all processes that torchrun, Slurm or Lightning started; a group of one where nobody did.

    Args:
        minutes: how long a process waits for the others before it gives up.
        store: torch's, where the processes meet; None: at MASTER_ADDR and MASTER_PORT.
    """
    if not dist.is_available():
        return SOLO
    if not dist.is_initialized():
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return SOLO
        backend = "gloo"
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
            backend = "cpu:gloo,cuda:nccl"
        waiting = timedelta(minutes=minutes)
        dist.init_process_group(backend, rank=int(os.environ["RANK"]), world_size=size, store=store, timeout=waiting)
    return current()


@contextmanager
def leaving_word(group: Group) -> Iterator[None]:
    """Where this process fails inside, the others learn why when they miss it."""
    if group.alone:
        yield
        return
    _runs[0] += 1
    try:
        yield
    except BaseException as error:
        if not isinstance(error, ProcessLost):
            _leave(f"process {group.rank} ended: {(str(error) or type(error).__name__).strip().splitlines()[0]}")
        raise


def _leave(line: str) -> None:
    store = _store()
    with suppress(RuntimeError):  # whoever holds the store may have gone already
        if store is not None and not store.check([_key()]):
            store.set(_key(), line)


def _said(group: Group, error: RuntimeError) -> str:
    store = _store()
    try:
        if store is not None and store.check([_key()]):
            return bytes(store.get(_key())).decode()
    except RuntimeError:
        return f"process 0 of {group.size} has ended, and with it the run"
    others = [rank for rank in range(group.size) if rank != group.rank]
    which = f"process {others[0]}" if len(others) == 1 else f"one of the processes {', '.join(map(str, others))}"
    return (
        f"{which} has ended without a word, killed or out of memory, and with it the run ({str(error).splitlines()[0]})"
    )


def _key() -> str:
    """Where a process that fails says why, in the store that all of them reach: what ended an earlier run is forgotten."""
    return f"metagradient/failed/{_runs[0]}"


def _store() -> Any:
    return dist.distributed_c10d._get_default_store() if dist.is_initialized() else None


def is_no_answer(error: RuntimeError) -> bool:
    """Whether a call to the others of a group failed because one did not answer."""
    words = ("connection", "timed out", "timeout", "peer", "socket", "nccl")
    return isinstance(error, dist.DistError) or any(word in str(error).lower() for word in words)

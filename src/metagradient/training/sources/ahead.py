"""Rows read by other processes before they are needed: torch's DataLoader, asked for whatever a run wants next."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from multiprocessing import current_process
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from metagradient.errors import UserError

Loader = DataLoader["dict[str, Tensor] | UserError"]


class Request(NamedTuple):
    """Rows of a source as they are at a step of a run; outside any, its seed is None."""

    t: int
    rows: list[int]
    seed: int | None = None


class Reader(Protocol):
    """What processes need of a source."""

    def fetch(self, rows: Sequence[int], t: int, seed: int | None = None) -> dict[str, Tensor]:
        """The fields of some rows at step t of a run."""
        ...


class Ahead:
    """Processes that read a source's rows, kept for all streams of one source.

    Args:
        source: is copied to them when the first stream begins.
        workers: their number.
    """

    def __init__(self, source: Reader, workers: int) -> None:
        self._order = _Order()
        self._loader: Loader = DataLoader(
            _Answers(source),
            sampler=self._order,
            batch_size=None,
            num_workers=workers,
            persistent_workers=True,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # the workers' seeds, which nobody uses, are not drawn from torch's own
        )
        self.busy = False
        weakref.finalize(self, end, self._loader)

    def stream(self, requests: Iterable[Request]) -> Iterator[dict[str, Tensor]]:
        """The requests' fields in order; at most two batches a process are read before they are asked for."""
        self.busy, self._order.requests = True, requests
        try:
            with ended_in_words(self._loader, OSError, EOFError):
                answers = iter(self._loader)
            while True:
                with ended_in_words(self._loader, OSError, EOFError):
                    answer = next(answers, None)
                if answer is None:
                    return
                if isinstance(answer, UserError):
                    raise answer
                yield answer
        finally:
            self.busy = False

    def watched(self) -> AbstractContextManager[None]:
        """Inside, the death of one of the processes, which torch raises wherever the program is, is told in words."""
        return ended_in_words(self._loader)


@contextmanager
def ended_in_words(loader: Loader, *broken: type[Exception]) -> Iterator[None]:
    """A process that died: the RuntimeError of torch's signal handler, and what else a broken pipe to it raises.

    Raises:
        UserError: in their place.
    """
    try:
        yield
    except Exception as error:
        of_torch = isinstance(error, RuntimeError) and "DataLoader worker" in str(error)
        if not (of_torch or isinstance(error, broken)):
            raise
        end(loader)
        raise UserError(
            f"a process that reads the data ended ({str(error).splitlines()[0] if str(error) else type(error).__name__}): it may have "
            "had too little memory, or shared memory; workers=0 (data.workers=0) reads in this process"
        ) from error


def end(loader: Loader) -> None:
    """End the processes now: left to the garbage collector, which may take their queues first, they linger for seconds."""
    iterator, loader._iterator = loader._iterator, None
    if iterator is not None:
        with suppress(RuntimeError):  # of a process that died meanwhile
            iterator._shutdown_workers()  # type: ignore[attr-defined]


class _Order(Sampler["Request"]):
    """What is asked for in the present stream."""

    requests: Iterable[Request] = ()

    def __init__(self) -> None:
        """Sampler's own takes a data set."""

    def __iter__(self) -> Iterator[Request]:
        return iter(self.requests)


class _Answers(Dataset["dict[str, Tensor] | UserError"]):
    def __init__(self, source: Reader) -> None:
        self.source = source

    def __getitem__(self, request: Request) -> dict[str, Tensor] | UserError:
        try:
            return self.source.fetch(request.rows, request.t, request.seed)
        except UserError as error:  # handed over: torch would wrap it in a traceback
            return error


def possible() -> bool:
    """Whether this process may have processes of its own: a pool's may not."""
    return not current_process().daemon

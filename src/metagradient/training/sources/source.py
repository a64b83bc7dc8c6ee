"""Rows of any map-style data set, as fields of a batch."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset

from metagradient.errors import UserError
from metagradient.training.random import fold_in
from metagradient.training.sources.ahead import Ahead, Request, possible
from metagradient.training.sources.collating import stacked

Collate = Callable[[list[dict[str, Any]]], Mapping[str, Tensor]]
"""The fields of some items -> tensors [B, ...] by name."""

Transform = Callable[[dict[str, Any], torch.Generator], dict[str, Any]]
"""The fields of one item and a generator of its own, seeded from (seed, t, row) -> fields."""


class Source:
    """A map-style data set (`len`, `[row]`) as fields by name: `torch.utils.data.Dataset`, `datasets.Dataset`, a list.

    Around every fetch torch's, NumPy's and Python's generators are seeded from (seed, t, row) of the run, so that random
    transforms in a `__getitem__` are a function of the step, whichever process reads, and left as they were.

    Args:
        dataset: items are dictionaries of fields, tuples, or single values.
        fields: the names of a tuple's parts, ("x", "y") by default, or those of a dictionary's fields that are read.
        transform: decodes or augments one item: (its fields, a generator of its own) -> fields.
        collate: (fields of each item) -> tensors [B, ...] by name, for example `Padding` or a Hugging Face collator; by
            default numbers, arrays and tensors are stacked.
        workers: processes that read ahead, in runs and in their replays; 0: rows are read when they are asked for.
        seed: of transforms where rows are read outside a run (as at step 0), whose own seed it is otherwise.

    Raises:
        UserError: no such data set, other fields, or rows that differ when they are read twice.
    """

    def __init__(
        self,
        dataset: Any,
        fields: Sequence[str] | None = None,
        *,
        transform: Transform | None = None,
        collate: Collate | None = None,
        workers: int = 0,
        seed: int = 0,
    ) -> None:
        if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
            raise UserError(
                f"batches read rows by number, which {type(dataset).__name__} has not: give a map-style data set, with len(...) "
                "and [row], or a dictionary of tensors"
            )
        if not len(dataset):
            raise UserError("the data set has no rows")
        if not isinstance(workers, int) or workers < 0:
            raise UserError(f"workers must be the number of processes that read ahead, 0 or more, not {workers}")
        self.dataset, self.names, self.transform, self.collate = dataset, fields, transform, collate
        self.seed, self.workers = seed, workers
        self.numbers: list[int] | None = None
        self._ahead: Ahead | None = None
        self._compared = False
        self._read_twice()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getstate__(self) -> dict[str, Any]:
        """Without its processes: who receives it starts its own."""
        return self.__dict__ | {"_ahead": None}

    def fetch(self, rows: Sequence[int], t: int, seed: int | None = None) -> dict[str, Tensor]:
        """The fields of some rows at step t of a run of that seed; outside a run, with the source's own.

        Raises:
            UserError: a row cannot be read, or is not what was expected.
        """
        items = self._at_once(rows)
        if items is None:
            seed = self.seed if seed is None else seed
            with _generators_left_alone():
                items = [self._item(row, fold_in(seed, t, self._number(row))) for row in rows]
        try:
            return stacked(items) if self.collate is None else _tensors(self.collate(items))
        except UserError:
            raise
        except Exception as error:
            few = ", ".join(map(str, rows[:5]))
            raise UserError(
                f"rows {few}{', ...' if len(rows) > 5 else ''} of the data set cannot be put together ({_said(error)}): all must have "
                "the same fields, which collate= turns into tensors"
            ) from error

    def stream(self, requests: Iterable[Request]) -> Iterator[dict[str, Tensor]]:
        """The fields of each request, in order; read ahead by the source's processes where it has any."""
        processes = self._processes()
        if processes is None or processes.busy:  # a stream within a stream
            yield from (self.fetch(request.rows, request.t, request.seed) for request in requests)
            return
        if not self._compared:
            self._compare(processes)
        yield from processes.stream(requests)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Inside, the death of a process that reads ahead is told in words, whatever the program is doing then."""
        processes = self._processes()
        with nullcontext() if processes is None else processes.watched():
            yield

    def _processes(self) -> Ahead | None:
        if self._ahead is None and self.workers and possible():
            self._ahead = Ahead(self, self.workers)
        return self._ahead

    def subset(self, rows: Sequence[int]) -> Source:
        """Some of the rows, as a source of their own; their random draws stay what they were."""
        part = copy.copy(self)
        part.dataset, part._ahead = Subset(self.dataset, rows), None
        part.numbers = [self._number(row) for row in rows]
        return part

    def followed_by(self, other: Source) -> Source:
        """These rows and then those of another source that is read alike.

        Raises:
            UserError: it is read otherwise.
        """
        alike = ("names", "transform", "collate", "seed")
        differ = [name for name in alike if getattr(self, name) != getattr(other, name)]
        if differ:
            raise UserError(f"two data sets with other {', '.join(differ)} cannot be read as one")
        both = copy.copy(self)
        both.dataset, both._ahead = ConcatDataset([self.dataset, other.dataset]), None
        both.numbers = [
            *map(self._number, range(len(self))),
            *(len(self) + other._number(i) for i in range(len(other))),
        ]
        return both

    def _number(self, row: int) -> int:
        """What a row's draws are keyed by: its number in the whole data set, whichever rows stand beside it."""
        return row if self.numbers is None else self.numbers[row]

    def _at_once(self, rows: Sequence[int]) -> list[dict[str, Any]] | None:
        """The items as a table on disk gives them in one go, where nothing random can happen; else None."""
        if self.transform is not None or not _is_plain_table(self.dataset):
            return None
        try:
            return [self._named(item) for item in self.dataset.__getitems__(list(rows))]
        except UserError:
            raise
        except Exception:  # one by one, the row is found
            return None

    def _item(self, row: int, key: int) -> dict[str, Any]:
        random.seed(key)
        np.random.seed(key % 2**32)  # noqa: NPY002 (the one that transforms draw from)
        torch.default_generator.manual_seed(key)
        try:
            fields = self._named(self.dataset[row])
            if self.transform is not None:
                fields = self.transform(fields, torch.Generator().manual_seed(key))
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"row {row} of the data set cannot be read ({_said(error)}): mend it, or leave it out of the plan"
            ) from error
        if not isinstance(fields, Mapping):
            raise UserError(f"transform= gave a {type(fields).__name__} of row {row}, and no fields by name")
        return dict(fields)

    def _named(self, found: Any) -> dict[str, Any]:
        if isinstance(found, Mapping):
            absent = [name for name in self.names or () if name not in found]
            if absent:
                raise UserError(f"the data set has no fields {', '.join(absent)}; it has {', '.join(map(str, found))}")
            return {str(name): x for name, x in found.items() if self.names is None or name in self.names}
        parts = list(found) if isinstance(found, tuple | list) else [found]
        names = self.names or ("x", "y")[: len(parts)]
        if len(names) != len(parts):
            raise UserError(
                f"items of the data set have {len(parts)} parts and fields={tuple(names)}: name each of them"
            )
        return dict(zip(names, parts, strict=True))

    def _few(self) -> Request:
        return Request(0, sorted({0, len(self) // 2, len(self) - 1}))

    def _read_twice(self) -> None:
        for row in self._few().rows:  # one by one: they may differ in length
            once, again = (self.fetch([row], 0) for _ in range(2))
            self._refuse_other(once, again, "is another one when it is read again", row)

    def _compare(self, processes: Ahead) -> None:
        """A few rows as the processes read them, beside those read here."""
        requests = [Request(0, [row]) for row in self._few().rows]
        for request, there in zip(requests, processes.stream(requests), strict=True):
            here = self.fetch(request.rows, 0)
            self._refuse_other(here, there, "is another one when another process reads it", request.rows[0])
        self._compared = True

    @staticmethod
    def _refuse_other(one: dict[str, Tensor], other: dict[str, Tensor], what: str, row: int) -> None:
        for name, x in one.items():
            if not torch.equal(x.nan_to_num(), other[name].nan_to_num()):
                raise UserError(
                    f"row {row} of the data set {what} (its {name}): a replay needs the same rows; draw from torch's, NumPy's or "
                    "Python's generators, which are seeded around every fetch, or from the generator that transform= is given"
                )


def _tensors(found: Any) -> dict[str, Tensor]:
    """What a collate gave.

    Raises:
        UserError: no tensors by name.
    """
    if not isinstance(found, Mapping):
        raise UserError(f"collate= gave a {type(found).__name__}, and no tensors by name")
    odd = next((name for name, x in found.items() if not isinstance(x, Tensor)), None)
    if odd is not None:
        raise UserError(f"field {odd} that collate= gives is no tensor, but a {type(found[odd]).__name__}")
    return dict(found)


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def _is_plain_table(dataset: Any) -> bool:
    """Whether it is a `datasets.Dataset` (or part of one) without a transform of its own."""
    if isinstance(dataset, Subset):
        return _is_plain_table(dataset.dataset)
    format_ = getattr(dataset, "format", None)
    return hasattr(dataset, "__getitems__") and isinstance(format_, dict) and format_.get("type") != "custom"


@contextmanager
def _generators_left_alone() -> Iterator[None]:
    """The global generators are afterwards as they were."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002

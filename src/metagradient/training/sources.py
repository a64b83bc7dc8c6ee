"""Data that are asked for, not held: rows of any map-style data set, as fields of a batch."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from metagradient.errors import UserError
from metagradient.training.random import fold_in

Collate = Callable[[list[Any]], Any]
"""Some items of a data set -> a tuple or dictionary of tensors [B, ...]."""


class Source:
    """A map-style data set (`len`, `[row]`) as fields by name: `torch.utils.data.Dataset`, `datasets.Dataset`, a list.

    Around every fetch torch's, NumPy's and Python's generators are seeded from (seed, t, row), so that random transforms
    in a `__getitem__` are a function of the step, and left as they were.

    Args:
        dataset: items are dictionaries of fields, tuples, or single values.
        fields: the names of a tuple's parts; ("x", "y") by default.
        collate: how items become tensors (`torch.utils.data.default_collate`).
        seed: of the transforms.

    Raises:
        UserError: no such data set, other fields, or rows that differ when they are read twice.
    """

    def __init__(
        self, dataset: Any, fields: Sequence[str] | None = None, collate: Collate = default_collate, seed: int = 0
    ) -> None:
        if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
            raise UserError(
                f"batches read rows by number, which {type(dataset).__name__} has not: give a map-style data set, with len(...) "
                "and [row], or a dictionary of tensors"
            )
        if not len(dataset):
            raise UserError("the data set has no rows")
        self.dataset, self.names, self.collate, self.seed = dataset, fields, collate, seed
        first, again = self.fetch([0], 0), self.fetch([0], 0)
        for name, x in first.items():
            if not torch.equal(x.nan_to_num(), again[name].nan_to_num()):
                raise UserError(
                    f"row 0 of the data set is another one when it is read again (its {name}): a replay needs the same rows; draw from "
                    "torch's, NumPy's or Python's generators, which are seeded around every fetch"
                )

    def __len__(self) -> int:
        return len(self.dataset)

    def fetch(self, rows: Sequence[int], t: int) -> dict[str, Tensor]:
        """The fields of some rows at step t."""
        items = []
        with _generators_left_alone():
            for row in rows:
                key = fold_in(self.seed, t, row)
                random.seed(key)
                np.random.seed(key % 2**32)  # noqa: NPY002 (the one that transforms draw from)
                torch.manual_seed(key)
                items.append(self.dataset[row])
        return self._named(self.collate(items))

    def _named(self, found: Any) -> dict[str, Tensor]:
        if isinstance(found, Mapping):
            fields = {str(name): x for name, x in found.items() if self.names is None or name in self.names}
        else:
            parts = list(found) if isinstance(found, tuple | list) else [found]
            names = self.names or ("x", "y")[: len(parts)]
            if len(names) != len(parts):
                raise UserError(
                    f"items of the data set have {len(parts)} parts and fields={tuple(names)}: name each of them"
                )
            fields = dict(zip(names, parts, strict=True))
        odd = [name for name, x in fields.items() if not isinstance(x, Tensor)]
        if odd:
            raise UserError(
                f"fields {', '.join(odd)} of the data set are no tensors ({type(fields[odd[0]]).__name__}): leave them out, "
                "fields=(...), or turn them into numbers in its transform or in collate="
            )
        return fields

    def columns(self) -> dict[str, Column]:
        """Every field as something that looks like a tensor [n, ...]."""
        return {name: Column(self, name) for name in self.fetch([0], 0)}


class Column:
    """A field of a source, where a tensor [n, ...] would stand: its rows are fetched when they are asked for."""

    def __init__(self, source: Source, name: str, dtype: torch.dtype | None = None) -> None:
        self.source, self.name, self._dtype = source, name, dtype
        one = source.fetch([0], 0)[name]
        self.dtype = one.dtype if dtype is None else dtype
        self.shape = torch.Size([len(source), *one.shape[1:]])
        self.device = torch.device("cpu")

    def __len__(self) -> int:
        return len(self.source)

    def dim(self) -> int:
        return len(self.shape)

    def is_floating_point(self) -> bool:
        return self.dtype.is_floating_point

    def to(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> Column:
        """Itself in another precision; rows are moved when they are fetched."""
        return self if dtype in (None, self.dtype) else Column(self.source, self.name, dtype)

    def index_select(self, dim: int, rows: Tensor) -> Tensor:
        """Some rows, [m, ...]."""
        assert dim == 0
        return self.source.fetch(rows.tolist(), 0)[self.name].to(self.dtype)

    def __getitem__(self, rows: Any) -> Tensor:
        if isinstance(rows, int):
            return self.index_select(0, torch.tensor([rows]))[0]
        return self.index_select(0, torch.arange(len(self))[rows])


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

"""Examples by field: tensors [n, ...], and columns of a source, which look like them and are read when they are asked for."""

from __future__ import annotations

import copy
from collections.abc import Generator, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from metagradient.errors import UserError
from metagradient.training.sources.ahead import Request
from metagradient.training.sources.source import Source


class Column:
    """A field of a source, where a tensor [n, ...] would stand: its rows are fetched when they are asked for."""

    def __init__(self, source: Source, name: str) -> None:
        self.source, self.name = source, name
        one = source.fetch([0], 0)[name]
        self.dtype = one.dtype
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
        return self if dtype in (None, self.dtype) else self._like(self.source, dtype or self.dtype)

    def over(self, source: Source) -> Column:
        """The same field of another source that is read alike."""
        return self._like(source, self.dtype)

    def _like(self, source: Source, dtype: torch.dtype) -> Column:
        """Without a row being read."""
        made = copy.copy(self)
        made.source, made.dtype, made.shape = source, dtype, torch.Size([len(source), *self.shape[1:]])
        return made

    def index_select(self, dim: int, rows: Tensor) -> Tensor:
        """Some rows, [m, ...], as they are at step 0."""
        assert dim == 0
        return self.of(self.source.fetch(rows.tolist(), 0)) if len(rows) else self.none()

    def of(self, fetched: Mapping[str, Tensor]) -> Tensor:
        """This field of what the source gave.

        Raises:
            UserError: it is of another type than in the first row, and would lose what it says.
        """
        x = fetched[self.name]
        alike = x.is_floating_point() == self.is_floating_point() and torch.can_cast(x.dtype, self.dtype)
        if not alike:
            own, other = (str(dtype).removeprefix("torch.") for dtype in (self.dtype, x.dtype))
            raise UserError(
                f"field {self.name} of the data set is {own} in its first row and {other} in others: give one type, "
                "float(...) for example, in the data set or in transform="
            )
        return x.to(self.dtype)

    def none(self) -> Tensor:
        """No rows of it."""
        return torch.empty(0, *self.shape[1:], dtype=self.dtype)

    def __getitem__(self, rows: Any) -> Tensor:
        chosen = torch.arange(len(self))[rows]  # numbers of any shape, as indexing a tensor gives them
        return (
            self.index_select(0, chosen.flatten()).unflatten(0, chosen.shape) if chosen.dim() else self[chosen[None]][0]
        )


Fields = Mapping[str, Tensor]
"""Fields of equal length n by name; some of them may be columns of one source."""


def examples_of(data: Fields | Source | Any, **settings: Any) -> Fields:
    """Fields by name, of a dictionary as it is (NumPy's arrays of numbers as tensors), of a map-style data set (with the settings of `Source`) as columns."""
    if isinstance(data, Mapping):
        if any(settings.values()):
            raise UserError(f"{', '.join(k for k, v in settings.items() if v)}: only for data sets whose rows are read")
        return {
            name: _native(x) if isinstance(x, np.ndarray) and x.dtype.kind in "biufc" else x for name, x in data.items()
        }
    if type(data) is TensorDataset and not any(v for k, v in settings.items() if k not in ("fields", "seed")):
        names = settings.get("fields") or ("x", "y")[: len(data.tensors)]
        if len(names) == len(data.tensors):
            return dict(zip(names, data.tensors, strict=True))
    told = [name for name, value in settings.items() if value and name != "seed"]
    if isinstance(data, Source) and told:
        raise UserError(f"{', '.join(told)}: a Source has its own; give them to Source(...)")
    source = data if isinstance(data, Source) else Source(data, **settings)
    return {name: Column(source, name) for name in source.fetch([0], 0)}  # type: ignore[misc]


def _native(x: np.ndarray) -> Tensor:
    return torch.from_numpy(x.astype(x.dtype.newbyteorder("=")))


def source_of(examples: Fields) -> Source | None:
    """The source of the columns among the fields.

    Raises:
        UserError: there are several.
    """
    columns: Iterable[Any] = examples.values()
    found = {id(x.source): x.source for x in columns if isinstance(x, Column)}
    if len(found) > 1:
        raise UserError("the fields are columns of several data sets: give one whose items have all of them")
    return next(iter(found.values()), None)


def gather(examples: Fields, rows: Tensor, t: int = 0, seed: int | None = None) -> dict[str, Tensor]:
    """Some rows [m] of every field; those of a source, as they are at step t, are fetched once for all of them."""
    source = source_of(examples)
    found = source.fetch(rows.tolist(), t, seed) if source is not None and len(rows) else {}
    return {name: _rows(x, rows, found) for name, x in examples.items()}


def stream(
    examples: Fields, requests: Iterable[tuple[int, Tensor]], seed: int | None = None
) -> Generator[dict[str, Tensor]]:
    """The rows of each (step, rows [m]) in order, read ahead where a source has processes for it."""
    source = source_of(examples)
    if source is None:
        for _, rows in requests:
            yield gather(examples, rows)
        return
    asked = list(requests)
    fetched = source.stream(Request(t, rows.tolist(), seed) for t, rows in asked if len(rows))
    for _, rows in asked:
        found = next(fetched) if len(rows) else {}
        yield {name: _rows(x, rows, found) for name, x in examples.items()}


def in_order(examples: Fields, chunk: int, start: int = 0) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """(row numbers, fields) of the rows from `start` on, `chunk` at a time; of tensors they are views."""
    n = len(next(iter(examples.values()), ()))
    parts = torch.arange(start, n).split(chunk) if start < n else ()
    if source_of(examples) is None:
        yield from ((rows, {k: v[rows[0] : rows[-1] + 1] for k, v in examples.items()}) for rows in parts)
    else:
        yield from zip(parts, stream(examples, ((0, rows) for rows in parts)), strict=True)


def in_parts(examples: Fields, rows: int = 1024) -> Iterator[tuple[str, Tensor]]:
    """(name, values) of all fields, `rows` rows at a time: the same whether they are held or read."""
    for _, part in in_order(examples, rows):
        yield from part.items()


def _rows(x: Tensor | Column, rows: Tensor, found: Mapping[str, Tensor]) -> Tensor:
    if isinstance(x, Column):
        return x.of(found) if len(rows) else x.none()
    return x.index_select(0, rows.to(x.device))


def take(examples: Fields, rows: Tensor) -> dict[str, Tensor]:
    """Some rows (a mask [n], indices, a slice) of every field; columns stay columns."""
    source = source_of(examples)
    part = None if source is None else source.subset(torch.arange(len(source))[rows].tolist())
    found: dict[str, Any] = {}
    for name, x in examples.items():
        found[name] = x.over(part) if isinstance(x, Column) and part is not None else x[rows]
    return found


def join(a: Fields, b: Fields) -> dict[str, Tensor]:
    """The rows of `a` followed by those of `b`; columns stay columns.

    Raises:
        UserError: a field is a column in one and a tensor in the other.
    """
    one, other = source_of(a), source_of(b)
    both = None if one is None or other is None else one.followed_by(other)
    found: dict[str, Any] = {}
    for name, x in a.items():
        if isinstance(x, Column) != isinstance(b[name], Column):
            raise UserError(
                f"field {name} is held as a tensor in one set of examples and read from a data set in the other"
            )
        found[name] = x.over(both) if isinstance(x, Column) and both is not None else torch.cat([x, b[name]])
    return found

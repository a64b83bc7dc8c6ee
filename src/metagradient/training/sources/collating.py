"""From the items of a batch to its fields: stacked, or padded to one length with a mask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metagradient.errors import UserError

Fields = dict[str, Any]


def as_tensor(name: str, value: Any) -> Tensor:
    """A field of one item as a tensor: numbers, truth values, NumPy arrays and lists of numbers.

    Raises:
        UserError: it is something else.
    """
    if isinstance(value, Tensor):
        return value
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biuf":
        return torch.from_numpy(np.array(value))  # a copy: the array may be read-only, a memory map's for one
    if isinstance(value, bool | int | float):
        return torch.as_tensor(value)
    if isinstance(value, list | tuple) and value:
        with suppress(ValueError):  # of lists of different length
            numbers = np.asarray(value)
            if numbers.dtype.kind in "biuf":
                return torch.as_tensor(
                    numbers, dtype=torch.get_default_dtype() if numbers.dtype == np.float64 else None
                )
    what = f"{type(value).__name__}{f' of {type(value[0]).__name__}' if isinstance(value, list) and value else ''}"
    raise UserError(
        f"field {name} of the data set is no tensor and no number, but a {what}: leave it out, fields=(...), or turn it into "
        "numbers with transform= or collate="
    )


def stacked(items: Sequence[Fields]) -> dict[str, Tensor]:
    """Fields [B, ...] of items whose fields have equal shapes.

    Raises:
        UserError: they have not.
    """
    found = {}
    for name in items[0]:
        values = [as_tensor(name, item[name]) for item in items]
        shapes = {tuple(v.shape) for v in values}
        if len(shapes) > 1:
            raise UserError(
                f"field {name} of the data set has shapes {', '.join(str(list(s)) for s in sorted(shapes)[:3])}: rows of different length need "
                f"collate=mg.Padding({{'{name}': 0}}), or a transform= that makes them equal"
            )
        found[name] = torch.stack(values)
    return found


@dataclass(frozen=True)
class Padding:
    """A collate for rows of different length: fields are padded at their end, and a mask says which entries are the row's own.

    Attributes:
        fields: the value that each of these fields is padded with, {"tokens": 0, "labels": -100}; their first axis is
            the one that varies, and is the same for all of them. Other fields are stacked.
        mask: the name of the mask, bool [B, L].
        multiple: L is rounded up to a multiple of it.
    """

    fields: Mapping[str, float] = field(default_factory=dict)
    mask: str = "mask"
    multiple: int = 1

    def __call__(self, items: Sequence[Fields]) -> dict[str, Tensor]:
        if self.mask in items[0]:
            raise UserError(
                f"the data set has a field {self.mask} already: name Padding's another way, mask='own_mask'"
            )
        absent = [name for name in self.fields if name not in items[0]]
        if absent or not self.fields or self.multiple < 1:
            raise UserError(
                f"Padding(fields={dict(self.fields)}, multiple={self.multiple}) needs fields of the data set, which has {', '.join(items[0])}"
            )
        rows = self._rows(items)
        lengths = [{len(x) for x in row.values()} for row in rows]
        odd = next((i for i, found in enumerate(lengths) if len(found) > 1), None)
        if odd is not None:
            raise UserError(
                f"the fields {', '.join(self.fields)} of an item have lengths {sorted(lengths[odd])}: they must be equal"
            )
        sizes = torch.tensor([found.pop() for found in lengths])
        longest = -(-int(sizes.max()) // self.multiple) * self.multiple
        padded = {
            name: torch.stack([_padded(row[name], longest, value) for row in rows])
            for name, value in self.fields.items()
        }
        others = stacked([{name: x for name, x in item.items() if name not in self.fields} for item in items])
        return padded | others | {self.mask: torch.arange(longest) < sizes[:, None]}

    def _rows(self, items: Sequence[Fields]) -> list[dict[str, Tensor]]:
        """The fields that are padded, of each item; an empty list is of the type that others are of."""
        rows = [{} for _ in items]  # type: list[dict[str, Tensor]]
        for name, value in self.fields.items():
            held = [None if _empty(item[name]) else as_tensor(name, item[name]) for item in items]
            like = next((x for x in held if x is not None), torch.empty(0))
            if not like.is_floating_point() and torch.tensor(value).to(like.dtype).item() != value:
                raise UserError(
                    f"Padding cannot put {value} into field {name}, which is {str(like.dtype).removeprefix('torch.')}"
                )
            for row, x in zip(rows, held, strict=True):
                row[name] = like.new_empty(0, *like.shape[1:]) if x is None else x
        return rows


def _empty(value: Any) -> bool:
    return isinstance(value, list | tuple) and not value


def _padded(x: Tensor, length: int, value: float) -> Tensor:
    out = x.new_full((length, *x.shape[1:]), value)
    out[: len(x)] = x
    return out

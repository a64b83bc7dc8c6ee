"""What is asked of a model: forget these examples, or learn these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from metagradient.errors import UserError
from metagradient.training.batches import Fields


@dataclass(frozen=True, eq=False)
class Request:
    """Delete rows from the training set, or add rows that the plan knows but the run left out.

    Attributes:
        rows: int64 [k], distinct rows of the run's examples.
    """

    kind: Literal["delete", "add"]
    rows: Tensor

    def __post_init__(self) -> None:
        if self.kind not in ("delete", "add"):
            raise UserError(f"a request is to delete or to add, not '{self.kind}'")
        rows = self.rows
        if rows.dim() != 1 or rows.is_floating_point() or rows.dtype == torch.bool:
            raise UserError(f"a request names rows as a vector of integers, not {rows.dtype} {list(rows.shape)}")
        values, counts = rows.unique(return_counts=True)
        if len(values) != len(rows):
            raise UserError(
                f"row {int(values[counts > 1][0])} stands {int(counts.max())} times in one request: name it once"
            )

    @property
    def sign(self) -> int:
        """-1 for a deletion, +1 for an addition."""
        return 1 if self.kind == "add" else -1

    def mask(self, n: int) -> Tensor:
        """The rows as a mask [n]; UserError where one lies outside."""
        outside = self.rows[(self.rows < 0) | (self.rows >= n)]
        if len(outside):
            raise UserError(f"row {int(outside[0])} is not one of the {n} examples: rows are 0 .. {n - 1}")
        mask = torch.zeros(n, dtype=torch.bool)
        mask[self.rows.cpu()] = True
        return mask

    def apply(self, present: Tensor) -> Tensor:
        """The training set [n] bool after the request; UserError where it cannot be met."""
        mask = self.mask(len(present))
        wrong = mask & (present if self.kind == "add" else ~present)
        if wrong.any():
            state = "is in the training set already" if self.kind == "add" else "is not in the training set (any more)"
            raise UserError(f"cannot {self.kind} row {int(wrong.nonzero()[0])}: it {state}")
        after = present | mask if self.kind == "add" else present & ~mask
        if not after.any():
            raise UserError(f"deleting all {int(present.sum())} examples leaves nothing to train on: delete fewer")
        return after


def pool(examples: Fields, new: Fields) -> tuple[dict[str, Tensor], Tensor]:
    """(fields, present [n] bool): old and new examples in one table, the new ones masked.

    An addition needs them in one table because the plan is drawn over both: adding then unmasks them and leaves the
    order of the others alone. UserError where the new examples are of another kind.
    """
    if set(examples) != set(new):
        raise UserError(f"added examples need the fields {sorted(examples)}, not {sorted(new)}")
    for name, field in examples.items():
        if new[name].shape[1:] != field.shape[1:] or new[name].dtype != field.dtype:
            raise UserError(
                f"added examples need '{name}' as {field.dtype} {list(field.shape[1:])}, "
                f"not {new[name].dtype} {list(new[name].shape[1:])}"
            )
    joined = {name: torch.cat([field, new[name]]) for name, field in examples.items()}
    old = len(next(iter(examples.values())))
    return joined, torch.arange(len(next(iter(joined.values())))) < old


def row_numbers(rows: Sequence[int] | Tensor, n: int) -> Tensor:
    """Row numbers [m] of row numbers or of a mask [n].

    Raises:
        UserError: neither, or none at all.
    """
    what = f"rows must be row numbers, 0 to {n - 1}, or a mask of {n} truth values"
    try:
        given = torch.as_tensor(rows)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{what}, not {rows!r:.60}: of ids look up the rows first") from error
    if given.dtype == torch.bool:
        if given.shape != (n,):
            raise UserError(f"{what}, not a mask {list(given.shape)}")
        given = given.nonzero().flatten()
    if not given.numel():
        raise UserError(f"{what}, and none is given: there is nothing to forget")
    if given.dim() != 1 or given.is_floating_point() or given.is_complex():
        raise UserError(f"{what}, not {str(given.dtype).removeprefix('torch.')} {list(given.shape)}")
    return given

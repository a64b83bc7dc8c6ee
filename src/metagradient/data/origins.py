"""Where examples stand in the user's own files, so that what a run says of them can be joined to their rows."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Origin:
    """Where each of n examples stands in the file or folder that it was read from.

    Attributes:
        places: int64 [n], row numbers of a file, counted from 0 as its rows are read, the header left out; or str [n],
            the files' paths below the folder.
        ids: str [n], the user's own names of the examples; None where no column of them was given.
    """

    places: np.ndarray
    ids: np.ndarray | None = None

    @property
    def header(self) -> list[str]:
        """What the cells of an example are called: row or file, and id where there are ids."""
        place = "row" if self.places.dtype.kind == "i" else "file"
        return [place] if self.ids is None else [place, "id"]

    def cells(self, i: int) -> list[int | str]:
        """Example i's place and, where it has one, its id."""
        place = self.places[i]
        at: int | str = int(place) if self.places.dtype.kind == "i" else str(place)
        return [at] if self.ids is None else [at, str(self.ids[i])]


def origins(places: np.ndarray, ids: np.ndarray | None, rows: Mapping[str, np.ndarray]) -> dict[str, Origin]:
    """The origin of each split, whose examples are `rows` of `places` [n] and `ids` [n]; names given twice are told."""
    if ids is not None:
        names, counts = np.unique(ids, return_counts=True)
        if len(twice := names[counts > 1]):
            log.warning(
                "data.id names %d rows by %d values: not all rows are told apart, %s stands for several",
                len(ids),
                len(names),
                twice[0] or "an empty one",
            )
    return {split: Origin(places[r], None if ids is None else ids[r]) for split, r in rows.items()}

"""Files of instructions as conversations, each row with its place in its file."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from metagradient.data.language.conversations import Conversation
from metagradient.data.language.layouts import LAYOUTS, Row, recognised
from metagradient.data.own.reading import column, given, missing_column, read_frame
from metagradient.data.own.rows import GIVEN, NAMES
from metagradient.data.own.verbatim import identifiers

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

_COLUMNS = {name for layout in LAYOUTS.values() for name in (*layout.columns, *layout.optional)}


@dataclass(frozen=True)
class Place:
    """One of the sources that a data set is mixed of.

    Attributes:
        path: a file, a folder, or a name of the Hugging Face hub.
        layout: of its rows (`LAYOUTS`); None: the one that its columns fit.
        columns: the file's names of the layout's columns, {prompt: question}; others have the layout's own.
        name: of the source; empty: the end of its path.
        share: of its rows, drawn at random.
        rows: at most so many that can be used; None: all.
        split: of a divided source, the split that is read; None: all or, beside a target, train.
    """

    path: str
    layout: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    name: str = ""
    share: float = 1.0
    rows: int | None = None
    split: str | None = None

    def __post_init__(self) -> None:
        """Raises ValueError: a setting that is out of its range."""
        if self.layout is not None and self.layout not in LAYOUTS:
            raise ValueError(f"data.layout={self.layout}: there are {', '.join(LAYOUTS)}; null: what the columns fit")
        if odd := sorted(set(self.columns) - _COLUMNS):
            raise ValueError(f"data.columns={{{odd[0]}: ...}}: columns of layouts are {', '.join(sorted(_COLUMNS))}")
        if not _is_number(self.share) or not 0 < self.share <= 1:
            raise ValueError(
                f"share of {self.path} lies in (0, 1], not {self.share}; for example {{path: ..., share: 0.5}}"
            )
        if self.rows is not None and (type(self.rows) is not int or self.rows < 1):
            raise ValueError(
                f"rows of {self.path} is an integer >= 1, not {self.rows}; for example {{path: ..., rows: 1000}}"
            )
        if self.split is not None and self.split not in NAMES:
            raise ValueError(f"split of {self.path} is one of {', '.join(NAMES)}, not {self.split}")

    @property
    def called(self) -> str:
        """Its name: `gsm8k` of data/gsm8k and of data/gsm8k/train-00000-of-00001.parquet."""
        place = Path(self.path)
        own = place.parent.name if place.name.startswith((*NAMES, "dev-")) else place.name.partition(".")[0]
        return self.name or own or self.path


@dataclass(frozen=True, eq=False)
class Rows:
    """What was read of one place.

    Attributes:
        name: of the source.
        conversations: [n], of all rows that were read.
        places: int64 [n], their row numbers in the file.
        ids: str [n], the user's own names; None where none were asked for.
        given: the split that the source itself gives each row; None where it gives none.
    """

    name: str
    conversations: Sequence[Conversation]
    places: np.ndarray
    ids: np.ndarray | None
    given: np.ndarray | None


def places(value: Any, setting: str, **common: Any) -> list[Place]:
    """The sources that a setting names: a path, a mapping of `Place`'s fields, or a list of either.

    Args:
        value: of the setting.
        setting: its name.
        common: what each place takes that does not say otherwise.

    Raises:
        ValueError: neither, or a mapping with other fields or without a path.
    """
    listed = [value] if isinstance(value, str | Mapping) else value
    known = [f.name for f in fields(Place)]
    if not isinstance(listed, Sequence) or not listed:
        raise ValueError(f"{setting}={value} names no file: give a path, {{path, layout, ...}} or a list of either")
    found = []
    for each in listed:
        told = {"path": each} if isinstance(each, str) else each
        if not isinstance(told, Mapping) or not isinstance(told.get("path"), str):
            raise ValueError(f"{setting} has {each} without a path: give {{path: FILE, layout: ..., name: ...}}")
        if odd := [str(key) for key in told if key not in known]:
            raise ValueError(f"{setting} of {told['path']} has no {', '.join(odd)}: it takes {', '.join(known)}")
        own = {key: value for key, value in told.items() if value is not None}
        found.append(Place(**{**{key: value for key, value in common.items() if value is not None}, **own}))
    return found


def read(place: Place, id: str | None, default: str | None, rng: np.random.Generator) -> Rows:
    """The conversations at a place.

    Args:
        place: which.
        id: a column that names rows.
        default: the split that is read of a divided source where the place says none; None: all of them.
        rng: for `share`.

    Raises:
        FileNotFoundError: no such file.
        ConnectionError: a hub set, and no network.
        ValueError: no such column or split, no layout that fits, a row that its layout cannot read.
    """
    split = place.split or default
    frame = read_frame(place.path, needs=split)
    if place.split is not None and GIVEN not in frame:
        raise ValueError(
            f"data.path={place.path} is not divided into splits, and split {place.split} is asked for: leave it out"
        )
    if split is not None and GIVEN in frame:
        frame = frame[frame[GIVEN] == split].drop(columns=GIVEN)
    if place.share < 1:
        frame = frame.iloc[np.sort(rng.permutation(len(frame))[: max(1, round(place.share * len(frame)))])]
    return Rows(
        place.called,
        _conversations(frame, place),
        frame.index.to_numpy(),
        None if id is None else identifiers(place.path, frame, id),
        given(frame),
    )


def _conversations(frame: pd.DataFrame, place: Place) -> list[Conversation]:
    for name in place.columns.values():
        column(frame, name, "data.columns")
    there = {**{str(name): str(name) for name in frame.columns if name != GIVEN}, **place.columns}
    name = place.layout or recognised(there, place.path)
    if place.layout is None:
        log.info("%s is read as data.layout=%s", place.called, name)
    layout = LAYOUTS[name]
    for needed in layout.columns:
        if needed not in there:
            raise missing_column(needed, list(there), f"data.path={place.path}, data.layout={name}")
    read = [c for c in (*layout.columns, *layout.optional) if c in there]
    found = []
    for number, *cells in zip(frame.index, *(frame[there[c]] for c in read), strict=True):
        row: Row = {name: _plain(cell) for name, cell in zip(read, cells, strict=True)}
        try:
            found.append(layout.read(row))
        except ValueError as error:
            raise ValueError(f"data.path={place.path}, row {number}: {error}") from error
    return found


def _plain(cell: Any) -> Any:
    """A cell without the data frame's own kinds: arrays as lists, what is missing as an empty string."""
    if isinstance(cell, np.ndarray):
        return cell.tolist()
    if isinstance(cell, np.generic):
        cell = cell.item()
    missing = cell is None or (isinstance(cell, float) and cell != cell) or type(cell).__name__ in ("NAType", "NaTType")
    return "" if missing else cell


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)

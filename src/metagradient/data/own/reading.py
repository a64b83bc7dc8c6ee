"""Rows as a data frame."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING

import numpy as np

from metagradient.data.own.formats.files import bytes_of, frame_of, must_fit
from metagradient.data.own.formats.places import Part, find
from metagradient.data.own.rows import GIVEN

if TYPE_CHECKING:
    import pandas as pd


def read_frame(path: str, needs: str | None = "train") -> pd.DataFrame:
    """The rows at `data.path` (`places.find`), numbered from 0 in the order of its files.

    Where the source itself is divided, the column `GIVEN` says train, validation or test. The label of a LIBSVM file is
    the column `target`. A divided source must have the split `needs`.

    Raises:
        FileNotFoundError: no such file.
        ConnectionError: a hub set, and no network.
        ValueError: another kind of file, one that cannot be read, no rows, too little memory.
    """
    parts = find(path, needs=needs)
    must_fit(sum(bytes_of(part.rows) for part in parts), path)
    return read_parts(parts, path)


def read_parts(parts: Sequence[Part], path: str, without: Collection[str] = ()) -> pd.DataFrame:
    """The rows of some parts as `read_frame` gives them, without some columns.

    Raises:
        ValueError: a file that cannot be read, files of different columns, no rows.
    """
    import pandas as pd

    frames = [frame_of(part.rows, without) for part in parts]
    for part, frame in zip(parts, frames, strict=True):
        if odd := set(frame.columns) ^ set(frames[0].columns):
            raise ValueError(
                f"data.path={path}: {parts[0].name} and {part.name} differ in their columns ({', '.join(sorted(odd)[:5])}): give "
                "files of the same columns, or one of them"
            )
    whole = frames[0] if len(frames) == 1 else pd.concat(frames, ignore_index=True)
    if whole.empty:
        raise ValueError(f"data.path={path} has no rows")
    if parts[0].split is not None:
        said = [str(part.split) for part in parts]
        whole[GIVEN] = pd.Categorical(np.repeat(said, [len(frame) for frame in frames]))
    return whole


def given(frame: pd.DataFrame) -> np.ndarray | None:
    """Train, validation or test of each row [n], where the source is divided."""
    return frame[GIVEN].to_numpy(dtype=object) if GIVEN in frame else None


def column(frame: pd.DataFrame, name: str, setting: str) -> pd.Series:
    """A column by name.

    Raises:
        ValueError: no such column; near names and all of them are told.
    """
    if name not in frame.columns:
        raise missing_column(name, [each for each in frame.columns if each != GIVEN], setting)
    return frame[name]


def missing_column(name: str, names: Sequence[str], setting: str) -> ValueError:
    """The error that there is no such column: near names and all of them are told."""
    near = get_close_matches(name, names, n=1)
    there = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    hint = f"did you mean {setting}={near[0]}? " if near else ""
    return ValueError(f"{setting}={name}: no such column; {hint}there are: {there}")

"""Rows of the user's file as they were written, which reading into numbers loses: leading zeros, dates, empty cells.

Rows are counted as `read_frame` counts them: from 0, without a header, blank lines and comments.
"""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from metagradient.data.own.reading import column, ending

if TYPE_CHECKING:
    import pandas as pd

_OPEN: dict[str, Callable[..., IO[str]]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


def delimited(file: Path, columns: list[str] | None = None) -> pd.DataFrame:
    """The cells of a CSV or TSV file as text; an absent one is empty."""
    import pandas as pd

    separator = "\t" if ending(file) == ".tsv" else ","
    return pd.read_csv(file, sep=separator, usecols=columns, dtype=str, keep_default_na=False).fillna("")


def lines(file: Path) -> Iterator[str]:
    """The lines of a text file that hold something, without their ends."""
    with _OPEN.get(file.suffix.lower(), open)(file, "rt", encoding="utf-8") as text:
        yield from (said for line in text if (said := line.strip()))


def json_lines(file: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON Lines file."""
    return (json.loads(line) for line in lines(file))


def identifiers(path: str, frame: pd.DataFrame, name: str) -> np.ndarray:
    """What a column says of each row of `frame`, str [n], as the file spells it; a missing name is empty.

    Args:
        path: the file that was read.
        frame: rows of it, its index their numbers in the file.
        name: the column.

    Raises:
        ValueError: no such column.
    """
    values = column(frame, name, "data.id")
    file = Path(path).expanduser()
    if ending(file) in (".csv", ".tsv"):
        written = delimited(file, [name])[name]
        return written.to_numpy(dtype=str)[frame.index]
    if ending(file) in (".jsonl", ".ndjson"):
        named = [row.get(name) for row in json_lines(file)]
        return np.array(["" if named[i] is None else str(named[i]) for i in frame.index], dtype=str)
    return values.astype("string").fillna("").to_numpy(dtype=str)

"""Rows of the user's file as they were written, which reading into numbers loses: leading zeros, dates, empty cells.

Rows are counted as `read_frame` counts them: from 0, without a header, blank lines and comments.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from metagradient.data.own.formats.files import OPENERS, ending, frame_of, read_delimited, schema
from metagradient.data.own.formats.places import find
from metagradient.data.own.reading import column

if TYPE_CHECKING:
    import datasets
    import pandas as pd

    from metagradient.data.splits import Splits


def delimited(file: Path, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """The cells of a CSV or TSV file as text, of some columns or all; an absent one is empty."""
    return read_delimited(file, usecols=columns, dtype=str, keep_default_na=False).fillna("")  # type: ignore[no-any-return]


def lines(file: Path) -> Iterator[str]:
    """The lines of a text file that hold something, without their ends."""
    with OPENERS.get(file.suffix.lower(), open)(file, "rt", encoding="utf-8") as text:
        yield from (said for line in text if (said := line.strip()))


def json_lines(file: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON Lines file."""
    return (json.loads(line) for line in lines(file))


def cells(path: str, columns: Sequence[str], rows: Sequence[int]) -> list[list[str]]:
    """What some rows of a file, or of a folder's files, say in some columns, as it is spelt there; what is missing is empty."""
    import pandas as pd

    whole = pd.concat([_spelt(part.rows, columns) for part in find(path, needs=None)], ignore_index=True)
    return whole.iloc[list(rows)].to_numpy(dtype=str).tolist()


def _spelt(rows: Path | datasets.Dataset, columns: Sequence[str]) -> pd.DataFrame:
    """Some columns of all rows, as text."""
    import pandas as pd

    kind = ending(rows) if isinstance(rows, Path) else ""
    if isinstance(rows, Path) and kind in (".csv", ".tsv"):
        return delimited(rows, columns)[list(columns)]
    if isinstance(rows, Path) and kind in (".jsonl", ".ndjson"):
        said = (["" if (x := row.get(name)) is None else str(x) for name in columns] for row in json_lines(rows))
        return pd.DataFrame(said, columns=list(columns), dtype=str)
    without = {name for name in schema(rows).names if name not in columns} if kind in ("", ".parquet") else ()
    return frame_of(rows, without)[list(columns)].astype("string").fillna("")


def identifiers(path: str, frame: pd.DataFrame, name: str) -> np.ndarray:
    """What a column says of each row of `frame`, str [n], as the file spells it; a missing name is empty.

    Args:
        path: the file that was read.
        frame: rows of it, its index their numbers in the file.
        name: the column.

    Raises:
        ValueError: no such column.
    """
    column(frame, name, "data.id")
    return np.array([said for (said,) in cells(path, [name], frame.index.tolist())], dtype=str)


def own_words(splits: Splits, split: str, rows: Sequence[int]) -> list[str] | None:
    """Examples of a split in the words of the user's file, where it is one of texts or of few columns."""
    if not splits.columns or split not in splits.origins:
        return None
    found = cells(splits.source, splits.columns, splits.origins[split].places[list(rows)].tolist())
    if splits.kind == "text":
        return [" ".join(said) for said in found]
    return [", ".join(f"{name} = {x}" for name, x in zip(splits.columns, said, strict=True)) for said in found]

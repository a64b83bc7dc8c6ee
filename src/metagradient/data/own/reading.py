"""A file of rows as a data frame, and its labels as class numbers."""

from __future__ import annotations

import logging
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

_MOST_CLASSES = 1000


def _libsvm(path: Path) -> pd.DataFrame:
    import pandas as pd
    from sklearn.datasets import load_svmlight_file

    x, y = load_svmlight_file(str(path))
    frame = pd.DataFrame(x.toarray(), columns=[f"x{i}" for i in range(x.shape[1])])
    frame["target"] = [f"{v:g}" for v in y]
    return frame


_ENDINGS = (".csv", ".tsv", ".parquet", ".jsonl", ".ndjson", ".libsvm", ".svm")


def _read(file: Path, ending: str) -> pd.DataFrame:
    import pandas as pd  # a third of a second that other data need not pay

    if ending in (".libsvm", ".svm"):
        return _libsvm(file)
    if ending == ".parquet":
        return pd.read_parquet(file)
    if ending in (".jsonl", ".ndjson"):
        return pd.read_json(file, lines=True)
    return pd.read_csv(file, sep="\t" if ending == ".tsv" else ",")


def ending(file: Path) -> str:
    """What kind of file it says it is: `.csv` of people.csv.gz."""
    return next((s for s in reversed(file.suffixes) if s not in (".gz", ".bz2", ".xz", ".zst")), "").lower()


def read_frame(path: str) -> pd.DataFrame:
    """The rows of a CSV, TSV, Parquet, JSON Lines or LIBSVM file (its label is the column `target`); `.gz` as well.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another kind of file, or one that cannot be read.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"data.path={path} does not exist or is no file: give a {', '.join(_ENDINGS)} file")
    suffix = ending(file)
    if suffix not in _ENDINGS:
        raise ValueError(
            f"data.path={path}: files are read by their ending, {', '.join(_ENDINGS)} (and .gz), not '{suffix}'"
        )
    try:
        frame = _read(file, suffix)
    except Exception as error:
        raise ValueError(f"data.path={path} cannot be read as {suffix[1:]}: {str(error).splitlines()[0]}") from error
    if frame.empty:
        raise ValueError(f"data.path={path} has no rows")
    frame.columns = [str(name) for name in frame.columns]
    return frame.reset_index(drop=True)  # from here on the index is the row's number in the file


def column(frame: pd.DataFrame, name: str, setting: str) -> pd.Series:
    """A column by name.

    Raises:
        ValueError: no such column; near names and all of them are told.
    """
    if name not in frame.columns:
        near = get_close_matches(name, list(frame.columns), n=1)
        there = ", ".join(list(frame.columns)[:12]) + (", ..." if len(frame.columns) > 12 else "")
        hint = f"did you mean {setting}={near[0]}? " if near else ""
        raise ValueError(f"{setting}={name}: no such column; {hint}there are: {there}")
    return frame[name]


def labelled(frame: pd.DataFrame, target: str) -> tuple[pd.DataFrame, np.ndarray, tuple[str, ...]]:
    """The rows that have a label, their class numbers [n], and the classes' names in order.

    Raises:
        ValueError: no such column, one class alone, or a number that takes too many values to be a class.
    """
    import pandas as pd

    values = column(frame, target, "data.target")
    missing = int(values.isna().sum())
    if missing:
        log.warning("%d of %d rows have no %s and are left out", missing, len(frame), target)
        frame = frame[values.notna()]
        values = frame[target]
    found: Any = values.astype("category")
    names = tuple(str(name) for name in found.cat.categories)
    if len(names) < 2:
        raise ValueError(
            f"data.target={target} has one value alone ({', '.join(names) or 'none'}): there is nothing to tell apart"
        )
    fractions = pd.api.types.is_float_dtype(values) and bool((values % 1 != 0).any())
    if fractions or len(names) > _MOST_CLASSES:
        raise ValueError(
            f"data.target={target} takes {len(names)} values, which is no set of classes: choose a column of classes (numbers to be "
            "predicted are for the library: a Learner with losses of its own)"
        )
    return frame, found.cat.codes.to_numpy().astype(np.int64), names

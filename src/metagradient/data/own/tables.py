"""A table of the user's own: numbers standardised, categories one-hot, missing values told."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from metagradient.data.corruption import LabelNoise
from metagradient.data.origins import origins
from metagradient.data.own.reading import column, labelled, read_frame
from metagradient.data.own.rows import NAMES, Shares, divide
from metagradient.data.own.verbatim import identifiers
from metagradient.data.splits import Splits, corrupt

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

_TELLING = 12  # columns with which a row is shown as it stands in the file


def table_file(
    path: str,
    target: str,
    train: int | None = None,
    validation: float = 0.1,
    test: float = 0.2,
    split: str | None = None,
    group: str | None = None,
    id: str | None = None,
    stratify: bool = False,
    drop: Sequence[str] = (),
    missing: Literal["impute", "refuse"] = "impute",
    categories: int = 50,
    standardize: bool = True,
    noise: LabelNoise | None = None,
    seed: int = 0,
) -> Splits:
    """The rows of a file, one column of which is the class.

    Numbers are standardised by the training rows' mean and deviation, their missing values set to the training median.
    Words and truth values are one-hot by the training rows' categories; another value, or none, is all zeros.

    Args:
        path: a CSV, TSV, Parquet, JSON Lines or LIBSVM file.
        target: the column of classes.
        train: rows to train on; None: all that are left.
        validation: a share of the rows, or a number; test likewise.
        test: see validation.
        split: a column that says train, validation or test, in place of shares.
        group: a column whose equal values never stand in two splits.
        id: a column that names the rows, which results then carry; no feature.
        stratify: the classes in the same proportions in each split.
        drop: columns that are not read.
        missing: "refuse" missing values in place of imputing them.
        categories: the most values that a column of words may have.
        standardize: False leaves numbers as they are.
        noise: on training labels.
        seed: of the split and the noise.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no such column, columns that are neither numbers nor categories, infinite numbers.
    """
    frame, y, classes = labelled(read_frame(path), target)
    for name in (*drop, *filter(None, (split, group))):
        column(frame, name, "data.drop" if name in drop else "data.split" if name == split else "data.group")
    ids = None if id is None else identifiers(path, frame, id)
    rows = divide(
        y,
        Shares(train, validation, test, stratify, seed),
        None if split is None else frame[split],
        None if group is None else frame[group],
    )
    read = [name for name in frame.columns if name not in (target, split, group, id, *drop)]
    if not read:
        raise ValueError(f"data.path={path} has no columns beside data.target={target}")
    columns, names = [], []
    for name in read:
        values, own = _encoded(frame[name], rows["train"], missing, categories, standardize)
        columns.append(values)
        names += own
    x = torch.from_numpy(np.concatenate(columns, axis=1).astype(np.float32))
    labels = torch.from_numpy(y)
    tables = {split: {"x": x[rows[split]], "y": labels[rows[split]]} for split in NAMES}
    splits = Splits(
        Path(path).name,
        tables["train"],
        tables["validation"],
        tables["test"],
        classes,
        kind="table",
        features=tuple(names),
        source=path,
        columns=tuple(read) if len(read) <= _TELLING else (),
        origins=origins(frame.index.to_numpy(), ids, rows),
    )
    return corrupt(splits, noise, seed)


def _encoded(
    values: pd.Series, train: np.ndarray, missing: str, categories: int, standardize: bool
) -> tuple[np.ndarray, list[str]]:
    """A column as numbers [n, k], and the names of its k features."""
    import pandas as pd

    name, absent = str(values.name), int(values.isna().sum())
    if absent and missing == "refuse":
        raise ValueError(f"column {name} is missing in {absent} rows: set data.missing=impute, or data.drop=[{name}]")
    if pd.api.types.is_datetime64_any_dtype(values):
        raise ValueError(f"column {name} is a date, which is neither a number nor a category: set data.drop=[{name}]")
    if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values):
        numbers = values.to_numpy(dtype=np.float64, na_value=np.nan)
        if np.isinf(numbers).any():
            raise ValueError(
                f"column {name} is infinite in {int(np.isinf(numbers).sum())} rows: mend them, or set data.drop=[{name}]"
            )
        seen = numbers[train][~np.isnan(numbers[train])]
        if not len(seen):
            raise ValueError(f"column {name} is missing in every training row: set data.drop=[{name}]")
        if absent:
            log.warning(
                "column %s: %d missing values are set to the training median, %g", name, absent, np.median(seen)
            )
            numbers = np.where(np.isnan(numbers), np.median(seen), numbers)
        if standardize:
            spread = numbers[train].std()
            numbers = (numbers - numbers[train].mean()) / (spread if spread > 0 else 1.0)
        return numbers[:, None], [name]
    words = values.astype("string")
    known = sorted(words.iloc[train].dropna().unique())
    if len(known) > categories:
        raise ValueError(
            f"column {name} has {len(known)} different values, more than data.categories={categories}: raise it, or set data.drop=[{name}]"
        )
    if absent:
        log.warning("column %s: %d missing values belong to no category", name, absent)
    hot = np.stack([(words == word).fillna(False).to_numpy() for word in known], axis=1).astype(np.float64)
    return hot, [f"{name} = {word}" for word in known]

"""A table of the user's own: numbers standardised, categories one-hot or coded, missing values told."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from metagradient.data.corruption import LabelNoise
from metagradient.data.origins import origins
from metagradient.data.own.columns import Column, Encoding, fit
from metagradient.data.own.formats.files import must_fit
from metagradient.data.own.inspection import inspect, tell_giveaways
from metagradient.data.own.reading import column, given, read_frame
from metagradient.data.own.rows import GIVEN, NAMES, Shares, divide
from metagradient.data.own.targets import labelled, named_rows
from metagradient.data.own.verbatim import identifiers
from metagradient.data.splits import Splits, Task, corrupt

if TYPE_CHECKING:
    import pandas as pd

_TELLING = 12  # columns with which a row is shown as it stands in the file


def table_file(
    path: str,
    target: str | Sequence[str],
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
    encode: Encoding = "onehot",
    task: Task | None = None,
    noise: LabelNoise | None = None,
    seed: int = 0,
) -> Splits:
    """The rows of a table, one or several columns of which are to be predicted.

    Numbers are standardised by the training rows' mean and deviation, their missing values set to the training median.
    Words and truth values are one-hot by the training rows' categories (another value, or none, is all zeros), or codes
    1, 2, ... (0) for a model that embeds them. A source that is divided already keeps its splits; a validation or test
    split that it lacks is drawn from its training rows.

    Args:
        path: a CSV, TSV, Parquet, JSON Lines or LIBSVM file, a folder of such files or of `save_to_disk`, or `owner/name`
            or `owner/name:configuration` of the Hugging Face hub.
        target: a column of classes or numbers; or several, of labels (0 and 1) or of numbers.
        train: rows to train on; None: all that are left.
        validation: a share of the rows, or a number; test likewise.
        test: see validation.
        split: a column that says train, validation or test, in place of shares and of the source's own splits.
        group: a column whose equal values never stand in two splits.
        id: a column that names the rows, which results then carry; no feature.
        stratify: the classes in the same proportions in each split.
        drop: columns that are not read.
        missing: "refuse" missing values in place of imputing them.
        categories: the most values that a column of words may have.
        standardize: False leaves numbers as they are.
        encode: words as "onehot" features or as "codes", `Splits.categories`.
        task: what the target is: classes, numbers or labels; None: what its column holds.
        noise: on training labels.
        seed: of the split and the noise.

    Raises:
        FileNotFoundError: no such file.
        ConnectionError: a hub set, and no network.
        ValueError: no such column, columns that are neither numbers nor categories, infinite numbers, too little memory.
    """
    frame, targets = labelled(read_frame(path), target, task)
    predicted = [target] if isinstance(target, str) else list(target)
    for name in (*drop, *filter(None, (split, group))):
        column(frame, name, "data.drop" if name in drop else "data.split" if name == split else "data.group")
    ids = None if id is None else identifiers(path, frame, id)
    rows = divide(
        targets.strata(stratify),
        Shares(train, validation, test, stratify, seed),
        None if split is None else frame[split],
        None if group is None else frame[group],
        given(frame),
    )
    read = [name for name in frame.columns if name not in (*predicted, split, group, id, GIVEN, *drop)]
    if not read:
        raise ValueError(f"data.path={path} has no columns beside data.target={target}")
    columns = [fit(frame[name], rows["train"], missing, categories, standardize, encode) for name in read]
    tell_giveaways(frame, read, predicted, targets.task)
    names = [name for each in columns for name in each.names]
    must_fit(4 * len(frame) * len(names), path, "set data.encode=codes, or read fewer columns or rows")
    labels = torch.from_numpy(targets.y)
    tables = {
        split: {"x": _filled(frame, columns, rows[split], len(names)), "y": labels[rows[split]]} for split in NAMES
    }
    splits = Splits(
        Path(path).name,
        tables["train"],
        tables["validation"],
        tables["test"],
        targets.names,
        kind="table",
        features=tuple(names),
        categories=tuple(each.categories for each in columns) if any(each.categories for each in columns) else (),
        source=path,
        columns=tuple(read) if len(read) <= _TELLING else (),
        origins=origins(frame.index.to_numpy(), ids, rows),
        task=targets.task,
    )
    inspect(splits)
    return corrupt(splits, noise, seed)


def _filled(frame: pd.DataFrame, columns: Sequence[Column], rows: np.ndarray, width: int) -> Tensor:
    """Some rows as float32 [n, width], written column by column."""
    x = np.empty((len(rows), width), dtype=np.float32)
    at = 0
    for each in columns:
        own = x[:, at : (at := at + len(each.names))]
        with np.errstate(over="ignore", invalid="ignore"):
            own[...] = each.encode(frame[each.name].iloc[rows])
        if (odd := ~np.isfinite(own).all(1)).any():
            raise ValueError(
                f"column {each.name} is not finite, as float32, in {odd.sum()} rows ({named_rows(frame.index.to_numpy()[rows[odd]])}): "
                f"mend them, or set data.drop=[{each.name}]"
            )
    return torch.from_numpy(x)

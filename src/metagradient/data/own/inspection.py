"""What is odd about a user's data, told before anything trains on it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from metagradient.data.splits import Splits, Table, Task

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

_SAMPLE = 1000  # rows that are looked at before all of them are
_NAMED = 10


def inspect(splits: Splits) -> None:
    """Say in one line each: the classes with their numbers of training rows, copies of rows (of inputs that are held), classes without rows, labels that never change.

    Raises:
        ValueError: the training rows are all of one class, or their numbers all the same.
    """
    if isinstance(splits.train["x"], torch.Tensor):
        _copies(splits)
    if splits.task == "classes":
        _classes(splits)
    elif splits.task == "labels":
        y = splits.train["y"]
        for name, column in zip(splits.classes, y.T, strict=True):
            if bool((column == column[0]).all()):
                log.warning("label %s is %g in every training row: nothing can be learned about it", name, column[0])
    elif bool((splits.train["y"] == splits.train["y"][:1]).all()):
        raise ValueError(
            f"every training row has the target {splits.train['y'][0].tolist()}: there is nothing to learn; divide the rows otherwise "
            "(data.seed, data.split)"
        )


def tell_giveaways(frame: pd.DataFrame, features: Sequence[str], targets: Sequence[str], task: Task) -> None:
    """Name the columns that say in every row what a target says: one value for each class, or a line of the number."""
    same = _on_a_line if task == "numbers" else _one_to_one
    for target in targets:
        for name in features:
            if same(frame[name], frame[target]):
                log.warning(
                    "column %s says in every row what data.target=%s says: set data.drop=[%s], unless it is known beforehand",
                    name, target, name,
                )  # fmt: skip


def _one_to_one(feature: pd.Series, target: pd.Series) -> bool:
    import pandas as pd

    known, classes = pd.factorize(target)
    if feature.iloc[:_SAMPLE].nunique(dropna=False) > len(classes):
        return False
    codes, values = pd.factorize(feature, use_na_sentinel=False)
    return len(values) == len(classes) == len(np.unique(codes.astype(np.int64) * len(classes) + known))


def _on_a_line(feature: pd.Series, target: pd.Series) -> bool:
    import pandas as pd

    if not pd.api.types.is_numeric_dtype(feature) or feature.nunique() < 3:
        return False
    x, y = feature.to_numpy(dtype=np.float64, na_value=np.nan), target.to_numpy(dtype=np.float64)
    x, y = x - x.mean(), y - y.mean()
    return bool(abs(x @ y) >= (1 - 1e-12) * np.linalg.norm(x) * np.linalg.norm(y))  # not where a value is missing


def _copies(splits: Splits) -> None:
    train, y = _keys(splits.train), splits.train["y"].reshape(len(splits.train["y"]), -1)
    known, first, place = np.unique(train, return_index=True, return_inverse=True)
    if copies := len(train) - len(known):
        contrary = int((y != y[first[place]]).any(1).sum())
        told = f", {contrary} of them with another target" if contrary else ""
        log.warning("%d of %d training rows are copies of another one%s", copies, len(train), told)
    leaked = sum(int(np.isin(_keys(table), known).sum()) for table in (splits.validation, splits.test))
    if leaked:
        log.warning(
            "%d validation and test rows are copies of training rows, which flatters what is measured on them", leaked
        )


def _keys(table: Table) -> np.ndarray:
    """A hash of each row's input, int64 [n]."""
    x = table["x"].flatten(1).numpy()
    return np.fromiter((hash(row.tobytes()) for row in x), dtype=np.int64, count=len(x))


def _classes(splits: Splits) -> None:
    counts = {
        name: torch.bincount(y.argmax(1) if y.dim() == 2 else y, minlength=len(splits.classes)).tolist()
        for name, y in (("train", splits.train["y"]), ("test", torch.cat([splits.validation["y"], splits.test["y"]])))
    }
    there = [name for name, count in zip(splits.classes, counts["train"], strict=True) if count]
    if len(there) == 1:
        raise ValueError(
            f"every training row is of class {there[0]}: there is nothing to tell apart; divide the rows otherwise "
            "(data.stratify=true, data.seed)"
        )
    most = sorted(zip(splits.classes, counts["train"], strict=True), key=lambda each: -each[1])
    told = ", ".join(f"{name} {count}" for name, count in most[:_NAMED])
    log.info("%d classes: %s%s", len(most), told, ", ..." if len(most) > _NAMED else "")
    for name, known, asked in zip(splits.classes, counts["train"], counts["test"], strict=True):
        if not known and asked:
            log.warning(
                "class %s has %d validation and test rows and no training row: it cannot be learned", name, asked
            )
        elif not known:
            log.warning("class %s has no rows", name)

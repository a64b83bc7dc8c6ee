"""What is to be predicted: classes, numbers or several labels at once, told apart by what a column holds."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from metagradient.data.own.reading import column
from metagradient.data.splits import Task

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

_MOST_CLASSES, _NAMED = 1000, 5


@dataclass(frozen=True, eq=False)
class Targets:
    """The targets of n rows.

    Attributes:
        y: class numbers int64 [n], or their shares float32 [n, C]; numbers float32 [n] or [n, k]; labels float32 [n, C].
        task: what they are.
        names: the classes', or the labels'; none of numbers.
    """

    y: np.ndarray
    task: Task
    names: tuple[str, ...] = ()

    def strata(self, wanted: bool) -> np.ndarray:
        """Class numbers [n], in whose proportions rows can be divided.

        Raises:
            ValueError: they are `wanted`, and there are no classes.
        """
        if wanted and self.task != "classes":
            raise ValueError(
                f"data.stratify=true keeps classes in proportion, and the target is of {self.task}: set data.stratify=false"
            )
        return self.y.argmax(1) if self.y.ndim == 2 else self.y


def labelled(
    frame: pd.DataFrame, target: str | Sequence[str], task: Task | None = None
) -> tuple[pd.DataFrame, Targets]:
    """The rows that have a target, and what it is.

    Args:
        frame: rows.
        target: a column; or several, of labels (0 and 1), of numbers, or of shares of the classes.
        task: what the target is; None: found out and, where it is not classes, said.

    Raises:
        ValueError: no such column, or none of that kind: named with its values.
    """
    names = [target] if isinstance(target, str) else list(map(str, target))
    if not names or len(set(names)) < len(names):
        raise ValueError(f"data.target={names} must name one or more different columns")
    values = [column(frame, name, "data.target") for name in names]
    absent = np.logical_or.reduce([v.isna().to_numpy() for v in values])
    what = f"data.target={names[0]}" if len(names) == 1 else f"data.target=[{','.join(names)}]"
    if absent.any():
        log.warning("%d of %d rows have no %s and are left out", absent.sum(), len(frame), " and ".join(names))
        frame = frame[~absent]
        values = [frame[name] for name in names]
    rows = frame.index.to_numpy()
    if len(names) == 1:
        return frame, _of_column(_plain(values[0]), what, task, rows, _categories(values[0]))
    words = [name for name, v in zip(names, values, strict=True) if _plain(v).dtype.kind not in "biuf"]
    if words:
        raise ValueError(
            f"{what}: column {words[0]} holds words, and several targets are numbers, or labels of 0 and 1: choose others"
        )
    return frame, _of_columns(np.stack([_plain(v) for v in values], axis=1), what, task, rows, tuple(names))


def targets_of(y: np.ndarray, what: str, task: Task | None = None) -> Targets:
    """The targets of an array [n], [n, 1] or [n, C].

    Raises:
        ValueError: other shapes, or none of that kind.
    """
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    rows = np.arange(len(y))
    if y.ndim == 1:
        return _of_column(y, what, task, rows)
    if y.ndim != 2 or y.dtype.kind not in "biuf":
        raise ValueError(f"{what} is {y.dtype} {list(y.shape)}: targets are [n], or numbers [n, C]")
    return _of_columns(y, what, task, rows, tuple(map(str, range(y.shape[1]))))


def class_numbers(labels: Any, classes: Sequence[Any] | None = None) -> tuple[Any, tuple[Any, ...]]:
    """Words, or numbers with gaps, as class numbers (a tensor int64 [n]), and the classes in their order.

    Args:
        labels: n of them: a list, an array or a tensor.
        classes: those of the training rows, for other rows of the same; None: the sorted ones among `labels`.

    Raises:
        ValueError: labels that are none of `classes`.
    """
    import torch

    values = np.asarray(labels)
    if classes is None:
        found, numbers = np.unique(values, return_inverse=True)
        return torch.from_numpy(numbers.reshape(-1).astype(np.int64)), tuple(found.tolist())
    place = {name: i for i, name in enumerate(classes)}
    unknown = sorted({str(v) for v in values.tolist() if v not in place})
    if unknown:
        raise ValueError(f"{', '.join(unknown[:_NAMED])} are none of the classes {', '.join(map(str, classes))}")
    return torch.tensor([place[v] for v in values.tolist()], dtype=torch.int64), tuple(classes)


def _plain(values: pd.Series) -> np.ndarray:
    """Without missing values, as NumPy has them: numbers, truth values or words."""
    import pandas as pd

    if isinstance(values.dtype, pd.CategoricalDtype):
        return values.astype(str).to_numpy()
    if pd.api.types.is_bool_dtype(values):
        return values.to_numpy(dtype=bool)
    if pd.api.types.is_integer_dtype(values):
        return values.to_numpy(dtype=np.int64)
    if pd.api.types.is_float_dtype(values):
        return values.to_numpy(dtype=np.float64)
    return values.astype(str).to_numpy()


def _categories(values: pd.Series) -> tuple[str, ...] | None:
    """The classes in the order that the column itself gives them, some of them perhaps without rows."""
    import pandas as pd

    return tuple(map(str, values.cat.categories)) if isinstance(values.dtype, pd.CategoricalDtype) else None


def _of_column(
    values: np.ndarray, what: str, task: Task | None, rows: np.ndarray, order: tuple[str, ...] | None = None
) -> Targets:
    distinct, codes = np.unique(values, return_inverse=True)
    numeric = values.dtype.kind in "iuf"
    if len(distinct) < 2:
        only = _name(distinct[0]) if len(distinct) else "none"
        raise ValueError(f"{what} has one value alone ({only}): there is nothing to tell apart")
    if task is None:
        task = _task_of(values, len(distinct), what)
    if task == "numbers":
        return Targets(_single(values, what, rows), "numbers")
    if task == "labels":
        return Targets(_probabilities(values[:, None], what, rows), "labels", (what.rpartition("=")[2],))
    _check_task(task)
    if numeric:
        _finite(values, what, rows)
    if order is not None:
        place = {name: i for i, name in enumerate(order)}
        return Targets(np.array([place[v] for v in values], dtype=np.int64), "classes", order)
    return Targets(codes.reshape(-1).astype(np.int64), "classes", tuple(map(_name, distinct)))


def _task_of(values: np.ndarray, distinct: int, what: str) -> Task:
    """What a column is, told by its `distinct` values."""
    if values.dtype.kind not in "iuf":
        if distinct > _MOST_CLASSES or distinct == len(values) > 2:
            raise ValueError(
                f"{what} takes {distinct} values in {len(values)} rows, which is no set of classes: choose a column of classes or "
                "of numbers, or set data.task=classes"
            )
        return "classes"
    with np.errstate(invalid="ignore"):  # infinity has no remainder
        fractions = values.dtype.kind == "f" and bool((values % 1 != 0).any())
    if not fractions and distinct <= min(_MOST_CLASSES, max(len(values) / 2, 2)):
        return "classes"
    log.info("%s holds %d different numbers, which are predicted: data.task=classes reads classes", what, distinct)
    return "numbers"


def _of_columns(values: np.ndarray, what: str, task: Task | None, rows: np.ndarray, names: tuple[str, ...]) -> Targets:
    inside = bool(((values >= 0) & (values <= 1)).all())
    hard = bool(np.isin(values, (0, 1)).all())
    shares = inside and bool(np.allclose(values.sum(1, dtype=np.float64), 1, atol=1e-3))
    if task is None:
        task = "classes" if shares else "labels" if hard else "numbers"
        log.info(
            "%s: %d columns, read as %s; data.task=classes|labels|numbers says otherwise",
            what, len(names), {"classes": "shares of classes", "labels": "labels", "numbers": "numbers"}[task],
        )  # fmt: skip
    if task == "numbers":
        return Targets(_single(values, what, rows), "numbers")
    if task == "labels":
        return Targets(_probabilities(values, what, rows), "labels", names)
    _check_task(task)
    if not shares:
        raise ValueError(
            f"{what} is no shares of classes, whose columns lie in [0, 1] and sum to 1 in each row: set data.task=labels, or numbers"
        )
    return Targets(values.argmax(1) if hard else values.astype(np.float32), "classes", names)


def _finite(values: np.ndarray, what: str, rows: np.ndarray) -> np.ndarray:
    if values.dtype.kind not in "biuf":
        raise ValueError(f"{what} holds words, which are no numbers: set data.task=classes")
    odd = ~np.isfinite(values.reshape(len(values), -1).astype(np.float64)).all(1)
    if odd.any():
        raise ValueError(f"{what} is not finite in {odd.sum()} rows ({named_rows(rows[odd])}): leave them out")
    return values


def _single(values: np.ndarray, what: str, rows: np.ndarray) -> np.ndarray:
    """As float32, in which they must be finite as well."""
    with np.errstate(over="ignore"):
        return _finite(_finite(values, what, rows).astype(np.float32), f"{what}, as float32,", rows)


def _probabilities(values: np.ndarray, what: str, rows: np.ndarray) -> np.ndarray:
    outside = ~((_finite(values, what, rows) >= 0) & (values <= 1)).all(1)
    if outside.any():
        raise ValueError(
            f"{what} lies outside [0, 1] in {outside.sum()} rows ({named_rows(rows[outside])}), and labels are 0 or 1: set "
            "data.task=numbers"
        )
    return values.astype(np.float32)


def _check_task(task: str) -> None:
    if task not in get_args(Task):
        raise ValueError(f"data.task must be one of {', '.join(get_args(Task))}, or null, not {task}")


def named_rows(rows: np.ndarray) -> str:
    """`rows 3, 7, ...` by their numbers."""
    return f"rows {', '.join(map(str, rows[:_NAMED]))}{', ...' if len(rows) > _NAMED else ''}"


def _name(value: Any) -> str:
    """A class's name: whole numbers without a point."""
    if isinstance(value, float | np.floating):
        return str(int(value)) if value % 1 == 0 else str(value)
    return str(value)

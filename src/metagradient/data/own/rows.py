"""Which rows are for training, validation and test: by a column, by share or number, by class, by group."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

NAMES = ("train", "validation", "test")
WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval"),
}
"""What people call the splits."""

GIVEN = "(split of the source)"
"""The column of rows whose source is divided already, which says train, validation or test."""

_BLANK = "(blank)"


@dataclass(frozen=True)
class Shares:
    """How rows are divided.

    Attributes:
        validation: a share of all rows in (0, 1), or a number of rows; test likewise.
        train: at most so many of the rest; None: all of it.
        stratify: each class in the same proportions everywhere.
        seed: of the random order.
    """

    train: int | None = None
    validation: float = 0.1
    test: float = 0.2
    stratify: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises ValueError: a setting of another kind."""
        for name, wanted in (("validation", self.validation), ("test", self.test)):
            if not _is_number(wanted) or not wanted >= 0 or (wanted >= 1 and wanted != int(wanted)):
                raise ValueError(
                    f"data.{name} is a share in (0, 1) or a number of rows, not {wanted}: set data.{name}=0.1"
                )
        if self.train is not None and (not _is_number(self.train) or self.train < 1 or self.train != int(self.train)):
            raise ValueError(f"data.train is a number of rows, or null, not {self.train}: set data.train=1000")

    def sizes(self, n: int, drawn: Collection[str] = ("validation", "test")) -> dict[str, int]:
        """Rows of each split, out of `n`; beside train only those of `drawn`.

        Raises:
            ValueError: nothing is left for one of them.
        """
        sizes = {}
        for name, wanted in (("validation", self.validation), ("test", self.test)):
            sizes[name] = 0 if name not in drawn else round(wanted * n) if wanted < 1 else int(wanted)
        left = n - sum(sizes.values())
        sizes["train"] = left if self.train is None else min(int(self.train), left)
        if ("test" in drawn and sizes["test"] < 1) or sizes["train"] < 1:
            raise ValueError(
                f"{n} rows cannot be divided into train={self.train or 'the rest'}, validation={self.validation} and "
                f"test={self.test}: set for example data.validation=0.1 data.test=0.2 data.train=null"
            )
        return sizes


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def divide(
    y: np.ndarray,
    shares: Shares,
    split: pd.Series | None = None,
    group: pd.Series | None = None,
    given: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Row numbers of each split, in random order.

    Args:
        y: class numbers [n], for `stratify`.
        shares: used where there is no `split`.
        split: a column that says train, validation or test.
        group: a column whose equal values stay together; whole groups are dealt out until a split is full.
        given: train, validation or test of each row, by its source; what the source lacks is drawn from its training rows.

    Raises:
        ValueError: a column with other words, an empty split, too few rows or groups, a group in two splits, or
            `stratify` where rows are divided otherwise.
    """
    if shares.stratify and (split is not None or group is not None):
        other = f"data.split={split.name}" if split is not None else f"data.group={group.name}"  # type: ignore[union-attr]
        raise ValueError(f"data.stratify=true draws rows by class, and {other} divides them: set data.stratify=false")
    divided = _divided(y, shares, split, group, given)
    if group is not None:
        _check_groups(divided, group, "data.split" if split is not None else "the source's own splits")
    return divided


def _divided(
    y: np.ndarray, shares: Shares, split: pd.Series | None, group: pd.Series | None, given: np.ndarray | None
) -> dict[str, np.ndarray]:
    order = np.random.default_rng([shares.seed, 0]).permutation(len(y))
    if split is not None:
        said = split.astype("string").str.strip().str.lower()
        words = said.fillna("").replace("", _BLANK).to_numpy(dtype=object)
        known = {word: name for name, several in WORDS.items() for word in several}
        odd = sorted({word for word in words if word not in known})
        if odd:
            count = sum(word not in known for word in words)
            raise ValueError(
                f"data.split={split.name} says {', '.join(odd[:5])} in {count} rows: its words are train, validation and test"
            )
        found = np.array([known[word] for word in words])
        divided = {name: order[found[order] == name] for name in NAMES}
        if not len(divided["train"]) or not len(divided["test"]):
            raise ValueError(f"data.split={split.name} gives no rows to train or to test")
        _tell_ignored(shares, divided, f"data.split={split.name}", ("validation", "test"))
        return divided | {"train": divided["train"][: None if shares.train is None else int(shares.train)]}
    if given is None:
        return _drawn(order, y, shares, group)
    divided = {name: order[given[order] == name] for name in NAMES}
    lacking = [name for name in ("validation", "test") if not len(divided[name])]
    if shares.stratify and not lacking:
        raise ValueError("data.stratify=true draws rows by class, and the source is divided: set data.stratify=false")
    _tell_ignored(shares, divided, "the source", [name for name in ("validation", "test") if name not in lacking])
    own = _drawn(divided["train"], y, shares, group, lacking)
    for name in lacking:
        log.info("the source has no %s rows: %d of its training rows are", name, len(own[name]))
    return divided | {name: own[name] for name in ("train", *lacking)}


def _tell_ignored(shares: Shares, divided: Mapping[str, np.ndarray], who: str, names: Sequence[str]) -> None:
    """Say where a share or number was asked for of a split that is there already."""
    for name in names:
        if (asked := getattr(shares, name)) != getattr(Shares, name):
            log.warning("%s has %d %s rows: data.%s=%s is not heeded", who, len(divided[name]), name, name, asked)


def _check_groups(divided: Mapping[str, np.ndarray], group: pd.Series, who: str) -> None:
    if group.isna().any():
        raise ValueError(f"data.group={group.name} is missing in {int(group.isna().sum())} rows")
    values = group.astype("category").cat.codes.to_numpy()
    own = [np.unique(values[rows]) for rows in divided.values()]
    groups, counts = np.unique(np.concatenate(own), return_counts=True)
    if (several := int((counts > 1).sum())) > 0:
        raise ValueError(
            f"data.group={group.name}: {several} of {len(groups)} groups stand in more than one split of {who}: leave out data.group, "
            "or divide the rows otherwise"
        )


def _drawn(
    order: np.ndarray,
    y: np.ndarray,
    shares: Shares,
    group: pd.Series | None,
    drawn: Collection[str] = ("validation", "test"),
) -> dict[str, np.ndarray]:
    """The rows of `order`, shared out between train and `drawn`."""
    sizes = shares.sizes(len(order), drawn)
    if group is not None:
        return _by_group(order, group, sizes)
    if shares.stratify:
        order = _interleaved(order, y)
    test, validation = sizes["test"], sizes["validation"]
    return {
        "test": order[:test],
        "validation": order[test : test + validation],
        "train": order[test + validation :][: sizes["train"]],
    }


def _interleaved(order: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The rows so that every stretch has the classes in their proportions: by their quantile within the class."""
    place = np.empty(len(y))
    for label in np.unique(y):
        members = order[y[order] == label]
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
    return order[np.argsort(place[order], kind="stable")]


def _by_group(order: np.ndarray, group: pd.Series, sizes: dict[str, int]) -> dict[str, np.ndarray]:
    codes = group.astype("category").cat.codes.to_numpy()
    if (codes < 0).any():
        raise ValueError(f"data.group={group.name} is missing in {int((codes < 0).sum())} rows")
    seen = list(dict.fromkeys(codes[order]))
    divided: dict[str, list[int]] = {name: [] for name in NAMES}
    for code in seen:
        members = order[codes[order] == code]
        name = next((n for n in ("test", "validation") if len(divided[n]) < sizes[n]), "train")
        divided[name] += members.tolist()
    if not divided["train"] or (sizes["test"] and not divided["test"]):
        raise ValueError(
            f"data.group={group.name} has {len(seen)} groups, too few to be divided: lower data.test or data.validation"
        )
    return {
        name: np.array(rows[: sizes["train"]] if name == "train" else rows, dtype=np.int64)
        for name, rows in divided.items()
    }

"""Which rows are for training, validation and test: by a column, by share or number, by class, by group."""

from __future__ import annotations

import logging
from collections.abc import Collection
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

    def sizes(self, n: int, drawn: Collection[str] = ("validation", "test")) -> dict[str, int]:
        """Rows of each split, out of `n`; beside train only those of `drawn`.

        Raises:
            ValueError: nothing is left for one of them.
        """
        sizes = {}
        for name, wanted in (("validation", self.validation), ("test", self.test)):
            if not wanted >= 0 or (wanted >= 1 and wanted != int(wanted)):
                raise ValueError(
                    f"data.{name} is a share in (0, 1) or a number of rows, not {wanted}: set data.{name}=0.1"
                )
            sizes[name] = 0 if name not in drawn else round(wanted * n) if wanted < 1 else int(wanted)
        left = n - sum(sizes.values())
        sizes["train"] = left if self.train is None else min(self.train, left)
        if ("test" in drawn and sizes["test"] < 1) or sizes["train"] < 1:
            raise ValueError(
                f"{n} rows cannot be divided into train={self.train or 'the rest'}, validation={self.validation} and "
                f"test={self.test}: set for example data.validation=0.1 data.test=0.2 data.train=null"
            )
        return sizes


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
        ValueError: a column with other words, an empty split, too few rows or groups.
    """
    order = np.random.default_rng([shares.seed, 0]).permutation(len(y))
    if split is not None:
        words = split.astype(str).str.strip().str.lower().to_numpy()
        known = {word: name for name, several in WORDS.items() for word in several}
        odd = sorted({word for word in words if word not in known})
        if odd:
            raise ValueError(
                f"data.split={split.name} says {', '.join(odd[:5])}: its words are train, validation and test"
            )
        found = np.array([known[word] for word in words])
        divided = {name: order[found[order] == name] for name in NAMES}
        if not len(divided["train"]) or not len(divided["test"]):
            raise ValueError(f"data.split={split.name} gives no rows to train or to test")
        return divided
    if given is None:
        return _drawn(order, y, shares, group)
    divided = {name: order[given[order] == name] for name in NAMES}
    lacking = [name for name in ("validation", "test") if not len(divided[name])]
    own = _drawn(divided["train"], y, shares, group, lacking)
    for name in lacking:
        log.info("the source has no %s rows: %d of its training rows are", name, len(own[name]))
    return divided | {name: own[name] for name in ("train", *lacking)}


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

"""How a column of a table becomes numbers: standardised, one-hot or codes, by the training rows."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from metagradient.data.own.targets import named_rows

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

Encoding = Literal["onehot", "codes"]


class Column(Protocol):
    """What one column of a table became: k features."""

    @property
    def name(self) -> str:
        """Of the column."""

    @property
    def names(self) -> Sequence[str]:
        """Of its k features."""

    @property
    def categories(self) -> tuple[str, ...]:
        """The values behind the codes 1, 2, ...; empty where the features are no codes."""

    def encode(self, values: pd.Series) -> np.ndarray:
        """[n, k] of n values."""


@dataclass(frozen=True)
class Numbers:
    """`(value - mean) / deviation`, missing values first set to `fill`."""

    name: str
    fill: float
    mean: float = 0.0
    deviation: float = 1.0
    categories: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Its own name."""
        return (self.name,)

    def encode(self, values: pd.Series) -> np.ndarray:
        """[n, 1] of n values."""
        numbers = _numbers(values)
        return ((np.where(np.isnan(numbers), self.fill, numbers) - self.mean) / self.deviation)[:, None]


@dataclass(frozen=True)
class OneHot:
    """An indicator of each of the `known` values; of another value, or none, all zeros."""

    name: str
    known: tuple[str, ...]
    categories: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """One for each value."""
        return tuple(f"{self.name} = {word}" for word in self.known)

    def encode(self, values: pd.Series) -> np.ndarray:
        """[n, len(known)] of n values."""
        return _codes(values, self.known)[:, None] == np.arange(len(self.known))


@dataclass(frozen=True)
class Codes:
    """The place of a value among the `known`, from 1; 0 of another value, or none."""

    name: str
    categories: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Its own name."""
        return (self.name,)

    def encode(self, values: pd.Series) -> np.ndarray:
        """[n, 1] of n values."""
        return _codes(values, self.categories)[:, None] + 1


def fit(
    values: pd.Series,
    train: np.ndarray,
    missing: Literal["impute", "refuse"],
    most: int,
    standardize: bool,
    encode: Encoding,
) -> Column:
    """How a column is encoded, by its training rows; what is missing is told.

    Args:
        values: the whole column [n].
        train: row numbers of the training rows.
        missing: "refuse" missing values.
        most: values that a column of words may have.
        standardize: numbers to mean 0 and deviation 1.
        encode: of words: "onehot" or "codes".

    Raises:
        ValueError: neither numbers nor categories, infinite numbers, too many categories, missing values to be refused.
    """
    import pandas as pd

    name, absent = str(values.name), int(values.isna().sum())
    if absent and missing == "refuse":
        raise ValueError(f"column {name} is missing in {absent} rows: set data.missing=impute, or data.drop=[{name}]")
    if pd.api.types.is_datetime64_any_dtype(values):
        raise ValueError(f"column {name} is a date, which is neither a number nor a category: set data.drop=[{name}]")
    if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values):
        return _fit_numbers(values, train, absent, standardize)
    first = next(iter(values.dropna()), None)
    if isinstance(first, list | dict | bytes | np.ndarray):
        raise ValueError(
            f"column {name} holds {type(first).__name__}s, which are neither numbers nor categories: set data.drop=[{name}]"
        )
    known = tuple(sorted(values.iloc[train].astype("string").dropna().unique()))
    if len(known) > most:
        numbers = pd.to_numeric(values.astype("string"), errors="coerce")
        words = values[numbers.isna() & values.notna()]
        if 0 < len(words) < len(values) / 2:
            raise ValueError(
                f"column {name} holds numbers, but in {len(words)} rows other words ('{words.iloc[0]}' in row {words.index[0]}): mend "
                f"them, leave them empty, or set data.drop=[{name}]"
            )
        raise ValueError(
            f"column {name} has {len(known)} different values, more than data.categories={most}: raise it, or set data.drop=[{name}]"
        )
    if absent:
        log.warning("column %s: %d missing values belong to no category", name, absent)
    if encode not in _ENCODINGS:
        raise ValueError(f"data.encode must be one of {', '.join(_ENCODINGS)}, not {encode}: set data.encode=onehot")
    return _ENCODINGS[encode](name, known)


_ENCODINGS: dict[str, type[OneHot] | type[Codes]] = {"onehot": OneHot, "codes": Codes}


def _fit_numbers(values: pd.Series, train: np.ndarray, absent: int, standardize: bool) -> Numbers:
    name, numbers = str(values.name), _numbers(values)
    if (infinite := np.isinf(numbers)).any():
        raise ValueError(
            f"column {name} is infinite in {infinite.sum()} rows ({named_rows(values.index[infinite])}): mend them, or set data.drop=[{name}]"
        )
    own = numbers[train]
    seen = own[~np.isnan(own)]
    if not len(seen):
        raise ValueError(f"column {name} is missing in every training row: set data.drop=[{name}]")
    with np.errstate(over="ignore"):  # such columns are refused when they are filled
        fill = float(np.median(seen))
    if absent:
        log.warning("column %s: %d missing values are set to the training median, %g", name, absent, fill)
    if not standardize:
        return Numbers(name, fill)
    own = np.where(np.isnan(own), fill, own)
    with np.errstate(over="ignore", invalid="ignore"):
        return Numbers(name, fill, float(own.mean()), float(own.std()) or 1.0)


def _numbers(values: pd.Series) -> np.ndarray:
    return values.to_numpy(dtype=np.float64, na_value=np.nan)


def _codes(values: pd.Series, known: Sequence[str]) -> np.ndarray:
    """Places among `known`, -1 of others."""
    import pandas as pd

    places = pd.Index(known, dtype="string").get_indexer(pd.Index(values.astype("string")))
    return np.asarray(places, dtype=np.int64)

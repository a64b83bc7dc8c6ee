"""Rows divided by what the user gives: groups that stay whole, settings that have no effect told."""

import logging
from typing import Any

import numpy as np
import pandas as pd
import pytest

from metagradient.data.own.rows import Shares, divide

N = 40
Y = np.arange(N) % 2
PART = pd.Series(np.where(np.arange(N) < 20, "train", np.where(np.arange(N) < 30, "val", "test")), name="part")
GIVEN = PART.replace("val", "validation").to_numpy(dtype=object)
PAIRS = pd.Series(np.arange(N) // 2, name="pair")
TWENTIES = pd.Series(np.arange(N) % 20, name="patient")


def test_groups_are_whole_whoever_divides_the_rows() -> None:
    for rows in (divide(Y, Shares(), PART, PAIRS), divide(Y, Shares(), None, PAIRS, GIVEN)):
        assert [len(rows[name]) for name in ("train", "validation", "test")] == [20, 10, 10]
    with pytest.raises(
        ValueError, match=r"data\.group=patient: 20 of 20 groups stand in more than one split of data\.split"
    ):
        divide(Y, Shares(), PART, TWENTIES)
    with pytest.raises(ValueError, match=r"20 of 20 groups stand in more than one split of the source's own splits"):
        divide(Y, Shares(), None, TWENTIES, GIVEN)
    with pytest.raises(
        ValueError, match=r"20 of 20 groups"
    ):  # what the source lacks is drawn by group, what it has is not
        divide(Y, Shares(), None, TWENTIES, np.where(np.arange(N) < 20, "train", "test").astype(object))
    with pytest.raises(ValueError, match=r"data\.group=pair is missing in 1 rows"):
        divide(Y, Shares(), PART, PAIRS.astype(float).where(PAIRS.index != 1))


@pytest.mark.parametrize("given", [{"split": PART}, {"group": PAIRS}, {"given": GIVEN}])
def test_classes_cannot_be_kept_in_proportion_by_other_rules(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"data\.stratify=true draws rows by class.*set data\.stratify=false"):
        divide(Y, Shares(stratify=True), **given)


def test_shares_of_splits_that_are_there_are_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        divide(Y, Shares(), PART)
        divide(Y, Shares(validation=0.25), given=np.where(np.arange(N) < 30, "train", "test").astype(object))
    assert not caplog.text
    with caplog.at_level(logging.WARNING):
        divide(Y, Shares(test=0.5), PART)
        divide(Y, Shares(validation=3), given=GIVEN)
    assert "data.split=part has 10 test rows: data.test=0.5 is not heeded" in caplog.text
    assert "the source has 10 validation rows: data.validation=3 is not heeded" in caplog.text
    assert len(divide(Y, Shares(train=7), PART)["train"]) == 7


def test_blanks_in_the_column_of_splits_are_named() -> None:
    part = PART.where(PART.index > 2, None)
    part[5] = " "
    with pytest.raises(ValueError, match=r"data\.split=part says \(blank\) in 4 rows"):
        divide(Y, Shares(), part)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train": 10.5}, r"data\.train is a number of rows, or null, not 10\.5"),
        ({"train": "a"}, r"data\.train is a number of rows, or null, not a"),
        ({"test": "a"}, r"data\.test is a share in \(0, 1\) or a number of rows, not a"),
        ({"validation": None}, r"data\.validation is a share"),
        ({"test": float("nan")}, r"data\.test is a share"),
    ],
)
def test_shares_of_another_kind_are_told(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Shares(**settings)

"""Means over repetitions, against values of the tables."""

import math

import pytest

from metagradient.intervals import deviation, half_width, mean_interval, standard_error


def test_a_diverged_run_has_no_deviation() -> None:
    assert math.isnan(deviation([1.0, math.inf]))
    assert math.isnan(deviation([1.0, math.nan]))
    assert deviation([3.0]) == 0.0


def test_the_interval_is_students() -> None:
    """Of 1, 2, 3: mean 2, standard deviation 1, t = 4.302653 with two degrees of freedom."""
    low, high = mean_interval([1.0, 2.0, 3.0])
    assert (low, high) == pytest.approx((2 - 4.302653 / math.sqrt(3), 2 + 4.302653 / math.sqrt(3)))
    assert math.isnan(mean_interval([1.0])[0])


def test_the_standard_error_of_four_values() -> None:
    assert standard_error([1.0, 2.0, 3.0, 4.0]) == pytest.approx(math.sqrt(5 / 3) / 2)
    assert half_width([1.0]) is None

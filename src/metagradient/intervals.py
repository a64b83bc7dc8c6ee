"""Means over repetitions, and how far they can be trusted."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence


def deviation(values: Sequence[float]) -> float:
    """The sample standard deviation; 0 of a single value, nan where a value is not finite."""
    if not all(map(math.isfinite, values)):
        return math.nan
    return statistics.stdev(values) if len(values) > 1 else 0.0


def standard_error(values: Sequence[float]) -> float:
    """The standard error of the mean; 0 of a single value."""
    return deviation(values) / math.sqrt(len(values))


def half_width(values: Sequence[float], level: float = 0.95) -> float | None:
    """Half the width of Student's confidence interval of the mean; None with fewer than two values."""
    if len(values) < 2:
        return None
    from scipy.stats import t

    return float(t.ppf((1 + level) / 2, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))


def mean_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Student's confidence interval of the mean; (nan, nan) with fewer than two values."""
    half = half_width(values, level)
    if half is None:
        return math.nan, math.nan
    mean = statistics.fmean(values)
    return mean - half, mean + half

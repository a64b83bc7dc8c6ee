"""What a set of runs differs in, and what came of it: mean and spread over seeds, tested against a baseline."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metagradient.errors import UserError
from metagradient.intervals import standard_error
from metagradient.reporting.runs.reading import Run

_OTHERS = ("test_r2", "test_label_accuracy")  # in place of the accuracy, where no classes are predicted
HEADLINES = {
    "selection": ("test_accuracy", "test_accuracy_all_data", "test_accuracy_oracle", "f1_clean", *_OTHERS),
    "poisoning": ("drop", "clean_accuracy", "poisoned_accuracy"),
    "schedule": ("test_loss", "test_accuracy", "test_loss_grid_best", "test_loss_flat", *_OTHERS),
    "attribution": ("lds", "lds_low", "lds_high", "mislabel_auc"),
    "unlearning": ("error_ratio", "speedup", "distance_to_retrained", "distance_original_to_retrained"),
    "smoothness": ("metasmoothness", "test_accuracy", *_OTHERS),
    "cost": ("cost_ratio", "peak_memory_ratio"),
}
"""The results of each experiment that are shown unless others are asked for."""

COSTS = ("cost/training_runs", "cost/seconds")


@dataclass(frozen=True)
class Test:
    """One metric of one row against the baseline's.

    Attributes:
        difference: of the means.
        p: two-sided, after Holm's correction over the rows; None where it cannot be computed.
        paired: a paired t-test on equal seeds, else Welch's t-test.
    """

    difference: float
    p: float | None
    paired: bool

    @property
    def mark(self) -> str:
        """`***`, `**`, `*` for p < .001, .01, .05; behind an arrow that says whether the mean rose or fell."""
        if self.p is None or self.p >= 0.05:
            return ""
        return ("▲" if self.difference > 0 else "▼") + "*" * sum(self.p < level for level in (0.05, 0.01, 0.001))


@dataclass(frozen=True)
class Row:
    """The runs of one setting, which differ in their seed only.

    Attributes:
        label: setting -> value, for the settings in which the rows differ.
        tests: metric -> test against the baseline.
    """

    label: dict[str, str]
    runs: list[Run]
    tests: dict[str, Test]

    def values(self, metric: str) -> list[float]:
        """[runs that have it] the metric of each seed."""
        return list(by_seed(self.runs, metric).values())

    @property
    def title(self) -> str:
        return " ".join(f"{key}={value}" for key, value in self.label.items()) or "default"


@dataclass(frozen=True)
class Comparison:
    """The runs of one experiment, a row for each setting; the baseline's row has no tests.

    Attributes:
        lost: runs without results.
        repeated: how many runs are left out because a newer one has their setting and seed.
    """

    experiment: str
    keys: list[str]
    metrics: list[str]
    rows: list[Row]
    baseline: int
    lost: list[Run]
    repeated: int


def compare(
    runs: Sequence[Run], metrics: Sequence[str] = (), baseline: Mapping[str, str] | None = None
) -> list[Comparison]:
    """One comparison for each experiment among the runs.

    Args:
        runs: finished and unfinished runs, of any experiments.
        metrics: names without `result/`; empty: the experiment's headline.
        baseline: settings that one row has; None: the first row.

    Raises:
        UserError: no run has a metric that is asked for; no row, or more than one, fits the baseline.
    """
    experiments = list(dict.fromkeys(run.experiment for run in runs))
    if len(experiments) > 1 and baseline:
        raise UserError(f"a baseline needs runs of one experiment; these are of {', '.join(experiments)}")
    return [_compare(e, [run for run in runs if run.experiment == e], metrics, baseline or {}) for e in experiments]


def _compare(experiment: str, runs: list[Run], metrics: Sequence[str], baseline: Mapping[str, str]) -> Comparison:
    done = [run for run in runs if run.status == "finished"]
    keys = differing(done)
    settings: dict[tuple[str, ...], list[Run]] = {}
    for run in done:
        settings.setdefault(tuple(_value(run, key) for key in keys), []).append(run)
    names = _metrics(experiment, done, metrics)
    labels = [dict(zip(keys, values, strict=True)) for values in settings]
    index = _baseline(labels, baseline)
    groups = [newest(group) for group in settings.values()]
    tests: list[dict[str, Test]] = [{} for _ in groups]
    for name in names:
        if name not in COSTS and groups:
            for i, test in _tests(groups, index, name).items():
                tests[i][name] = test
    rows = [Row(*parts) for parts in zip(labels, groups, tests, strict=True)]
    lost = [run for run in runs if run.status != "finished"]
    return Comparison(experiment, keys, names, rows, index, lost, len(done) - sum(map(len, groups)))


def newest(runs: Sequence[Run]) -> list[Run]:
    """The newest run of each seed: a repetition is no new evidence. Runs without a seed are told apart by their place."""
    latest = {_seed(run): run for run in sorted(runs, key=lambda run: _begun(run.directory / "config.yaml"))}
    return [run for run in runs if latest[_seed(run)] is run]


def _seed(run: Run) -> Any:
    return str(run.directory) if run.seed is None else run.seed


def _begun(config: Path) -> float:
    return config.stat().st_mtime if config.exists() else 0.0


def differing(runs: Sequence[Run]) -> list[str]:
    """The settings and config groups that tell the runs apart, the seed aside.

    Where runs differ in the option chosen for a group (or in their preset), its name stands for all the settings that
    follow from it; a setting of the command line, or one that differs within an option too, is named as well.
    """
    typed = {item.lstrip("+~").partition("=")[0] for run in runs for item in run.overrides}
    shown = []
    decided_by: tuple[str, ...]
    for group in sorted(
        {group for run in runs for group in run.choices}, key=lambda group: (group != "experiment", group)
    ):
        decided_by = () if group in {"experiment", *typed} else ("experiment",)
        if _vary([run.choices.get(group) for run in runs], runs, decided_by):
            shown.append(group)
    for key in dict.fromkeys(key for run in runs for key in run.config):
        if key == "seed" or (key.endswith(".seed") and all(run.config.get(key) == run.seed for run in runs)):
            continue
        decided_by = () if key in typed else ("experiment", key.partition(".")[0])
        if _vary([repr(run.config.get(key, "absent")) for run in runs], runs, decided_by):
            shown.append(key)
    return shown


def _vary(values: Sequence[Any], runs: Sequence[Run], groups: Sequence[str]) -> bool:
    """Whether values, one for each run, differ among runs with the same options in these config groups."""
    seen: dict[tuple[str | None, ...], Any] = {}
    options = [tuple(run.choices.get(group) for group in groups) for run in runs]
    return any(seen.setdefault(option, value) != value for option, value in zip(options, values, strict=True))


def _value(run: Run, key: str) -> str:
    value = run.choices[key] if key in run.choices and key not in run.config else run.config.get(key)
    return "–" if value is None else str(value)


def _metrics(experiment: str, runs: Sequence[Run], asked: Sequence[str]) -> list[str]:
    there = results(runs)
    if asked:
        names = [name if name in there or "/" in name else f"result/{name}" for name in asked]
        unknown = [name for name in names if name not in there]
        if unknown and there:
            raise UserError(
                f"no run has {unknown[0]!r}; there are: {', '.join(n.removeprefix('result/') for n in there)}"
            )
        return names
    shown = [f"result/{name}" for name in HEADLINES.get(experiment, ())]
    chosen = [name for name in shown if name in there]
    return [*(chosen or [name for name in there if name.startswith("result/")][:6]), *(c for c in COSTS if c in there)]


def results(runs: Sequence[Run]) -> list[str]:
    """Every numeric result and cost of the runs."""
    return list(
        dict.fromkeys(
            key for run in runs for key, value in run.metrics.items()
            if key.startswith(("result/", "cost/", "meta/")) and isinstance(value, int | float)
        )
    )  # fmt: skip


def _baseline(labels: Sequence[Mapping[str, str]], asked: Mapping[str, str]) -> int:
    fitting = [i for i, label in enumerate(labels) if all(label.get(key) == value for key, value in asked.items())]
    if asked and len(fitting) != 1:
        wanted = " ".join(f"{key}={value}" for key, value in asked.items())
        there = "; ".join(" ".join(f"{k}={v}" for k, v in label.items()) for label in labels)
        raise UserError(f"{len(fitting) or 'no'} rows fit the baseline {wanted!r}; the rows are: {there}")
    return fitting[0] if fitting else 0


def by_seed(runs: Sequence[Run], metric: str) -> dict[Any, float]:
    """Seed -> value, of the runs that have one."""
    values = ((_seed(run), run.metrics.get(metric)) for run in runs)
    return {key: float(value) for key, value in values if isinstance(value, int | float)}


def _tests(groups: Sequence[Sequence[Run]], baseline: int, metric: str) -> dict[int, Test]:
    """Row -> test of one metric, the p-values corrected together."""
    base = by_seed(groups[baseline], metric)
    raw: dict[int, Test] = {}
    for i, runs in enumerate(groups):
        values = by_seed(runs, metric)
        if i != baseline and values and base:
            raw[i] = t_test(base, values)
    corrected = holm([test.p for test in raw.values()])
    return {i: Test(t.difference, p, t.paired) for (i, t), p in zip(raw.items(), corrected, strict=True)}


def t_test(base: Mapping[Any, float], values: Mapping[Any, float]) -> Test:
    """Two-sided t-test of equal means: paired where both have the same seeds, else Welch's. No p without a spread."""
    difference = statistics.fmean(values.values()) - statistics.fmean(base.values())
    if base.keys() == values.keys():
        pairs = [values[seed] - base[seed] for seed in base]
        return Test(difference, _p(difference, standard_error(pairs), len(pairs) - 1), paired=True)
    if min(len(base), len(values)) < 2:
        return Test(difference, None, paired=False)
    parts = [statistics.variance(x.values()) / len(x) for x in (base, values)]
    total = sum(parts)
    shares = [part / total for part in parts] if total else []  # their squares neither vanish nor overflow
    freedom = 1 / sum(v**2 / (len(x) - 1) for v, x in zip(shares, (base, values), strict=True)) if shares else 0
    return Test(difference, _p(difference, math.sqrt(total), freedom), paired=False)


def _p(difference: float, se: float, freedom: float) -> float | None:
    if se <= 1e-12 * abs(difference) or freedom <= 0:  # equal seeds, equal numbers: no spread to test against
        return None
    from scipy.special import stdtr

    return float(2 * stdtr(freedom, -abs(difference) / se))


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down correction for the number of tests; tests without a p-value do not count."""
    order = sorted((i for i, p in enumerate(ps) if p is not None), key=lambda i: ps[i] or 0.0)
    corrected: list[float | None] = [None] * len(ps)
    running = 0.0
    for rank, i in enumerate(order):
        running = max(running, min(1.0, (len(order) - rank) * (ps[i] or 0.0)))
        corrected[i] = running
    return corrected

"""The runs of a sweep side by side: one table and one figure, made when the last of them is done."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from metagradient.errors import UserError
from metagradient.files import replacing, write_csv
from metagradient.intervals import half_width
from metagradient.reporting.runs.foreign import metrics_of, overrides_of
from metagradient.reporting.table import print_lines, print_table

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Line:
    """The runs of a sweep that differ in nothing but their seed: their overrides, and the values of each result."""

    name: str
    runs: int
    values: Mapping[str, Sequence[float]]


class SweepComparison(Callback):
    """A Hydra callback: after a sweep, `comparison.csv` and `comparison.png` in its folder, and the table on the terminal.

    Attributes:
        results: keys of metrics.json below `result/`, in the table's order; one that no run has is left out. Each
            cell is the mean over seeds, beside it the half width of its 95 % interval (Student's t).
        x: the two of them that the figure shows.
        y: see `x`.
    """

    def __init__(self, results: Sequence[str], x: str, y: str) -> None:
        self.results, self.x, self.y = list(results), x, y

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        lines = read_sweep(folder, self.results)
        if not lines:
            return
        shown = [key for key in self.results if any(line.values[key] for line in lines)]
        columns = ["run", "seeds", *(part for key in shown for part in (key, f"{key} ±"))]
        rows = [
            [line.name, line.runs, *(x for key in shown for x in mean_and_half_width(line.values[key]))]
            for line in lines
        ]
        write_csv(folder / "comparison.csv", columns, rows)
        told = [
            [line.name, line.runs, *(_told(*mean_and_half_width(line.values[key])) for key in shown)] for line in lines
        ]
        print_table("mean over seeds ± half of its 95 % interval", ["run", "seeds", *shown], told)
        points = {line.name: list(zip(line.values[self.x], line.values[self.y], strict=False)) for line in lines}
        points = {name: runs for name, runs in points.items() if runs}
        if points:
            from metagradient.reporting.figures.distances import error_against_speed

            with replacing(folder / "comparison.png") as draft:
                error_against_speed(points).savefig(draft, format="png")
        print_lines([f"comparison: {folder / 'comparison.csv'}, {folder / 'comparison.png'}"])


def read_sweep(folder: Path, results: Sequence[str]) -> list[Line]:
    """The finished runs below a sweep's folder, grouped by what they were asked beside the seed."""
    runs: list[tuple[list[str], dict[str, Any]]] = []
    for file in sorted(folder.glob("*/metrics.json"), key=lambda f: (len(f.parent.name), f.parent.name)):
        try:
            overrides, metrics = overrides_of(file.parent / ".hydra" / "hydra.yaml"), metrics_of(file)
        except UserError as error:
            log.warning("left out: %s", error)
            continue
        if metrics.get("status") == "finished":
            runs.append(([o for o in overrides if not o.startswith("seed=")], metrics))
    shared = set.intersection(*(set(asked) for asked, _ in runs)) if len({tuple(a) for a, _ in runs}) > 1 else set()
    groups: dict[str, list[dict[str, Any]]] = {}
    for asked, metrics in runs:
        name = " ".join(o.removeprefix("method=") for o in asked if o not in shared) or "default"
        groups.setdefault(name, []).append(metrics)
    return [
        Line(
            name,
            len(members),
            {key: [m[f"result/{key}"] for m in members if m.get(f"result/{key}") is not None] for key in results},
        )
        for name, members in groups.items()
    ]


def mean_and_half_width(values: Sequence[float]) -> tuple[float | None, float | None]:
    """The mean, and half the width of its 95 % interval; None where there are no values, or only one."""
    return (fmean(values), half_width(values)) if values else (None, None)


def _told(mean: float | None, half: float | None) -> str:
    if mean is None:
        return "–"
    return f"{mean:.3g}" if half is None else f"{mean:.3g} ± {half:.1g}"

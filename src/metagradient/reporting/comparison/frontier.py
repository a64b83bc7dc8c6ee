"""Error against what was saved, for several rules on several data sets: a figure, of one run or of a whole sweep."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from hydra.experimental.callback import Callback
from matplotlib.figure import Figure
from omegaconf import DictConfig

from metagradient.files import replacing
from metagradient.reporting.figures.style import COLOURS, MARKERS, styled
from metagradient.reporting.runs.reading import read
from metagradient.reporting.table import print_lines

Curve = Sequence[tuple[float, float]]
NAMES = {"period": "fixed period", "target": "adaptive"}


@styled
def frontier(panels: Mapping[str, Mapping[str, Sequence[Curve]]]) -> Figure:
    """A panel for each data set; in it, of each rule, the curve of every run, pale, and their geometric mean, in full.

    Args:
        panels: data set -> rule -> curves, each a list of (gradients saved, error ratio), as many points in every
            run.
    """
    figure = Figure(figsize=(1.2 + 3.4 * len(panels), 3.4))
    for axes, (title, rules) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for (name, curves), colour, marker in zip(rules.items(), COLOURS, MARKERS, strict=False):
            runs = np.log(np.array([[p for p in curve if min(p) > 0] for curve in curves]))  # [runs, points, 2]
            if len(runs) > 1:
                for run in np.exp(runs):
                    axes.plot(*run.T, color=colour, alpha=0.25, linewidth=0.9)
            axes.plot(*np.exp(runs.mean(0)).T, marker, linestyle="-", color=colour, label=name)
        axes.set(xlabel="retraining's gradients / the method's", xscale="log", yscale="log", title=title)
        axes.axhline(1, color="#C8C8C8", linewidth=1.0)
        for ticks in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
            ticks(lambda value, _: f"{value:g}")
        axes.tick_params(axis="x", which="minor", labelsize=7)
    figure.axes[0].set_ylabel("error ratio")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=2, handlelength=1.6)
    return figure


class SweepFrontier(Callback):
    """A Hydra callback: after a sweep whose runs left a frontier.csv, `frontier.png` in its folder, a panel for each
    preset and a curve for each seed."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        panels: dict[str, dict[str, list[Curve]]] = {}
        for file in sorted(folder.glob("*/artifacts/frontier.csv"), key=lambda f: (len(str(f)), f)):  # 2 before 10
            panel = panels.setdefault(str(read(file.parents[1]).choices.get("experiment")), {})
            for rule, curve in _curves(file).items():
                panel.setdefault(NAMES[rule], []).append(curve)
        if panels:
            with replacing(folder / "frontier.png") as draft:
                frontier(panels).savefig(draft, format="png")
            print_lines([f"frontier: {folder / 'frontier.png'}"])


def _curves(file: Path) -> Mapping[str, Curve]:
    curves: dict[str, list[tuple[float, float]]] = {}
    with file.open(newline="", encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            curves.setdefault(row["rule"], []).append((float(row["saved"]), float(row["error_ratio"])))
    return curves

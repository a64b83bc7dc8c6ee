"""One self-contained HTML page of a comparison: a sortable table, every seed as a dot, the figures side by side.

Nothing is loaded from anywhere; it can be mailed, and read on a phone. What runs left in their folders may come from
anybody: the template escapes all of it, and the page's policy lets no script run but its own.
"""

from __future__ import annotations

import base64
import hashlib
import statistics
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from metagradient.errors import UserError
from metagradient.intervals import deviation
from metagradient.reporting.comparison.tables import COSTS, Comparison, Row, results
from metagradient.reporting.runs.foreign import content
from metagradient.reporting.runs.reading import Run
from metagradient.reporting.table import format_column

NOTE = (
    "Mean ± standard deviation over seeds; each dot is a run, the bar their mean. ▲ ▼ differs from the baseline: "
    "* p < .05, ** p < .01, *** p < .001; two-sided t-test, paired where the seeds are the same, else Welch's; "
    "corrected (Holm) over the rows of a column."
)
_LARGEST_PICTURE = 2**23  # bytes
_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 640, 276, 64, 44  # of the plot of quality against cost


def page(comparisons: Sequence[Comparison], title: str, damaged: Sequence[Run] = ()) -> str:
    """The page as text; runs that could not be read are named in it."""
    sections = [_section(comparison) for comparison in comparisons]
    left_out = [(str(run.directory), run.damage) for run in damaged]
    return _template().render(sections=sections, title=title, note=NOTE, left_out=left_out)


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("metagradient.reporting", "comparison"), autoescape=True, undefined=StrictUndefined
    )
    environment.filters["sha256"] = lambda text: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return environment.get_template("page.html.jinja")


def _section(comparison: Comparison) -> dict[str, Any]:
    """What the template shows of a comparison."""
    runs = [run for row in comparison.rows for run in row.runs]
    count = f"{len(runs)} finished runs, {len(comparison.rows)} settings"
    if comparison.lost:
        count += f", {len(comparison.lost)} without a result"
    if comparison.repeated:
        count += f", {comparison.repeated} left out: a newer run has their setting and seed"
    every = results(runs)
    return {
        "experiment": comparison.experiment,
        "count": count,
        "plot": _scatter(comparison),
        "settings": comparison.keys or ["setting"],
        "metrics": [{"key": metric, "name": name(metric)} for metric in comparison.metrics],
        "rows": _rows(comparison),
        "lost": [(run.directory.name, run.title, run.status, run.why) for run in comparison.lost],
        "figures": _figures(comparison),
        "all_metrics": [{"name": name(metric)} for metric in every],
        "every_run": _every_run(comparison, every),
    }


def _rows(comparison: Comparison) -> list[dict[str, Any]]:
    texts = {metric: numbers(comparison.rows, metric) for metric in comparison.metrics}
    return [
        {
            "labels": [str(value) for value in row.label.values()] or ["default"],
            "baseline": i == comparison.baseline and len(comparison.rows) > 1,
            "seeds": len(row.runs),
            "cells": [_cell(comparison, row, metric, texts[metric][i]) for metric in comparison.metrics],
        }
        for i, row in enumerate(comparison.rows)
    ]


def _cell(comparison: Comparison, row: Row, metric: str, text: str) -> dict[str, Any]:
    values = row.values(metric)
    if not values:
        return {"value": "", "text": "–", "title": "", "mark": "", "strip": None}
    test, title = row.tests.get(metric), ""
    if test is not None:
        title = f"difference {test.difference:+.4g}" + ("" if test.p is None else f", p = {test.p:.2g}")
    every = [value for other in comparison.rows for value in other.values(metric)]
    return {
        "value": f"{statistics.fmean(values):.9g}",
        "text": text,
        "title": title,
        "mark": "" if test is None else test.mark,
        "strip": None if metric in COSTS else _strip(values, min(every), max(every)),
    }


def _strip(values: Sequence[float], low: float, high: float) -> dict[str, Any] | None:
    """Every value as a dot on a line that all rows of the column share."""
    if high <= low:
        return None

    def x(value: float) -> float:
        return 4 + 112 * (value - low) / (high - low)

    return {"dots": [f"{x(value):.1f}" for value in values], "mean": f"{x(statistics.fmean(values)) - 1:.1f}"}


def _scatter(comparison: Comparison) -> dict[str, Any] | None:
    """The first metric against what it cost, where rows differ in both."""
    metric, cost = comparison.metrics[0] if comparison.metrics else "", COSTS[0]
    points = [
        (
            i,
            row,
            statistics.fmean(row.values(cost)),
            statistics.fmean(row.values(metric)),
            deviation(row.values(metric)),
        )
        for i, row in enumerate(comparison.rows)
        if row.values(metric) and row.values(cost)
    ]
    xs, ys = [p[2] for p in points], [e for p in points for e in (p[3] - p[4], p[3] + p[4])]
    if metric in COSTS or len(points) < 2 or len(points) > 40 or max(xs) <= min(xs) or max(ys) <= min(ys):
        return None

    def place(x: float, y: float) -> tuple[float, float]:
        across, up = (x - min(xs)) / (max(xs) - min(xs)), (y - min(ys)) / (max(ys) - min(ys))
        return _LEFT + 20 + across * (_WIDTH - _LEFT - 60), _HEIGHT - _BOTTOM - 12 - up * (_HEIGHT - _BOTTOM - 46)

    def tick(x: float, y: float, text: str, anchor: str) -> dict[str, str]:
        return {"x": f"{x:.1f}", "y": f"{y:.1f}", "text": text, "anchor": anchor}

    marks = []
    for i, row, x, y, sd in points:
        (px, py), (_, top), (_, low) = place(x, y), place(x, y + sd), place(x, y - sd)
        left = px < _WIDTH * 0.7
        marks.append(
            {
                "baseline": i == comparison.baseline,
                "title": f"{row.title}: {y:.4g} at {x:.4g}",
                "x": f"{px:.1f}",
                "y": f"{py:.1f}",
                "top": f"{top:.1f}",
                "low": f"{low:.1f}",
                "label_x": f"{px + (9 if left else -9):.1f}",
                "label_y": f"{py + (18 if i % 2 else -8):.1f}",
                "anchor": "start" if left else "end",
                "label": _short_title(comparison, i),
            }
        )
    ground = _HEIGHT - _BOTTOM
    ticks = [tick(place(x, ys[0])[0], ground + 16, f"{x:.4g}", "middle") for x in (min(xs), max(xs))]
    ticks += [tick(_LEFT - 6, place(xs[0], y)[1] + 4, f"{y:.3g}", "end") for y in (min(ys), max(ys))]
    ticks += [tick(_WIDTH - 12, _HEIGHT - 8, "cost in training runs", "end"), tick(4, 14, name(metric), "start")]
    axis = f"M{_LEFT} 26V{ground}H{_WIDTH - 12}"
    return {"width": _WIDTH, "height": _HEIGHT, "axis": axis, "ticks": ticks, "marks": marks}


def _short_title(comparison: Comparison, i: int) -> str:
    """A row's values where they fit beside a point, else the number of the row."""
    title = ", ".join(value for value in comparison.rows[i].label.values() if value != "–")
    return title if len(comparison.rows) <= 12 and len(title) <= 30 else f"row {i + 1}"


def _figures(comparison: Comparison) -> list[dict[str, Any]]:
    """The figures of the first seed of each row, those of one name side by side."""
    shown: dict[str, list[dict[str, str]]] = {}
    for row in comparison.rows:
        for path in sorted((row.runs[0].directory / "figures").glob("*.png")):
            caption = f"{row.title}, seed {row.runs[0].seed}"
            shown.setdefault(path.stem, []).append({"caption": caption, "data": _picture(path)})
    return [{"name": stem.replace("_", " "), "pictures": pictures} for stem, pictures in shown.items()]


def _picture(path: Path) -> str:
    """A PNG file in base64; "" where it is none, so that no other file of the reader's gets into a page by a link."""
    try:
        data = content(path, _LARGEST_PICTURE)
    except (UserError, FileNotFoundError):
        return ""
    return base64.b64encode(data).decode() if data.startswith(b"\x89PNG\r\n\x1a\n") else ""


def _every_run(comparison: Comparison, metrics: Sequence[str]) -> list[dict[str, Any]]:
    """All results of all runs."""
    runs = [(row, run) for row in comparison.rows for run in row.runs]
    columns = [format_column([run.metrics.get(metric) for _, run in runs]) for metric in metrics]
    return [
        {
            "title": row.title,
            "place": str(run.directory),
            "seed": run.seed,
            "cells": [
                {"value": run.metrics.get(metric, ""), "text": column[i], "title": "", "mark": "", "strip": None}
                for metric, column in zip(metrics, columns, strict=True)
            ],
        }
        for i, (row, run) in enumerate(runs)
    ]


def numbers(rows: Sequence[Row], metric: str) -> list[str]:
    """`mean ± sd` of each row, with the same decimals all down the column; the sd only over several seeds."""
    means = [statistics.fmean(row.values(metric)) if row.values(metric) else None for row in rows]
    sds = [deviation(row.values(metric)) if len(row.values(metric)) > 1 else None for row in rows]
    texts = format_column([*means, *sds])
    pairs = zip(texts[: len(rows)], texts[len(rows) :], sds, strict=True)
    return [mean if sd is None else f"{mean} ± {spread}" for mean, spread, sd in pairs]


def name(metric: str) -> str:
    """`result/test_accuracy` as a column's heading."""
    return {"cost/training_runs": "training runs", "cost/seconds": "seconds"}.get(
        metric, metric.removeprefix("result/").replace("_", " ")
    )

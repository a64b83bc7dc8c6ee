"""Figures of the time and memory of metagradients."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from metagradient.reporting.figures.style import BLACK, BLUE, COLOURS, DASHED, GREY, MARKERS, styled

_OTHERS = ("naive", "higher", "torch")  # how contenders that are not ours begin


@styled
def cost_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Time (in plain trainings) and peak memory against the number of steps, one line per checkpoint plan.

    Args:
        rows: mappings with model, steps, plan, time_ratio, memory_mib; a value that was not measured is None or
            nan. Each model gets its own pair of panels.
    """
    models = list(dict.fromkeys(row["model"] for row in rows))
    plans = list(dict.fromkeys(row["plan"] for row in rows))
    figure = Figure(figsize=(9.2, 0.4 + 3.0 * len(models)))
    grid = figure.subplots(len(models), 2, squeeze=False, sharex="row")
    for (time_axes, memory_axes), model in zip(grid, models, strict=True):
        for plan, look in _plan_looks(plans).items():
            points = sorted((r for r in rows if (r["model"], r["plan"]) == (model, plan)), key=lambda r: r["steps"])
            steps = [row["steps"] for row in points]
            for axes, key in ((time_axes, "time_ratio"), (memory_axes, "memory_mib")):
                axes.plot(steps, [np.nan if row[key] is None else row[key] for row in points], label=plan, **look)
        time_axes.axhline(1, color=GREY, linewidth=1.0, linestyle=DASHED)
        time_axes.set(title=f"{model}: time", ylabel="plain trainings", xscale="log")
        time_axes.set_ylim(bottom=0)
        memory_axes.set(title=f"{model}: peak memory", ylabel="MiB", xscale="log", yscale="log")
        memory_axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}")
        ticks = sorted({row["steps"] for row in rows if row["model"] == model})
        for axes in (time_axes, memory_axes):
            axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
            axes.minorticks_off()
    for axes in grid[-1]:
        axes.set_xlabel("training steps T")
    handles = {h.get_label(): h for axes in grid.flat for h in axes.get_lines() if h.get_label() in plans}
    figure.legend(list(handles.values()), list(map(str, handles)), loc="outside right upper", handlelength=1.8)
    return figure


def _plan_looks(plans: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Our plans in colour, `auto` as a broad band behind the plan it picked, other packages dashed in grey."""
    looks: dict[str, dict[str, Any]] = {}
    ours, others = iter(COLOURS * 3), iter((BLACK, GREY, "#9A9A9A") * 9)
    for plan, marker in zip(plans, MARKERS * 9, strict=False):
        if plan == "auto":
            looks[plan] = {"color": BLUE, "alpha": 0.25, "linewidth": 7, "solid_capstyle": "round", "zorder": 1.5}
        elif plan.startswith(_OTHERS):
            looks[plan] = {"color": next(others), "marker": marker, "linestyle": DASHED, "linewidth": 1.4}
        else:
            looks[plan] = {"color": next(ours), "marker": marker}
    return looks

"""Figures of how far a model is from the one it should be."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from metagradient.reporting.figures.style import BLUE, COLOURS, GREY, MARKERS, RED, styled


@styled
def paired_distances(before: Sequence[float], after: Sequence[float], names: tuple[str, str]) -> Figure:
    """Two distances of each request, joined by a line, on a logarithmic axis; one that is 0 is not drawn."""
    figure = Figure(figsize=(6.4, 3.2))
    axes = figure.subplots()
    requests = np.arange(len(before))
    axes.vlines(requests, np.where(np.array(after) > 0, after, before), before, color="#C8C8C8", linewidth=1.4)
    for values, name, colour, marker in zip((before, after), names, (RED, BLUE), "os", strict=True):
        positive = [value if value > 0 else np.nan for value in values]
        axes.plot(requests, positive, marker, color=colour, label=name)
    axes.set(xlabel="request", ylabel="distance to the retrained model", yscale="log")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=2, handlelength=1.2)
    return figure


@styled
def path_distances(
    steps: Sequence[int], series: Mapping[str, Sequence[float]], xlabel: str = "training step"
) -> Figure:
    """Named distances to the retrained run's parameters at every step, on a logarithmic axis."""
    figure = Figure(figsize=(6.4, 3.2))
    axes = figure.subplots()
    for (name, values), colour in zip(series.items(), (RED, *COLOURS), strict=False):
        axes.plot(steps, [value if value > 0 else np.nan for value in values], color=colour, label=name)
    axes.set(xlabel=xlabel, ylabel="distance to the retrained model", yscale="log")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=2, handlelength=1.4)
    return figure


@styled
def error_against_speed(points: Mapping[str, Sequence[tuple[float, float]]], group: str = "") -> Figure:
    """Error ratio against speed-up of every method: its runs pale, their median in full.

    Args:
        points: method -> (speed-up, error ratio) of each run.
        group: what the colours stand for.
    """
    figure = Figure(figsize=(6.8, 4.0))
    axes = figure.subplots()
    for i, (name, runs) in enumerate(points.items()):
        colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
        x, y = np.array(runs, dtype=float).T
        axes.plot(x, y, marker, color=colour, alpha=0.3, markersize=4, linewidth=0)
        axes.plot([np.median(x)], [np.median(y)], marker, color=colour, markersize=9, label=name, linewidth=0)
    axes.axhline(1, color=GREY, linewidth=1.0)
    axes.axvline(1, color=GREY, linewidth=1.0)
    axes.set(xlabel="speed-up over retraining", ylabel="error ratio", xscale="log", yscale="log")
    for ticks in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        ticks(lambda value, _: f"{value:g}")
    if group:
        axes.set_title(group)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", handlelength=1.0)
    return figure

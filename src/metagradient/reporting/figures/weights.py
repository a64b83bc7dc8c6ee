"""Figures of a metagradient descent on data: the learned weights, and objective and accuracy by metastep."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from metagradient.reporting.figures.style import BLACK, BLUE, COLOURS, DASHED, GREY, RED, note, styled


@styled
def weight_histogram(weights: ArrayLike, wrong: ArrayLike | None = None, threshold: float | None = None) -> Figure:
    """Learned weights (or counts) `[n]` of the clean examples against those of the corrupted ones.

    Args:
        weights: one per training example.
        wrong: `[n]` booleans, true where the label is known to be wrong; None if that is not known.
        threshold: examples from here up were kept.
    """
    values = np.asarray(weights, dtype=float)
    figure = Figure(figsize=(6.4, 3.2))
    axes = figure.subplots()
    parts = [("", np.ones(len(values), dtype=bool), BLUE)]
    if wrong is not None:
        bad = np.asarray(wrong, dtype=bool)
        parts = [("label correct", ~bad, BLUE), ("label wrong", bad, RED)]
    counts = bool(np.all(values == np.round(values)))
    for i, (name, part, colour) in enumerate(parts):
        kept = "" if threshold is None or not part.any() else f", {np.mean(values[part] >= threshold):.0%} kept"
        look: dict[str, Any] = {
            "label": f"{name} ({part.sum():,}{kept})",
            "facecolor": (colour, 0.35),
            "edgecolor": colour,
        }
        if counts:
            width = 0.8 / len(parts)
            numbers, heights = np.unique(values[part], return_counts=True)
            axes.bar(numbers + width * (i - (len(parts) - 1) / 2), heights, width, linewidth=1.6, **look)
        else:
            axes.hist(values[part], _bins(values), histtype="stepfilled", linewidth=1.6, **look)
    if wrong is not None:
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=2, handlelength=1.2)
    if threshold is not None:
        edge = np.ceil(threshold) - 0.5 if counts else threshold
        axes.set_ylim(top=1.12 * axes.get_ylim()[1])  # room for the word
        axes.axvline(edge, color=BLACK, linewidth=1.2, linestyle=DASHED)
        note(axes, "kept →", (edge, 1), ("data", "axes fraction"), (4, -2), va="top")
    axes.set(xlabel="learned count" if counts else "learned weight", ylabel="training examples")
    if counts:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.grid(visible=False, axis="x")
    return figure


@styled
def metastep_curves(
    steps: ArrayLike,
    objective: Mapping[str, ArrayLike],
    accuracy: Mapping[str, ArrayLike],
    references: Mapping[str, float] | None = None,
    chosen: int | None = None,
) -> Figure:
    """Objective (left) and accuracy (right) against the metastep.

    Args:
        steps: the metasteps.
        objective: curves of losses, by name.
        accuracy: curves of accuracies, by name.
        references: labelled levels in the accuracy panel, such as all data or oracle.
        chosen: the metastep that was kept, marked in both panels.
    """
    figure = Figure(figsize=(9.2, 3.4))
    left, right = figure.subplots(1, 2)
    for axes, series, name in ((left, objective, "objective"), (right, accuracy, "accuracy")):
        levels = references if axes is right and references else {}
        _curves(axes, steps, series, name if len(series) != 1 else next(iter(series)), levels, "metastep")
    if chosen is not None:
        for axes in (left, right):
            axes.axvline(chosen, color=GREY, linewidth=1.0, linestyle=(0, (1, 2)))
        early = chosen <= np.mean(left.get_xlim())
        note(
            left,
            "chosen",
            (chosen, 1),
            ("data", "axes fraction"),
            (3 if early else -3, -2),
            "top",
            ha="left" if early else "right",
        )
    return figure


def _curves(
    axes: Axes,
    steps: ArrayLike,
    series: Mapping[str, ArrayLike],
    ylabel: str,
    references: Mapping[str, float],
    xlabel: str,
) -> None:
    x = np.asarray(steps, dtype=float)
    marker = "o" if len(x) <= 40 else None
    for (name, values), colour in zip(series.items(), COLOURS * 3, strict=False):
        axes.plot(x, np.asarray(values, dtype=float), color=colour, marker=marker, label=name)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    if len(series) > 1:
        axes.legend(handlelength=1.4)
    for level in references.values():
        axes.axhline(level, color=GREY, linewidth=1.0, linestyle=DASHED)
    low, high = axes.get_ylim()
    height = -np.inf
    for name, level in sorted(references.items(), key=lambda item: item[1]):
        height = max(level, height + 0.07 * (high - low))  # labels of close levels are pushed apart
        note(axes, f"{name} {level:.3g}", (1, height), ("axes fraction", "data"), (4, 0), va="center")


def _bins(values: np.ndarray) -> list[float]:
    low, high = (values.min(), values.max()) if len(values) else (0.0, 1.0)
    return np.linspace(low, high if high > low else low + 1.0, 41).tolist()

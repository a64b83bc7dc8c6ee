"""Figures of attribution: what predicts retrainings, at what price, and who the top examples are."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from metagradient.reporting.figures.images import displayable
from metagradient.reporting.figures.style import BLACK, COLOURS, CRIMSON, DASHED, GREY, MARKERS, styled


@styled
def lds_bars(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """The linear datamodeling score with its interval: one group of bars for each share removed.

    Args:
        rows: mappings with method, drop, lds, low, high.
    """
    methods = list(dict.fromkeys(row["method"] for row in rows))
    drops = sorted({row["drop"] for row in rows})
    figure = Figure(figsize=(2.4 + 0.34 * len(methods) * len(drops) + 1.6, 3.4))
    axes = figure.subplots()
    width = 0.84 / len(methods)
    for i, method in enumerate(methods):
        own = [next(r for r in rows if (r["method"], r["drop"]) == (method, drop)) for drop in drops]
        places = np.arange(len(drops)) + width * (i - (len(methods) - 1) / 2)
        values = np.array([row["lds"] for row in own])
        spread = np.abs([[row["lds"] - row["low"] for row in own], [row["high"] - row["lds"] for row in own]])
        colour = COLOURS[i % len(COLOURS)]
        axes.bar(places, values, 0.9 * width, color=colour, label=method)
        axes.errorbar(places, values, yerr=spread, fmt="none", ecolor=BLACK, elinewidth=1.0, capsize=2)
    axes.set_xticks(range(len(drops)), [f"{100 * drop:g}% removed" for drop in drops])
    axes.set(ylabel="LDS (rank correlation)", ylim=(min(0.0, axes.get_ylim()[0]), 1.0))
    axes.grid(visible=False, axis="x")
    figure.legend(loc="outside right upper")
    return figure


@styled
def pareto_figure(rows: Sequence[Mapping[str, Any]], reference: Mapping[str, float] | None = None) -> Figure:
    """LDS against the seconds of compression and against the bytes kept of an example; a line for each compressor.

    Args:
        rows: mappings with compressor, k, seconds, bytes, lds.
        reference: levels that are no point of the trade, such as the uncompressed influence function.
    """
    names = list(dict.fromkeys(row["compressor"] for row in rows))
    figure = Figure(figsize=(9.6, 3.8))
    panels = figure.subplots(1, 2, sharey=True)
    for i, name in enumerate(names):
        own = sorted((row for row in rows if row["compressor"] == name), key=lambda row: row["k"])
        look: dict[str, Any] = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)], "label": name}
        for axes, key in zip(panels, ("seconds", "bytes"), strict=True):
            axes.plot([row[key] for row in own], [row["lds"] for row in own], **look)
    for axes, label in zip(
        panels, ("seconds to compress all training gradients", "bytes kept of an example"), strict=True
    ):
        axes.set_xscale("log", base=10 if axes is panels[0] else 2)
        axes.set_xlabel(label)
        for name, level in (reference or {}).items():
            axes.axhline(level, color=GREY, linewidth=1.0, linestyle=DASHED)
            axes.annotate(name, (0.01, level), (0, 3), xycoords=("axes fraction", "data"), textcoords="offset points",
                          color=GREY, fontsize=9)  # fmt: skip
    panels[1].xaxis.set_major_formatter(lambda value, _: f"{value:g}" if value < 1024 else f"{value / 1024:g} KiB")
    panels[0].set_ylabel("LDS")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper")
    return figure


@styled
def inspection_figure(curves: Mapping[str, ArrayLike], share_wrong: float) -> Figure:
    """The share of wrong labels found against the share of examples inspected, most suspicious first."""
    figure = Figure(figsize=(9.0, 0.4 + max(3.6, 0.24 * len(curves))))
    axes = figure.subplots()
    for i, (name, curve) in enumerate(curves.items()):
        found = np.asarray(curve, dtype=float)
        look: dict[str, Any] = {"color": COLOURS[i % len(COLOURS)], "linestyle": "-" if i < len(COLOURS) else ":"}
        axes.plot(np.linspace(0, 1, len(found)), found, label=name, **look)
    axes.plot([0, share_wrong, 1], [0, 1, 1], color=GREY, linewidth=1.0, linestyle=DASHED, label="perfect")
    axes.set(xlabel="share of the examples inspected", ylabel="share of the wrong labels found", ylim=(0, 1.03))
    figure.legend(loc="outside right upper")
    return figure


@styled
def top_examples_figure(
    queries: ArrayLike, captions: Sequence[str], examples: ArrayLike, labels: Sequence[Sequence[str]], wrong: Any = None
) -> Figure:
    """A row for each query: the query, its most helpful training examples, and its most harmful ones.

    Args:
        queries: images `[q, C, H, W]`.
        captions: their labels.
        examples: images `[q, m, C, H, W]`, the first half helpful, the second harmful.
        labels: theirs.
        wrong: `[q, m]` booleans, examples whose caption is to be red.
    """
    pictures, shown = np.asarray(queries, dtype=float), np.asarray(examples, dtype=float)
    rows, columns = shown.shape[:2]
    flags = np.zeros((rows, columns), bool) if wrong is None else np.asarray(wrong, bool)
    # One pair of axes for all pictures: as many axes as pictures would take longer to lay out than to compute.
    places = [0.0, *(1.4 + j + (0.4 if j >= columns // 2 else 0.0) for j in range(columns))]
    figure = Figure(figsize=(0.85 * (places[-1] + 1.2), 1.1 * rows + 0.4))
    axes = figure.subplots()
    axes.set_axis_off()
    for row in range(rows):
        for place, x, text, bad in zip(
            places, [pictures[row], *shown[row]], [captions[row], *labels[row]], [False, *flags[row]], strict=True
        ):
            top = 1.3 * row
            axes.imshow(
                displayable(x), cmap="gray_r" if len(x) == 1 else None, vmin=0, vmax=1,
                extent=(place, place + 0.92, top + 0.92, top),
            )  # fmt: skip
            axes.text(place + 0.46, top - 0.05, text, ha="center", fontsize=9, color=CRIMSON if bad else BLACK)
    axes.set(xlim=(-0.1, places[-1] + 1.1), ylim=(1.3 * rows, -0.9), aspect="equal")
    for place, text in ((0.0, "query"), (1.4, "most helpful"), (1.8 + columns // 2, "most harmful")):
        axes.text(place, -0.55, text, fontsize=11)
    return figure

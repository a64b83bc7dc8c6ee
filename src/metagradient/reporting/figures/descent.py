"""Figures of smoothness, poisoning and schedule search, in the style of `figures`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from metagradient.reporting.figures.style import BLACK, COLOURS, GREY, MARKERS, styled


@styled
def smoothness_figure(rows: Sequence[Mapping[str, Any]], test: str = "test accuracy") -> Figure:
    """Metasmoothness (with its interval) against test accuracy, one labelled point for each variant.

    Args:
        rows: mappings with variant, of, metasmoothness, low, high and `test`; one panel for each `of`. The
            first variant is the one that the others edit.
        test: what models are measured by.
    """
    kinds = list(dict.fromkeys(row["of"] for row in rows))
    variants = list(dict.fromkeys(row["variant"] for row in rows))
    figure = Figure(figsize=(2.6 + 4.4 * len(kinds), 0.6 + max(3.4, 0.3 * len(variants))))
    grid = figure.subplots(1, len(kinds), squeeze=False)[0]
    for axes, kind in zip(grid, kinds, strict=True):
        points = [row for row in rows if row["of"] == kind and row[test] is not None]
        for row in points:
            look = variants.index(row["variant"])
            colour = BLACK if look == 0 else COLOURS[(look - 1) % len(COLOURS)]
            value, low, high = (float(row[key]) for key in ("metasmoothness", "low", "high"))
            spread = None if np.isnan(low) else [[value - low], [high - value]]
            axes.errorbar(
                row[test], value, yerr=spread, color=colour, marker=MARKERS[look % len(MARKERS)],
                markersize=7, elinewidth=1.2, capsize=2.5, linestyle="none", label=row["variant"],
            )  # fmt: skip
        axes.axhline(0, color=GREY, linewidth=1.0)
        axes.set(title=f"in {kind}", xlabel=test, ylabel="metasmoothness")
        axes.margins(0.08)
    handles = {h.get_label(): h for axes in grid for h in axes.containers}
    figure.legend(list(handles.values()), list(map(str, handles)), loc="outside right upper")
    return figure


@styled
def drops_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Accuracy lost against the poisoned share: one line for each attack, one panel for each kind of victims.

    Args:
        rows: mappings with share, attack, victims, drop, `sd of drop` (over fresh seeds).
    """
    panels = list(dict.fromkeys(row["victims"] for row in rows))
    attacks = list(dict.fromkeys(row["attack"] for row in rows))
    shares = sorted({row["share"] for row in rows})
    figure = Figure(figsize=(2.4 + 3.0 * len(panels), 4.0))
    grid = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axes, victims in zip(grid, panels, strict=True):
        for i, attack in enumerate(attacks):
            points = {row["share"]: row for row in rows if (row["victims"], row["attack"]) == (victims, attack)}
            x = [100 * share * (1 + 0.04 * (i - (len(attacks) - 1) / 2)) for share in shares]  # side by side
            axes.errorbar(
                x, [points[share]["drop"] for share in shares], [points[share]["sd of drop"] for share in shares],
                color=COLOURS[i % len(COLOURS)], marker=MARKERS[i % len(MARKERS)], capsize=2.5, label=attack,
                linestyle="-" if len(shares) > 1 else "none",
            )  # fmt: skip
        axes.axhline(0, color=GREY, linewidth=1.0)
        axes.set(title="victims: " + victims, xlabel="training images replaced, %")
        axes.set_xticks([100 * share for share in shares], [f"{100 * share:g}" for share in shares])
        axes.set_xlim(0.6 * 100 * shares[0], 1.25 * 100 * shares[-1])
    grid[0].set_ylabel("test accuracy lost")
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    return figure


@styled
def schedules_figure(path: Sequence[Sequence[float]]) -> Figure:
    """The learning rate of every step, one line for each metastep, from dark (first) to bright (last)."""
    figure = Figure(figsize=(6.4, 3.6))
    axes = figure.subplots()
    colours = colormaps["viridis"]
    for metastep, rates in enumerate(path):
        axes.plot(rates, color=colours(0.95 * metastep / max(len(path) - 1, 1)), linewidth=1.2)
    axes.set(xlabel="training step", ylabel="learning rate", yscale="log")
    scale = ScalarMappable(Normalize(0, max(len(path) - 1, 1) / 0.95), colours)
    figure.colorbar(
        scale,
        ax=axes,
        label="metastep",
        boundaries=np.linspace(0, max(len(path) - 1, 1), 100),
        ticks=MaxNLocator(6, integer=True),
    )
    return figure


@styled
def pair_figure(schedules: Mapping[str, Sequence[float]]) -> Figure:
    """Named schedules, learning rate against step, linear and logarithmic."""
    figure = Figure(figsize=(9.2, 3.4))
    for axes, scale in zip(figure.subplots(1, 2), ("linear", "log"), strict=True):
        for (name, rates), colour in zip(schedules.items(), COLOURS, strict=False):
            shown = np.asarray(rates, dtype=float)
            axes.plot(np.where(shown > 0, shown, np.nan), color=colour, label=name)
        axes.set(xlabel="training step", ylabel="learning rate", yscale=scale)
    axes.legend(handlelength=1.4)
    return figure


@styled
def compute_figure(ways: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> Figure:
    """Test loss of what each searcher would have chosen so far, against the training runs it had spent."""
    figure = Figure(figsize=(6.4, 3.8))
    axes = figure.subplots()
    for (name, (spent, losses)), colour in zip(ways.items(), COLOURS, strict=False):
        shown = np.where(np.isfinite(losses), losses, np.nan)
        axes.step(spent, shown, where="post", color=colour, label=name)
    axes.set(xlabel="training runs spent", ylabel="test loss of the choice so far", yscale="log")
    axes.yaxis.set_minor_formatter(lambda value, _: f"{value:.2g}")
    axes.legend(handlelength=1.4)
    return figure

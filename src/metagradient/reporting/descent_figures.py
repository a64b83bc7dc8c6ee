"""Figures of smoothness, poisoning and schedule search, in the style of `figures`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from metagradient.reporting.figures import BLACK, COLOURS, GREY, MARKERS, styled


@styled
def smoothness_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Metasmoothness (with its interval) against test accuracy, one labelled point for each variant.

    Args:
        rows: mappings with variant, of, metasmoothness, low, high, test accuracy; one panel for each `of`.
            The first variant is the one that the others edit.
    """
    kinds = list(dict.fromkeys(row["of"] for row in rows))
    variants = list(dict.fromkeys(row["variant"] for row in rows))
    figure = Figure(figsize=(2.6 + 4.4 * len(kinds), 0.6 + max(3.4, 0.3 * len(variants))))
    grid = figure.subplots(1, len(kinds), squeeze=False)[0]
    for axes, kind in zip(grid, kinds, strict=True):
        points = [row for row in rows if row["of"] == kind and row["test accuracy"] is not None]
        for row in points:
            look = variants.index(row["variant"])
            colour = BLACK if look == 0 else COLOURS[(look - 1) % len(COLOURS)]
            value, low, high = (float(row[key]) for key in ("metasmoothness", "low", "high"))
            spread = None if np.isnan(low) else [[value - low], [high - value]]
            axes.errorbar(
                row["test accuracy"], value, yerr=spread, color=colour, marker=MARKERS[look % len(MARKERS)],
                markersize=7, elinewidth=1.2, capsize=2.5, linestyle="none", label=row["variant"],
            )  # fmt: skip
        axes.axhline(0, color=GREY, linewidth=1.0)
        axes.set(title=f"in {kind}", xlabel="test accuracy", ylabel="metasmoothness")
        axes.margins(0.08)
    handles = {h.get_label(): h for axes in grid for h in axes.containers}
    figure.legend(list(handles.values()), list(map(str, handles)), loc="outside right upper")
    return figure

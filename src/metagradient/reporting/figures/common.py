"""Figures of a run: one quiet style, colours that colour-blind readers can tell apart (Okabe and Ito), readable small.

Each function takes plain sequences, arrays or CPU tensors and returns a `matplotlib.figure.Figure` for
`Record.figure`. No pyplot: no window, no global state.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any, ParamSpec

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

BLUE, ORANGE, GREEN, RED, PURPLE, SKY, BLACK = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#222222",
)  # fmt: skip
COLOURS = (BLUE, RED, GREEN, PURPLE, ORANGE, SKY, BLACK)
MARKERS = "osD^vPX*"
GREY, CRIMSON = "#6E6E6E", "#C8102E"
DASHED = (0, (4, 3))
_OTHERS = ("naive", "higher", "torch")
P = ParamSpec("P")

STYLE: Any = {
    "figure.dpi": 160,
    "savefig.dpi": 160,
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.8,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": BLACK,
    "ytick.labelcolor": BLACK,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "legend.frameon": False,
}


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Decorate a function that draws a figure: it draws and is laid out in the project's style."""

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with matplotlib.rc_context(STYLE):
            figure = draw(*args, **kwargs)
            figure.draw_without_rendering()  # lays it out under this style, whatever holds when it is saved
            return figure

    return drawn


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
        _note(axes, "kept →", (edge, 1), ("data", "axes fraction"), (4, -2), va="top")
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
        _note(
            left,
            "chosen",
            (chosen, 1),
            ("data", "axes fraction"),
            (3 if early else -3, -2),
            "top",
            ha="left" if early else "right",
        )
    return figure


@styled
def image_grid(
    images: ArrayLike,
    captions: Sequence[str],
    wrong: Sequence[bool] | None = None,
    columns: int = 6,
    title: str | None = None,
) -> Figure:
    """Images `[m, C, H, W]` (or `[m, H, W]`) with a caption each, such as `given → true label`; wrong ones in red.

    An image whose values leave [0, 1] (normalised data) is stretched to that range.
    """
    pictures = np.asarray(images, dtype=float)
    if pictures.ndim == 3:
        pictures = pictures[:, None]
    if len(pictures) != len(captions):
        raise ValueError(f"{len(pictures)} images but {len(captions)} captions")
    if any(len(caption) > 12 for caption in captions):
        captions = [caption.replace(" → ", "\n→ ") for caption in captions]
    lines = max((caption.count("\n") for caption in captions), default=0) + 1
    columns = max(1, min(columns, len(pictures)))
    rows = max(1, -(-len(pictures) // columns))
    figure = Figure(figsize=(1.25 * columns, (1.3 + 0.2 * lines) * rows + (0.3 if title else 0.0)))
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in grid:
        axes.set_axis_off()
    flags = wrong if wrong is not None else [False] * len(captions)
    for axes, picture, caption, bad in zip(grid, pictures, captions, flags, strict=False):
        axes.imshow(displayable(picture), cmap="gray_r" if len(picture) == 1 else None, vmin=0, vmax=1)
        axes.set_title(caption, loc="center", fontsize=10, pad=3, color=CRIMSON if bad else BLACK)
    return figure


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
        _note(axes, f"{name} {level:.3g}", (1, height), ("axes fraction", "data"), (4, 0), va="center")


def _note(
    axes: Axes,
    text: str,
    at: tuple[float, float],
    units: tuple[str, str],
    shift: tuple[int, int],
    va: str,
    ha: str = "left",
) -> None:
    look: dict[str, Any] = {"textcoords": "offset points", "va": va, "ha": ha, "color": GREY, "fontsize": 9}
    axes.annotate(text, at, shift, xycoords=units, **look)


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


def _bins(values: np.ndarray) -> list[float]:
    low, high = (values.min(), values.max()) if len(values) else (0.0, 1.0)
    return np.linspace(low, high if high > low else low + 1.0, 41).tolist()


def displayable(picture: np.ndarray) -> np.ndarray:
    low, high = picture.min(), picture.max()
    if low < 0 or high > 1:
        picture = (picture - low) / (high - low or 1.0)
    return picture[0] if len(picture) == 1 else picture.transpose(1, 2, 0)

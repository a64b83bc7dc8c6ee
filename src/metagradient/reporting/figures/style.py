"""Figures of a run: one quiet style, colours that colour-blind readers can tell apart (Okabe and Ito), readable small.

Each function of this package takes plain sequences, arrays or CPU tensors and returns a `matplotlib.figure.Figure` for
`Record.figure`. No pyplot: no window, no global state.
"""

import warnings
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, RED, PURPLE, SKY, BLACK = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#222222",
)  # fmt: skip
COLOURS = (BLUE, RED, GREEN, PURPLE, ORANGE, SKY, BLACK)
MARKERS = "osD^vPX*"
GREY, CRIMSON = "#6E6E6E", "#C8102E"
DASHED = (0, (4, 3))
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
        with matplotlib.rc_context(STYLE), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # shown as boxes; pages have all
            figure = draw(*args, **kwargs)
            figure.draw_without_rendering()  # lays it out under this style, whatever holds when it is saved
            return figure

    return drawn


def note(
    axes: Axes,
    text: str,
    at: tuple[float, float],
    units: tuple[str, str],
    shift: tuple[int, int],
    va: str,
    ha: str = "left",
) -> None:
    """Write a short remark at a point of the axes, `shift` points away from it."""
    look: dict[str, Any] = {"textcoords": "offset points", "va": va, "ha": ha, "color": GREY, "fontsize": 9}
    axes.annotate(text, at, shift, xycoords=units, **look)

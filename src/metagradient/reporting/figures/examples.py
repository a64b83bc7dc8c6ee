"""Examples that are no pictures: texts, and rows of tables in words."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from textwrap import wrap
from typing import Any

from matplotlib.figure import Figure

from metagradient.reporting.figures.style import BLACK, CRIMSON, styled

_WIDTH, _LINES = 96, 3  # characters of a line, lines of an example


@dataclass(frozen=True)
class Passage:
    """A heading and the examples below it; `wrong`: those whose caption is to be red."""

    heading: str
    captions: Sequence[str]
    texts: Sequence[str]
    wrong: Sequence[bool] = field(default=())


@styled
def text_figure(passages: Sequence[Passage], title: str | None = None) -> Figure:
    """Each passage's examples below one another: the caption, and beside it the text, cut after three lines."""
    lines: list[tuple[float, str, dict[str, Any]]] = []  # where it begins, what it says, how it looks
    places: list[int] = []
    place = 0
    for passage in passages:
        for text in _cut(passage.heading, _WIDTH + 16):
            lines.append((0.0, text, {"fontweight": "bold"}))
            places.append(place)
            place += 1
        flags = passage.wrong or [False] * len(passage.texts)
        for caption, text, bad in zip(passage.captions, passage.texts, flags, strict=True):
            lines.append((0.02, caption, {"color": CRIMSON if bad else BLACK}))
            places.append(place)
            for part in _cut(text, _WIDTH) or [""]:
                lines.append((0.18, part, {}))
                places.append(place)
                place += 1
    figure = Figure(figsize=(9.0, 0.21 * (place + 1) + (0.35 if title else 0.0)))
    axes = figure.subplots()
    axes.set_axis_off()
    axes.set(xlim=(0, 1), ylim=(place, -0.5))
    for at, (left, text, look) in zip(places, lines, strict=True):
        axes.text(left, at, text, fontsize=9, va="center", parse_math=False, **look)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    return figure


def _cut(text: str, width: int) -> list[str]:
    lines = wrap(" ".join(text.split()), width)
    return lines if len(lines) <= _LINES else [*lines[: _LINES - 1], lines[_LINES - 1][: width - 2] + " …"]

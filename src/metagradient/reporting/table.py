"""Tables for people: numbers of a column share their decimals and are aligned, and no word is broken to fit."""

import math
import sys
from collections.abc import Sequence
from typing import Any, Literal

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from metagradient.escapes import visible

Row = Sequence[Any]


def print_table(title: str, columns: Sequence[str], rows: Sequence[Row]) -> None:
    """Print rows of results on stdout, one column per name; text is aligned left, numbers right.

    What is too wide for the terminal is folded between words, then printed in blocks of columns below each other, each
    of which begins with the first column.
    """
    out = _stdout()
    out.print(Text(visible(title), style="bold"), soft_wrap=True)
    for block in tables(columns, rows, out.width):
        out.print(block)


def print_end(title: str, lines: Sequence[str]) -> None:
    """Print a run's title on stdout, and what is to be said last, a line each."""
    out = _stdout()
    out.print(Text(visible(title), style="bold"), soft_wrap=True)
    for line in lines:
        out.print(Text(visible(line)), soft_wrap=True)


def print_lines(lines: Sequence[str]) -> None:
    """Print lines of text on stdout, unfolded."""
    out = _stdout()
    for line in lines:
        out.print(Text(visible(line), style="dim"), soft_wrap=True)


def _stdout() -> Console:
    return Console(width=None if sys.stdout.isatty() else 200)  # a pipe has no width to fold tables to


def tables(columns: Sequence[str], rows: Sequence[Row], width: int) -> list[Table]:
    """The rich tables of `print_table` on `width` characters."""
    _check(columns, rows)
    cells = [
        [visible(text) for text in (name, *format_column([row[i] for row in rows]))] for i, name in enumerate(columns)
    ]
    least = [max((cell_len(word) for cell in column for word in cell.split()), default=1) for column in cells]
    numeric = [any(_is_number(row[i]) for row in rows) for i in range(len(columns))]
    made = []
    for block in _blocks(least, width):
        table = Table(box=box.SIMPLE_HEAD)
        widths = _widths([max(map(cell_len, cells[i])) for i in block], [least[i] for i in block], width)
        for i, characters in zip(block, widths, strict=True):
            justify: Literal["left", "right"] = "right" if numeric[i] else "left"
            table.add_column(Text(cells[i][0]), justify=justify, width=characters)
        for row in zip(*(cells[i][1:] for i in block), strict=True):
            table.add_row(*map(Text, row))
        made.append(table)
    return made


def _room(width: int, columns: int) -> int:
    """Characters for the text of so many columns, without their padding and the lines between them."""
    return width - 3 * columns - 1


def _blocks(least: Sequence[int], width: int) -> list[list[int]]:
    """The columns of each block: as many as fit at their least widths, beside the first one."""
    blocks = [[0]] if least else []
    for i in range(1, len(least)):
        block = [*blocks[-1], i]
        if len(block) > 2 and sum(least[j] for j in block) > _room(width, len(block)):
            blocks.append([0, i])
        else:
            blocks[-1] = block
    return blocks


def _widths(most: Sequence[int], least: Sequence[int], width: int) -> list[int]:
    """Widths of a block's columns: what their cells take, the widest ones narrowed until all fit or none can be."""
    widths = list(most)
    while sum(widths) > _room(width, len(widths)):
        wide = [i for i in range(len(widths)) if widths[i] > least[i]]
        if not wide:
            break
        widths[max(wide, key=widths.__getitem__)] -= 1
    return [max(1, characters) for characters in widths]


def format_column(values: Sequence[Any]) -> list[str]:
    """Text of each value: floats get about four significant digits, with equal decimals down the column.

    Where sizes differ so much that equal decimals would hide the small ones, each has four digits of its own.
    """
    sizes = [abs(float(v)) for v in values if _is_number(v) and math.isfinite(v)]
    largest, smallest = max(sizes, default=0.0), min((size for size in sizes if size), default=0.0)
    if largest and (largest >= 1e7 or largest < 1e-3):
        return [_text(v, ".3g") for v in values]
    if smallest and largest > 1e3 * smallest:
        return [_text(v, ".4g") for v in values]
    decimals = 4 if largest < 1 else max(0, 3 - math.floor(math.log10(largest)))
    return [_text(v, f".{decimals}f") for v in values]


def _text(value: Any, spec: str) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    return format(value, spec) if _is_number(value) and not isinstance(value, int) else str(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check(columns: Sequence[str], rows: Sequence[Row]) -> None:
    for i, row in enumerate(rows):
        if len(row) != len(columns):
            raise ValueError(
                f"row {i} has {len(row)} values for the {len(columns)} columns {list(columns)}: {list(row)}"
            )

"""Tables for people: numbers of a column share their decimals and are aligned."""

import math
import sys
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

Row = Sequence[Any]


def print_table(title: str, columns: Sequence[str], rows: Sequence[Row]) -> None:
    """Print rows of results on stdout, one column per name; text is aligned left, numbers right."""
    out = Console(width=None if sys.stdout.isatty() else 200)  # a pipe has no width to fold tables to
    out.print(Text(title, style="bold"), soft_wrap=True)
    out.print(table(columns, rows))


def print_end(title: str, lines: Sequence[str]) -> None:
    """Print a run's title on stdout, and what is to be said last, a line each."""
    out = Console(width=None if sys.stdout.isatty() else 200)
    out.print(Text(title, style="bold"), soft_wrap=True)
    for line in lines:
        out.print(Text(line), soft_wrap=True)


def print_lines(lines: Sequence[str]) -> None:
    """Print lines of text on stdout, unfolded."""
    out = Console(width=None if sys.stdout.isatty() else 200)
    for line in lines:
        out.print(Text(line, style="dim"), soft_wrap=True)


def table(columns: Sequence[str], rows: Sequence[Row]) -> Table:
    """The rich table of `print_table`."""
    _check(columns, rows)
    made = Table(box=box.SIMPLE_HEAD)
    cells = [format_column([row[i] for row in rows]) for i in range(len(columns))]
    for i, name in enumerate(columns):
        numeric = any(_is_number(row[i]) for row in rows)
        made.add_column(name, justify="right" if numeric else "left")
    for row in zip(*cells, strict=True):
        made.add_row(*row)
    return made


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

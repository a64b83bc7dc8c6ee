"""Tables for people."""

import io
from collections import Counter

import pytest
from rich.console import Console

from metagradient.reporting.table import format_column, print_end, print_lines, print_table, tables


def test_a_column_shares_its_decimals() -> None:
    assert format_column([0.91234, 0.5, None, float("nan")]) == ["0.9123", "0.5000", "–", "–"]
    assert format_column([123.456, 1.0]) == ["123.5", "1.0"]
    assert format_column([1e-5, 2.5e-4]) == ["1e-05", "0.00025"]
    assert format_column([12, "ours", True]) == ["12", "ours", "True"]


def test_rows_are_printed_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("baselines", ["method", "test accuracy"], [("x" * 120, 0.25), ("ours", 0.5)])
    out = capsys.readouterr().out
    assert "x" * 120 in out  # a pipe has no width to fold to
    assert out.splitlines()[-2].split() == ["ours", "0.5000"]


def test_what_decimals_would_hide_is_shown() -> None:
    """A distance of 5.4e-4 among numbers of two digits is no zero."""
    assert format_column([76.1234, 0.00054, 0.0]) == ["76.12", "0.00054", "0"]


def test_lines_at_the_end_are_not_folded(capsys: pytest.CaptureFixture[str]) -> None:
    print_end("selection: seed=1", ["run directory: " + "d" * 300])
    assert capsys.readouterr().out.splitlines() == ["selection: seed=1", "run directory: " + "d" * 300]


def test_a_ragged_row_is_refused() -> None:
    with pytest.raises(ValueError, match="row 1 has 1 values for the 2 columns"):
        print_table("t", ["a", "b"], [(1, 2), (3,)])


def test_no_word_is_broken_at_80_columns() -> None:
    columns = [
        "trained on",
        "training runs",
        "against the grid's best",
        "standard error",
        "test accuracy",
        "f1 not redrawn",
    ]
    columns += ["distance_original_to_retrained", "retraining_seconds", "gradient saving"]
    rows = [
        ["metagradient: counts + validation rows", 12345.678, 0.00123, 0.25, None, 0.9, 5.4e-4, 1e9, -0.5],
        ["[bold]oracle[/bold]: correct labels only", 3.5, -0.00456, 0.5, 0.75, float("nan"), 76.1, 1e-9, 1.5],
    ]
    for width in (60, 80, 200):
        out = Console(width=width, file=io.StringIO())
        for block in tables(columns, rows, width):
            out.print(block)
        text = out.file.getvalue()  # type: ignore[attr-defined]
        assert all(len(line) <= width for line in text.splitlines())
        found = Counter(text.replace("─", " ").split())
        cells = [name.split() for name in columns]
        cells += [cell.split() for i in range(9) for cell in format_column([row[i] for row in rows])]
        wanted = Counter(word for cell in cells for word in cell)
        assert not wanted - found, width  # every word is there, whole
        first = Counter(["trained", "on", "metagradient:", "counts", "+", "validation", "rows"])
        assert set(found - wanted) <= {*first, "[bold]oracle[/bold]:", "correct", "labels", "only"}, width


def test_a_table_that_fits_is_one() -> None:
    assert len(tables(["a", "b"], [("x y", 1)], 80)) == 1
    assert len(tables(["a", "b" * 90], [("x y", 1)], 80)) == 1  # nothing helps


def test_markup_and_escape_sequences_are_shown_and_not_obeyed(capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "methods=[cosine]",
        "[/red]",
        "[bold]x[/bold]",
        "\x1b]0;title\x07",
        "\x9b2J",
        "a\nb",
        "\u202efdp",
        "\ud800",
        ":smile:",
    ]
    print_table(" ".join(words), words, [words])
    print_end(" ".join(words), words)
    print_lines(words)
    out = capsys.readouterr().out
    for shown in ("methods=[cosine]", "[/red]", "[bold]x[/bold]", ":smile:", "a\\nb"):
        assert out.count(shown) == 6, shown  # titles and a heading, a cell, lines
    for shown in (r"\x1b]0;title\x07", r"\x9b2J", r"\u202efdp", r"\ud800"):
        assert out.count(shown) == 6, shown
    assert not set("\x1b\x07\x9b\u202e") & set(out)

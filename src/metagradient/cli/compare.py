"""`metagradient compare PATH...`: what runs differ in and what came of it, on the terminal, as CSV, as a page."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metagradient.errors import UserError
from metagradient.escapes import visible

if TYPE_CHECKING:
    from metagradient.reporting.comparison.tables import Comparison

SUMMARY = "Which of these runs is better, and is the difference more than chance?"

STATUS = "Ends with status 0; 1 if a run could not be read, which is then named and left out; 2 for wrong arguments."


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        raise UserError(f"{message}; see metagradient compare --help")


def compare(arguments: Sequence[str]) -> bool:
    """Run the command: whether every run was readable. One that was not is named with what is wrong, and left out.

    Raises:
        UserError: a flag, a path, a metric or a baseline that does not exist; a file that cannot be written.
    """
    args = _parser().parse_args(list(arguments))
    from metagradient.reporting.comparison import page as compare_page
    from metagradient.reporting.comparison import tables as comparing
    from metagradient.reporting.runs import reading as runs

    baseline = _settings(args.baseline)
    metrics = [name for name in args.metrics.split(",") if name]
    found = runs.find(args.paths)
    damaged = [run for run in found if run.damage]
    made = comparing.compare([run for run in found if not run.damage], metrics, baseline)
    for each in made:
        _print(each)
    for run in damaged:
        print(visible(f"metagradient compare: left out {run.directory}: {run.damage}"), file=sys.stderr)
    try:
        if args.csv:
            _write_csv(args.csv, made)
        if args.html:
            from metagradient.files import replacing

            title = args.title or "Comparison: " + ", ".join(each.experiment for each in made)
            text = compare_page.page(made, title, damaged)
            with replacing(args.html) as draft:
                draft.write_bytes(text.encode("utf-8", errors="backslashreplace"))
            print(visible(f"page: {args.html} ({args.html.stat().st_size / 2**20:.1f} MiB, loads nothing)"))
    except OSError as error:
        raise UserError(f"cannot write {error.filename}: {error.strerror}") from error
    return not damaged


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="metagradient compare", description=SUMMARY, epilog=STATUS)
    parser.add_argument("paths", nargs="+", metavar="PATH", help="run directories, sweeps, or folders of them")
    parser.add_argument(
        "--baseline", nargs="+", default=[], metavar="KEY=VALUE", help="the row to test against (default: the first)"
    )
    parser.add_argument(
        "--metrics", default="", metavar="A,B", help="results to show (default: the experiment's headline)"
    )
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the table, a line for each setting and metric")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write one self-contained page with figures")
    parser.add_argument("--title", metavar="TEXT", help="of the page")
    return parser


def _settings(items: Sequence[str]) -> dict[str, str]:
    bad = [item for item in items if "=" not in item]
    if bad:
        raise UserError(f"a baseline is named by settings, key=value, not {bad[0]!r}: --baseline method=weights")
    return dict(item.split("=", 1) for item in items)


def _print(made: "Comparison") -> None:
    from metagradient.reporting.comparison.page import NOTE, name, numbers
    from metagradient.reporting.table import print_lines, print_table

    if made.rows:
        texts = {metric: numbers(made.rows, metric) for metric in made.metrics}
        rows = [
            [
                *row.label.values(),
                len(row.runs),
                *(f"{texts[m][i]} {row.tests[m].mark if m in row.tests else ''}".rstrip() for m in made.metrics),
            ]
            for i, row in enumerate(made.rows)
        ]
        columns = [*made.keys, "seeds", *map(name, made.metrics)]
        print_table(f"{made.experiment}: {sum(len(row.runs) for row in made.rows)} runs", columns, rows)
    if len(made.rows) > 1:
        print_lines(
            [f"baseline: {made.rows[made.baseline].title}", NOTE.replace("each dot is a run, the bar their mean. ", "")]
        )
    if made.repeated:
        print_lines([f"left out: {made.repeated}, because a newer run has their setting and seed"])
    if made.lost:
        rows = [[run.directory.name, run.title, run.status, run.why] for run in made.lost]
        print_table("without a result", ["run", "overrides", "status", "why"], rows)


def _write_csv(path: Path, comparisons: "Sequence[Comparison]") -> None:
    import statistics

    from metagradient.files import write_csv

    keys = list(dict.fromkeys(key for made in comparisons for key in made.keys))
    lines: list[list[Any]] = []
    for made in comparisons:
        for row in made.rows:
            for metric in made.metrics:
                values, test = row.values(metric), row.tests.get(metric)
                if values:
                    sd = statistics.stdev(values) if len(values) > 1 else ""
                    tested = (
                        ["", "", ""]
                        if test is None
                        else [
                            test.difference,
                            "" if test.p is None else test.p,
                            "paired t" if test.paired else "Welch t",
                        ]
                    )
                    label = [row.label.get(key, "") for key in keys]
                    lines.append([made.experiment, *label, metric, len(values), statistics.fmean(values), sd, *tested])
    write_csv(path, ["experiment", *keys, "metric", "runs", "mean", "sd", "difference", "p_holm", "test"], lines)
    print(visible(f"table: {path}"))

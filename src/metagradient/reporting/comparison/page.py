"""One self-contained HTML page of a comparison: a sortable table, every seed as a dot, the figures side by side.

Nothing is loaded from anywhere; it can be mailed, and read on a phone.
"""

from __future__ import annotations

import base64
import html
import statistics
from collections.abc import Sequence

from metagradient.intervals import deviation
from metagradient.reporting.comparison.tables import COSTS, Comparison, Row, results
from metagradient.reporting.table import format_column

NOTE = (
    "Mean ± standard deviation over seeds; each dot is a run, the bar their mean. ▲ ▼ differs from the baseline: "
    "* p < .05, ** p < .01, *** p < .001; two-sided t-test, paired where the seeds are the same, else Welch's; "
    "corrected (Holm) over the rows of a column."
)


def page(comparisons: Sequence[Comparison], title: str) -> str:
    """The page as text."""
    body = "\n".join(_section(comparison) for comparison in comparisons)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">'
        f"<title>{_text(title)}</title><style>{_STYLE}</style></head>\n<body><main>\n<h1>{_text(title)}</h1>\n"
        f"{body}\n</main><script>{_SCRIPT}</script></body></html>\n"
    )


def _section(comparison: Comparison) -> str:
    runs = [run for row in comparison.rows for run in row.runs]
    count = f"{len(runs)} finished runs, {len(comparison.rows)} settings"
    if comparison.lost:
        count += f", {len(comparison.lost)} without a result"
    if comparison.repeated:
        count += f", {comparison.repeated} left out: a newer run has their setting and seed"
    return "\n".join(
        [
            f"<section><h2>{_text(comparison.experiment)}</h2><p class=dim>{count}</p>",
            _scatter(comparison),
            _table(comparison),
            f"<p class=note>{NOTE}</p>",
            _lost(comparison),
            _figures(comparison),
            _every_run(comparison),
            "</section>",
        ]
    )


def _table(comparison: Comparison) -> str:
    head = "".join(f"<th>{_text(key).replace('.', '.<wbr>')}</th>" for key in comparison.keys or ["setting"])
    head += "<th class=num>seeds</th>" + "".join(
        f"<th class=num title='{_text(metric)}'>{_text(name(metric))}</th>" for metric in comparison.metrics
    )
    cells = {metric: numbers(comparison.rows, metric) for metric in comparison.metrics}
    lines = []
    for i, row in enumerate(comparison.rows):
        label = [str(value) for value in row.label.values()] or ["default"]
        tag = " <span class=tag>baseline</span>" if i == comparison.baseline and len(comparison.rows) > 1 else ""
        line = f"<td>{_text(label[0])}{tag}</td>" + "".join(f"<td>{_text(value)}</td>" for value in label[1:])
        line += f"<td class=num data-v='{len(row.runs)}'>{len(row.runs)}</td>"
        line += "".join(_cell(comparison, row, metric, cells[metric][i]) for metric in comparison.metrics)
        lines.append(f"<tr>{line}</tr>")
    return f"<div class=scroll><table class=sortable><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"


def _cell(comparison: Comparison, row: Row, metric: str, text: str) -> str:
    values = row.values(metric)
    if not values:
        return "<td class=num data-v=''>–</td>"
    test = row.tests.get(metric)
    told = (
        "" if test is None else f"difference {test.difference:+.4g}" + ("" if test.p is None else f", p = {test.p:.2g}")
    )
    mark = f" <b class=mark>{test.mark}</b>" if test and test.mark else ""
    every = [value for other in comparison.rows for value in other.values(metric)]
    return (
        f"<td class=num data-v='{statistics.fmean(values):.9g}' title='{told}'>{_text(text)}{mark}"
        f"{_strip(values, min(every), max(every)) if metric not in COSTS else ''}</td>"
    )


def _strip(values: Sequence[float], low: float, high: float) -> str:
    """Every value as a dot on a line that all rows of the column share."""
    if high <= low:
        return ""

    def x(value: float) -> float:
        return 4 + 112 * (value - low) / (high - low)

    dots = "".join(f"<circle cx='{x(value):.1f}' cy='7' r='3'/>" for value in values)
    mean = x(statistics.fmean(values))
    return (
        "<svg class=strip viewBox='0 0 120 14' width=120 height=14 aria-hidden=true>"
        f"<line x1=4 x2=116 y1=7 y2=7 />{dots}<rect x='{mean - 1:.1f}' y=1 width=2 height=12 /></svg>"
    )


def _scatter(comparison: Comparison) -> str:
    """The first metric against what it cost, where rows differ in both."""
    metric, cost = comparison.metrics[0] if comparison.metrics else "", COSTS[0]
    points = [
        (
            i,
            row,
            statistics.fmean(row.values(cost)),
            statistics.fmean(row.values(metric)),
            deviation(row.values(metric)),
        )
        for i, row in enumerate(comparison.rows)
        if row.values(metric) and row.values(cost)
    ]
    xs, ys = [p[2] for p in points], [e for p in points for e in (p[3] - p[4], p[3] + p[4])]
    if metric in COSTS or len(points) < 2 or len(points) > 40 or max(xs) <= min(xs) or max(ys) <= min(ys):
        return ""
    width, height, left, bottom = 640, 276, 64, 44

    def place(x: float, y: float) -> tuple[float, float]:
        across, up = (x - min(xs)) / (max(xs) - min(xs)), (y - min(ys)) / (max(ys) - min(ys))
        return left + 20 + across * (width - left - 60), height - bottom - 12 - up * (height - bottom - 46)

    marks = []
    for i, row, x, y, sd in points:
        (px, py), (_, top), (_, low) = place(x, y), place(x, y + sd), place(x, y - sd)
        marks.append(
            f"<g class='{'base' if i == comparison.baseline else ''}'><title>{_text(row.title)}: {y:.4g} at {x:.4g}</title>"
            f"<line x1={px:.1f} x2={px:.1f} y1={top:.1f} y2={low:.1f} /><circle cx={px:.1f} cy={py:.1f} r=5 />"
            f"<text x={px + (9 if px < width * 0.7 else -9):.1f} y={py + (18 if i % 2 else -8):.1f} "
            f"text-anchor={'start' if px < width * 0.7 else 'end'}>{_text(_short_title(comparison, i))}</text></g>"
        )
    x0, y0 = left, height - bottom
    ticks = "".join(
        f"<text class=tick x={place(x, ys[0])[0]:.1f} y={y0 + 16} text-anchor=middle>{x:.4g}</text>" for x in {min(xs), max(xs)}
    ) + "".join(
        f"<text class=tick x={x0 - 6} y={place(xs[0], y)[1] + 4:.1f} text-anchor=end>{y:.3g}</text>" for y in {min(ys), max(ys)}
    )  # fmt: skip
    return (
        f"<figure class=plot><svg viewBox='0 0 {width} {height}' role=img aria-label='quality against cost'>"
        f"<path class=axis d='M{x0} 26V{y0}H{width - 12}'/>{ticks}{''.join(marks)}"
        f"<text class=tick x={width - 12} y={height - 8} text-anchor=end>cost in training runs</text>"
        f"<text class=tick x=4 y=14>{_text(name(metric))}</text></svg></figure>"
    )


def _short_title(comparison: Comparison, i: int) -> str:
    """A row's values where they fit beside a point, else the number of the row."""
    title = ", ".join(value for value in comparison.rows[i].label.values() if value != "–")
    return title if len(comparison.rows) <= 12 and len(title) <= 30 else f"row {i + 1}"


def _figures(comparison: Comparison) -> str:
    """The figures of the first seed of each row, those of one name side by side."""
    shown: dict[str, list[str]] = {}
    for row in comparison.rows:
        for path in sorted((row.runs[0].directory / "figures").glob("*.png")):
            data = base64.b64encode(path.read_bytes()).decode()
            caption = f"{row.title}, seed {row.runs[0].seed}"
            shown.setdefault(path.stem, []).append(
                f"<figure><img loading=lazy alt='{_text(path.stem)}: {_text(caption)}' src='data:image/png;base64,{data}'>"
                f"<figcaption>{_text(caption)}</figcaption></figure>"
            )
    return "".join(
        f"<details {'open' if i == 0 else ''}><summary>{_text(stem.replace('_', ' '))}</summary>"
        f"<div class=figures>{''.join(figures)}</div></details>"
        for i, (stem, figures) in enumerate(shown.items())
    )


def _lost(comparison: Comparison) -> str:
    if not comparison.lost:
        return ""
    rows = "".join(
        f"<tr><td>{_text(run.directory.name)}</td><td>{_text(run.title)}</td><td>{run.status}</td><td>{_text(run.why)}</td></tr>"
        for run in comparison.lost
    )
    head = "<tr><th>run</th><th>overrides</th><th>status</th><th>why</th></tr>"
    return f"<details open><summary>without a result</summary><div class=scroll><table>{head}{rows}</table></div></details>"


def _every_run(comparison: Comparison) -> str:
    """All results of all runs."""
    runs = [(row, run) for row in comparison.rows for run in row.runs]
    metrics = results([run for _, run in runs])
    columns = [format_column([run.metrics.get(metric) for _, run in runs]) for metric in metrics]
    head = "".join(f"<th class=num>{_text(name(metric))}</th>" for metric in metrics)
    lines = []
    for i, (row, run) in enumerate(runs):
        values = "".join(
            f"<td class=num data-v='{run.metrics.get(metric, '')}'>{column[i]}</td>"
            for metric, column in zip(metrics, columns, strict=True)
        )
        place = f"title='{_text(str(run.directory))}'"
        lines.append(
            f"<tr><td {place}>{_text(row.title)}</td><td class=num data-v='{run.seed}'>{run.seed}</td>{values}</tr>"
        )
    return (
        "<details><summary>every run, every result</summary><div class=scroll><table class=sortable><thead><tr>"
        f"<th>setting</th><th class=num>seed</th>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div></details>"
    )


def numbers(rows: Sequence[Row], metric: str) -> list[str]:
    """`mean ± sd` of each row, with the same decimals all down the column; the sd only over several seeds."""
    means = [statistics.fmean(row.values(metric)) if row.values(metric) else None for row in rows]
    sds = [deviation(row.values(metric)) if len(row.values(metric)) > 1 else None for row in rows]
    texts = format_column([*means, *sds])
    pairs = zip(texts[: len(rows)], texts[len(rows) :], sds, strict=True)
    return [mean if sd is None else f"{mean} ± {spread}" for mean, spread, sd in pairs]


def name(metric: str) -> str:
    """`result/test_accuracy` as a column's heading."""
    return {"cost/training_runs": "training runs", "cost/seconds": "seconds"}.get(
        metric, metric.removeprefix("result/").replace("_", " ")
    )


def _text(value: str) -> str:
    return html.escape(str(value), quote=True)


_STYLE = """
:root{--ink:#1b1f24;--dim:#667;--paper:#fff;--line:#dfe3e8;--soft:#f4f6f8;--accent:#0b6e8f;--base:#c2571a}
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ec;--dim:#98a2ad;--paper:#14181c;--line:#2c333a;--soft:#1c2227;
--accent:#5cc0e0;--base:#f0965a}}
*{box-sizing:border-box}body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
main{max-width:1180px;margin:0 auto;padding:24px 16px 64px}h1{font-size:1.5rem;margin:0 0 8px;overflow-wrap:anywhere}
h2{font-size:1.15rem;margin:24px 0 0}.dim,.note,figcaption{color:var(--dim);font-size:.85rem}.dim{margin:0 0 12px}
.scroll{overflow-x:auto;border:1px solid var(--line);border-radius:8px}table{border-collapse:collapse;width:100%}
th,td{padding:7px 10px;text-align:left;vertical-align:top;border-bottom:1px solid var(--line);white-space:nowrap}
tr:last-child td{border-bottom:0}th{background:var(--soft);font-size:.85rem;position:sticky;top:0}
.sortable th{cursor:pointer;user-select:none}.sortable th:focus-visible{outline:2px solid var(--accent)}
th[aria-sort=ascending]:after{content:" ↑"}th[aria-sort=descending]:after{content:" ↓"}
.num{text-align:right;font-variant-numeric:tabular-nums}td:first-child,th:first-child{position:sticky;left:0;background:var(--paper);
z-index:1;max-width:45vw;overflow:hidden;text-overflow:ellipsis}th:first-child{background:var(--soft)}
.tag{color:var(--base);border:1px solid;border-radius:4px;font-size:.7rem;padding:0 4px}.mark{color:var(--accent)}
.strip{display:block;margin:3px 0 0 auto}.strip circle{fill:var(--accent);fill-opacity:.45}.strip line{stroke:var(--line)}
.strip rect{fill:var(--ink)}.plot{margin:0 0 16px}.plot svg{width:100%;max-width:760px;height:auto}
.plot .axis{fill:none;stroke:var(--line)}.plot circle{fill:var(--accent)}.plot line{stroke:var(--accent);stroke-opacity:.6}
.plot .base circle{fill:var(--base)}.plot .base line{stroke:var(--base)}.plot text{fill:var(--ink);font-size:12px}
.plot .tick{fill:var(--dim);font-size:11px}
details{margin-top:16px}summary{cursor:pointer;font-weight:600;padding:4px 0}.figures{display:grid;gap:16px;
grid-template-columns:repeat(auto-fill,minmax(min(340px,100%),1fr))}.figures figure{margin:0}
.figures img{width:100%;height:auto;border-radius:6px;background:#fff}
@media(prefers-color-scheme:dark){.strip circle{fill-opacity:.65}}
@media(max-width:640px){body{font-size:14px}main{padding:16px 10px 48px}th,td{padding:5px 6px}th{white-space:normal}
.tag{display:block;width:max-content}.strip{width:84px;height:10px}.plot text{font-size:17px}.plot .tick{font-size:16px}}
"""

_SCRIPT = """
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, column) => {
    head.tabIndex = 0;
    const sort = () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const key = row => row.cells[column].dataset.v ?? row.cells[column].textContent;
      const order = (a, b) => {
        const [x, y] = [key(a), key(b)];
        if (x === "" || y === "") return (x === "") - (y === "");
        const gap = isNaN(x) || isNaN(y) ? String(x).localeCompare(y, undefined, {numeric: true}) : x - y;
        return up ? gap : -gap;
      };
      body.append(...[...body.rows].sort(order));
    };
    head.addEventListener("click", sort);
    head.addEventListener("keydown", event => { if (event.key === "Enter") sort(); });
  });
}
"""

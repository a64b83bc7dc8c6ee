"""What one looks at after a selection of pairs: the counts, the share kept by source, the pairs most and least wanted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from metagradient.data import PairSplits
from metagradient.descent import Reading, Selection
from metagradient.reporting import Record, figures
from metagradient.reporting.pages.report import Distribution, Example, Histogram, Ranking, report_page
from metagradient.studies.selection.looking import draw_metasteps

_TOLD, _SHEET = 200, 48  # pairs of the page, and of a contact sheet


def leave_pairs(record: Record, splits: PairSplits, chosen: Selection) -> None:
    """selection.csv, a row for each pair of the pool; the table of the share kept by source."""
    origin, unit = splits.origins.get("train"), chosen.unit.removesuffix("s")
    header = ["index", *([] if origin is None else origin.header), "source", "caption", unit, "kept"]
    rows = (
        [i, *([] if origin is None else origin.cells(i)), source, caption, weight, kept]
        for i, (source, caption, weight, kept) in enumerate(
            zip(
                splits.sources["train"],
                splits.captions["train"],
                chosen.weights.tolist(),
                chosen.kept.tolist(),
                strict=True,
            )
        )
    )
    record.csv("selection", header, rows)
    if len(set(splits.sources["train"])) > 1:
        record.table("kept_by_source", ["source", "pairs", "share kept", f"mean {unit}"], by_source(splits, chosen))


def by_source(splits: PairSplits, chosen: Selection) -> list[list[Any]]:
    """Of each source: its name, its pairs in the pool, the share of them that is kept, their mean weight or count."""
    names = splits.sources["train"]
    rows: dict[str, list[object]] = {}
    means: dict[str, float] = {}
    for name in sorted(set(names)):
        own = torch.tensor([each == name for each in names])
        means[name] = float(chosen.weights[own].mean())
        rows[name] = [name, int(own.sum()), float(chosen.kept[own].float().mean()), means[name]]
    return [rows[name] for name in sorted(rows, key=lambda name: -means[name])]


def draw_pairs(
    record: Record,
    splits: PairSplits,
    chosen: Selection,
    readings: Sequence[Reading],
    references: Mapping[str, float],
) -> None:
    """weights.png, metasteps.png, most_wanted.png, least_wanted.png, report.html."""
    record.figure("weights", figures.weight_histogram(chosen.weights))
    draw_metasteps(record, chosen, readings, "accuracy", "accuracy", references)
    order = chosen.weights.argsort(stable=True)
    for name, rows in (("least_wanted", order[:_SHEET]), ("most_wanted", order.flip(0)[:_SHEET])):
        captions = [f"{shorten(splits.captions['train'][i], 14)} ({chosen.weights[i]:.3g})" for i in rows.tolist()]
        sheet = figures.image_grid(splits.train["x"][rows], captions, columns=8, title=name.replace("_", " "))
        record.figure(name, sheet)
    record.page(_page(splits, chosen, order))


def _page(splits: PairSplits, chosen: Selection, order: torch.Tensor) -> str:
    lowest, highest = order[:_TOLD].tolist(), order.flip(0)[:_TOLD].tolist()
    origin = splits.origins.get("train")

    def ranking(name: str, rows: list[int]) -> Ranking:
        images = splits.train["x"][torch.tensor(rows)].numpy()
        examples = [
            Example(
                row,
                label=splits.captions["train"][row],
                place=(
                    *(() if origin is None else zip(origin.header, map(str, origin.cells(row)), strict=True)),
                    *((("source", splits.sources["train"][row]),) if splits.sources["train"][row] else ()),
                ),
                image=image,
            )
            for row, image in zip(rows, images, strict=True)
        ]
        return Ranking(
            name,
            f"Pairs by their {chosen.unit}.",
            [(example, float(chosen.weights[example.index])) for example in examples],
        )

    parts = [("all pairs", chosen.weights)]
    if splits.oracle is not None:
        parts += [
            ("what an insider would choose", chosen.weights[splits.oracle]),
            ("others", chosen.weights[~splits.oracle]),
        ]
    tabs = (
        ranking("least wanted", lowest),
        ranking("most wanted", highest),
        Distribution(
            chosen.unit,
            "Bars grow with the logarithm of the count.",
            [(title, Histogram.of(values.numpy())) for title, values in parts],
        ),
    )
    return report_page(
        f"The pairs that were wanted least, and most: {splits.name}",
        f"The learned {chosen.unit} of {len(chosen.weights)} pairs, of which {int(chosen.kept.sum())} are kept.",
        tabs,
    )


def shorten(text: str, most: int) -> str:
    """At most so many letters of a text, to stand above its picture."""
    return text if len(text) <= most else f"{text[: most - 1]}…"

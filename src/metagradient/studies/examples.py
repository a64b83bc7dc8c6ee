"""Naming and showing examples of a data set, whatever their kind."""

from collections.abc import Sequence
from typing import Literal

import torch
from matplotlib.figure import Figure
from torch import Tensor

from metagradient.data import Splits, TextSplits
from metagradient.data.own.verbatim import own_words
from metagradient.reporting.figures import Passage, image_grid, text_figure
from metagradient.reporting.pages.report import Example

Split = Literal["train", "validation", "test"]


def identities(
    splits: Splits | TextSplits, split: Split, count: int | None = None
) -> tuple[list[str], list[list[int | str]]]:
    """What the first `count` examples of a split are joined by: the columns' names, and a row for each example.

    `index` is the place in the split; row (or file) and id are those of the user's own file, where the data are of one;
    label is the one that was trained with, and truth, of labels that were corrupted, the right one.
    """
    table = getattr(splits, split)
    n = len(next(iter(table.values()))) if count is None else count
    header, columns = ["index"], [list[int | str](range(n))]
    if isinstance(splits, Splits):
        if (origin := splits.origins.get(split)) is not None:
            header += origin.header
            columns += [list(column) for column in zip(*map(origin.cells, range(n)), strict=True)]
        header.append("label")
        columns.append([*splits.target_names(table["y"][:n])])
        if splits.truth is not None and split == "train":
            header.append("truth")
            columns.append([*splits.target_names(splits.truth.y[:n])])
    return header, [list(row) for row in zip(*columns, strict=True)]


def told(splits: Splits | TextSplits, split: Split, rows: Sequence[int]) -> dict[int, Example]:
    """Examples of a split as pages show them, by their place in it."""
    table, at = getattr(splits, split), torch.tensor(rows, dtype=torch.int64)
    if isinstance(splits, TextSplits):
        said = splits.describe(table["tokens"][at], table["mask"][at] if "mask" in table else None)
        return {row: Example(row, says=says) for row, says in zip(rows, said, strict=True)}
    x, given, origin = table["x"][at], splits.target_names(table["y"][at]), splits.origins.get(split)
    truth = None if splits.truth is None or split != "train" else splits.target_names(splits.truth.y[at])
    pictures = splits.kind == "image"
    said = [""] * len(rows) if pictures else own_words(splits, split, rows) or splits.describe(x)
    return {
        row: Example(
            row,
            says=said[i],
            label=given[i],
            truth="" if truth is None or truth[i] == given[i] else truth[i],
            place=() if origin is None else tuple(zip(origin.header, map(str, origin.cells(row)), strict=True)),
            image=splits.shown(x[i : i + 1])[0].numpy() if pictures else None,
        )
        for i, row in enumerate(rows)
    }


def examples_figure(
    splits: Splits,
    x: Tensor,
    captions: Sequence[str],
    wrong: Sequence[bool] | None = None,
    columns: int = 6,
    title: str | None = None,
) -> Figure:
    """A grid of images, or texts and rows of tables below one another.

    Args:
        splits: the data set, which knows the kind of its examples.
        x: the examples [m, ...].
        captions: one for each.
        wrong: [m], captions that are to be red.
        columns: of the grid.
        title: above all of them.
    """
    if splits.kind == "image":
        return image_grid(splits.shown(x), captions, wrong, columns=columns, title=title)
    return text_figure([Passage(title or "", captions, splits.describe(x), wrong or ())])

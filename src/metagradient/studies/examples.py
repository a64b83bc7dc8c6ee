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
    label is the one that was trained with, and truth, of labels that were corrupted, the right one. Of texts source is the
    name of the source, and truth the response that one with a planted response should have.
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
    else:
        names = _joined_by(splits, split, range(n))
        header += [name for name, _ in names[0]] if names else []
        columns += [list(column) for column in zip(*([said for _, said in row] for row in names), strict=True)]
        if splits.truth is not None and split == "train":
            header.append("truth")
            columns.append([*splits.truth.right[:n]])
    return header, [list(row) for row in zip(*columns, strict=True)]


def _joined_by(splits: TextSplits, split: Split, rows: Sequence[int]) -> list[list[tuple[str, int | str]]]:
    """Of each row of texts its place in the user's file, its id and its source, by name, as far as there are any."""
    origin, numbers = splits.origins.get(split), {"train": splits.sources, "test": splits.query_sources}.get(split)
    found: list[list[tuple[str, int | str]]] = []
    for row in rows:
        own = [] if origin is None else list(zip(origin.header, origin.cells(row), strict=True))
        if splits.source_names and numbers is not None:
            number = int(numbers[row])
            own.append(("source", splits.source_names[number] if number >= 0 else "unknown"))
        found.append(own)
    return found


def told(splits: Splits | TextSplits, split: Split, rows: Sequence[int]) -> dict[int, Example]:
    """Examples of a split as pages show them, by their place in it."""
    table, at = getattr(splits, split), torch.tensor(rows, dtype=torch.int64)
    if isinstance(splits, TextSplits):
        said = splits.describe(table["tokens"][at], table["mask"][at] if "mask" in table else None)
        right = splits.truth.right if splits.truth is not None and split == "train" else [""] * len(table["tokens"])
        places = [tuple((name, str(cell)) for name, cell in cells) for cells in _joined_by(splits, split, rows)]
        found = zip(rows, said, places, strict=True)
        return {row: Example(row, says=says, truth=right[row], place=place) for row, says, place in found}
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

"""Naming and showing examples of a data set, whatever their kind."""

from collections.abc import Sequence
from typing import Literal

from matplotlib.figure import Figure
from torch import Tensor

from metagradient.data import Splits, TextSplits
from metagradient.reporting.figures import Passage, image_grid, text_figure


def labels(splits: Splits, y: Tensor) -> list[str]:
    """Labels in words: the class; of several at once those that apply; of numbers the number."""
    if y.dim() > 1:
        return ["; ".join(splits.classes[c] for c in row.nonzero().flatten().tolist()) for row in y]
    if y.is_floating_point():
        return [f"{value:g}" for value in y.tolist()]
    return [splits.classes[c] for c in y.tolist()]


def identities(
    splits: Splits | TextSplits, split: Literal["train", "test"], count: int | None = None
) -> tuple[list[str], list[list[int | str]]]:
    """What the examples of a split are joined by: names of columns, and a row for each of the first `count` examples.

    `index` is the place in the split; row (or file) and id are the user's own, where the data are; label is the one that
    was trained with, and truth, of corrupted labels, the right one.
    """
    table = getattr(splits, split)
    n = len(next(iter(table.values()))) if count is None else count
    header, columns = ["index"], [list[int | str](range(n))]
    if isinstance(splits, TextSplits):
        return header, [[i] for i in range(n)]
    if (origin := splits.origins.get(split)) is not None:
        header += origin.header
        columns += [list(column) for column in zip(*(origin.cells(i) for i in range(n)), strict=True)]
    header.append("label")
    columns.append([*labels(splits, table["y"][:n])])
    if splits.truth is not None and split == "train":
        header.append("truth")
        columns.append([*labels(splits, splits.truth.y[:n])])
    return header, [list(row) for row in zip(*columns, strict=True)]


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
        return image_grid(x, captions, wrong, columns=columns, title=title)
    return text_figure([Passage(title or "", captions, splits.describe(x), wrong or ())])

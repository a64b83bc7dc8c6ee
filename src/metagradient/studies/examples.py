"""Showing examples of a data set, whatever their kind."""

from collections.abc import Sequence

from matplotlib.figure import Figure
from torch import Tensor

from metagradient.data import Splits
from metagradient.reporting.figures import Passage, image_grid, text_figure


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

"""Figures of images with captions."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from metagradient.reporting.figures.style import BLACK, CRIMSON, styled


@styled
def image_grid(
    images: ArrayLike,
    captions: Sequence[str],
    wrong: Sequence[bool] | None = None,
    columns: int = 6,
    title: str | None = None,
) -> Figure:
    """Images `[m, C, H, W]` (or `[m, H, W]`) with a caption each, such as `given → true label`; wrong ones in red.

    An image whose values leave [0, 1] (normalised data) is stretched to that range.
    """
    pictures = np.asarray(images, dtype=float)
    if pictures.ndim == 3:
        pictures = pictures[:, None]
    if len(pictures) != len(captions):
        raise ValueError(f"{len(pictures)} images but {len(captions)} captions")
    if any(len(caption) > 12 for caption in captions):
        captions = [caption.replace(" → ", "\n→ ") for caption in captions]
    lines = max((caption.count("\n") for caption in captions), default=0) + 1
    columns = max(1, min(columns, len(pictures)))
    rows = max(1, -(-len(pictures) // columns))
    figure = Figure(figsize=(1.25 * columns, (1.3 + 0.2 * lines) * rows + (0.3 if title else 0.0)))
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in grid:
        axes.set_axis_off()
    flags = wrong if wrong is not None else [False] * len(captions)
    for axes, picture, caption, bad in zip(grid, pictures, captions, flags, strict=False):
        axes.imshow(displayable(picture), cmap="gray_r" if len(picture) == 1 else None, vmin=0, vmax=1)
        axes.set_title(caption, loc="center", fontsize=10, pad=3, color=CRIMSON if bad else BLACK)
    return figure


def displayable(picture: np.ndarray) -> np.ndarray:
    """An image [C, H, W] as matplotlib takes it: [H, W, C] or [H, W], stretched to [0, 1] where it leaves that range."""
    low, high = picture.min(), picture.max()
    if low < 0 or high > 1:
        picture = (picture - low) / (high - low or 1.0)
    return picture[0] if len(picture) == 1 else picture.transpose(1, 2, 0)

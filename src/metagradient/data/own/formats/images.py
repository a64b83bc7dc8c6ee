"""Encoded images as squares of one size: decoded now, or when they are asked for."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

Encoded = Path | bytes | None
"""A file, its content, or nothing."""

BROKEN = (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError)
"""What decoding something else than an image raises."""


def decoded(encoded: Encoded, size: int) -> Image.Image:
    """An image, grey (L, or F of [0, 1] where bytes would lose digits) or RGB, of `size` pixels a side.

    Raises:
        One of `BROKEN`: it is no image, or cut short.
    """
    if encoded is None:
        raise ValueError("a row without an image")
    with Image.open(io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded) as opened:
        return _square(opened, size)


def pixels(picture: Image.Image, mode: str) -> np.ndarray:
    """float32 [C, size, size] in [0, 1], of mode L or RGB."""
    if picture.mode == "F":
        return np.repeat(np.asarray(picture)[None], len(mode), axis=0)
    values = np.asarray(picture.convert(mode), dtype=np.float32) / 255
    return values[None] if mode == "L" else values.transpose(2, 0, 1)


class Pictures:
    """Images that are decoded when they are asked for: pictures[row] is float32 [C, size, size] in [0, 1].

    Attributes:
        shape: [n, C, size, size].
        workers: processes that shall read ahead.
    """

    def __init__(self, encoded: Sequence[Encoded], rows: np.ndarray, mode: str, size: int, workers: int) -> None:
        self.encoded, self.rows, self.mode, self.size, self.workers = encoded, rows, mode, size, workers
        self.shape = torch.Size([len(rows), len(mode), size, size])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> Tensor:
        picture = decoded(self.encoded[self.rows[row]], self.size)
        return torch.from_numpy(np.ascontiguousarray(pixels(picture, self.mode)))


def _square(picture: Image.Image, size: int) -> Image.Image:
    """Grey (L or F) or RGB, upright, the square around the centre, resized."""
    picture = ImageOps.exif_transpose(picture)
    if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
        picture = Image.fromarray(_fractions(picture))
    elif picture.mode in ("LA", "PA", "RGBA") or "transparency" in picture.info:
        whole = picture.convert("RGBA")
        white = Image.new("RGBA", whole.size, "white")
        picture = Image.alpha_composite(white, whole).convert("RGB")
    elif picture.mode not in ("L", "RGB"):
        picture = picture.convert("L" if picture.mode == "1" else "RGB")
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    box = (left, top, left + side, top + side)
    return (
        picture.resize((size, size), Image.Resampling.BILINEAR, box=box)
        if picture.size != (size, size)
        else picture.copy()
    )


def _fractions(picture: Image.Image) -> np.ndarray:
    """Grey of more than a byte as float32 [H, W] in [0, 1], all images by the same measure; so that brightness can be compared.

    Integers are divided by 65535, or by 2^31 - 1 where they need more than 16 bits; floats are taken to be fractions, and clipped.
    """
    values = np.asarray(picture, dtype=np.float64)
    if picture.mode != "F":
        values = values / (65535 if values.max() <= 65535 else 2**31 - 1)
    return np.nan_to_num(values).clip(0, 1).astype(np.float32)

"""Images as data URIs: each held once, large ones made small, and no more of them than a browser opens with ease."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from metagradient.reporting.figures.images import displayable

_EXACT, _SIDE, _QUALITY = 64, 96, 85  # pixels of a side that stay as they are; of a larger image's; of its JPEG


def data_uri(image: np.ndarray) -> str:
    """An image [C, H, W] or [H, W] as a data URI, ink on white where it is grey: PNG, or a smaller JPEG of a large one."""
    pixels = np.asarray(image, dtype=float)
    pixels = displayable(pixels[None] if pixels.ndim == 2 else pixels)
    pixels = 1 - pixels if pixels.ndim == 2 else pixels
    picture = Image.fromarray((255 * pixels).round().astype(np.uint8))
    large, file = max(picture.size) > _EXACT, io.BytesIO()
    if large:
        picture.thumbnail((_SIDE, _SIDE))
        picture.save(file, "JPEG", quality=_QUALITY)
    else:
        picture.save(file, "PNG")
    return f"data:image/{'jpeg' if large else 'png'};base64,{base64.b64encode(file.getvalue()).decode()}"


class Album:
    """Data URIs in the order they were added, each once, until so many bytes are full."""

    def __init__(self, most: int) -> None:
        self.uris: list[str] = []
        self.left_out = 0
        self._most, self._bytes, self._places = most, 0, dict[str, int]()

    def add(self, image: np.ndarray) -> int | None:
        """The place of an image; None once the album is full."""
        uri = "" if self.left_out else data_uri(image)
        if uri not in self._places:
            if self.left_out or self._bytes + len(uri) > self._most:
                self.left_out += 1
                return None
            self._places[uri] = len(self.uris)
            self._bytes += len(uri)
            self.uris.append(uri)
        return self._places[uri]

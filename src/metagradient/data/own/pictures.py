"""Images of the user's own: a folder of classes, or a table with a column of images."""

from __future__ import annotations

import dataclasses
import io
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from metagradient.data.corruption import LabelNoise
from metagradient.data.origins import origins
from metagradient.data.own.formats.files import must_fit
from metagradient.data.own.inspection import inspect
from metagradient.data.own.rows import NAMES, WORDS, Shares, divide
from metagradient.data.own.tabled_pictures import is_table, read_tabled
from metagradient.data.own.targets import Targets
from metagradient.data.splits import Splits, Task, corrupt, standardise

log = logging.getLogger(__name__)

_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")


def image_folder(
    path: str,
    size: int = 32,
    channels: int | None = None,
    image: str = "image",
    target: str | Sequence[str] = "label",
    train: int | None = None,
    validation: float = 0.1,
    test: float = 0.2,
    stratify: bool = False,
    standardize: bool = False,
    task: Task | None = None,
    noise: LabelNoise | None = None,
    seed: int = 0,
) -> Splits:
    """A folder with a folder of images for each class, or with folders train, test (and validation) of such; or a table.

    A table is a Parquet file, a folder of them or of `save_to_disk`, or a name of the hub, with a column of images (encoded,
    as bytes or {bytes, path}: what `datasets.Image` stores) and one or several that are to be predicted. A source that is divided already keeps its
    splits; a validation or test split that it lacks is drawn from its training rows.

    Images are cut to a square around their centre and resized (bilinear). Transparency is laid on white; palettes, CMYK
    and the like become RGB. Files and rows that are no images or cut short are left out, counted and named. One image is
    decoded at a time.

    Args:
        path: the folder or table.
        size: pixels of a side.
        channels: 1 (grey) or 3; None: 1 where every image is grey.
        image: a table's column of images.
        target: of a table, as in `table_file`, like task.
        train: as in `table_file`, like validation, test, stratify, noise and seed.
        validation: see train.
        test: see train.
        stratify: see train.
        standardize: mean 0 and variance 1 per channel, by the training rows.
        task: see target.
        noise: see train.
        seed: see train.

    Raises:
        FileNotFoundError: no such folder or table.
        ConnectionError: a hub set, and no network.
        ValueError: no images, one class alone, too few rows, too little memory.
    """
    if channels not in (None, 1, 3):
        raise ValueError(f"data.channels must be 1, 3 or null, not {channels}")
    found = _tabled(path, image, target, task) if is_table(path) else _foldered(path)
    n = len(found.targets.y)
    must_fit(5 * n * (channels or 3) * size * size, path, f"set data.size={size // 2}")
    pictures, kept = _read(found, size)
    mode = "L" if channels == 1 or (channels is None and all(each.mode == "L" for each in pictures)) else "RGB"
    targets = dataclasses.replace(found.targets, y=found.targets.y[kept])
    given = None if found.given is None else found.given[kept]
    rows = divide(targets.strata(stratify), Shares(train, validation, test, stratify, seed), given=given)
    labels = torch.from_numpy(targets.y)
    tables = {name: {"x": _stacked(pictures, rows[name], mode, size), "y": labels[rows[name]]} for name in NAMES}
    splits = Splits(
        Path(path).name,
        tables["train"],
        tables["validation"],
        tables["test"],
        targets.names,
        kind="image",
        source=path,
        origins=origins(found.places[kept], None, rows),
        task=targets.task,
    )
    inspect(splits)
    return corrupt(standardise(splits) if standardize else splits, noise, seed)


@dataclass(frozen=True)
class _Found:
    """Images that are not decoded yet: their contents, places (row numbers, or files' paths in the folder) and targets, n of each.

    `given` is the split of each where the source is divided, `unit` what the places are called.
    """

    encoded: Iterable[Path | bytes | None]
    places: np.ndarray
    targets: Targets
    given: np.ndarray | None
    unit: str


def _tabled(path: str, image: str, target: str | Sequence[str], task: Task | None) -> _Found:
    table = read_tabled(path, image, target, task)
    return _Found(table.encoded(), table.rows, table.targets, table.given, "rows")


def _foldered(path: str) -> _Found:
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(
            f"data.path={path} does not exist or is no folder: give a folder with one folder for each class, or Parquet files (or "
            "owner/name of the Hugging Face hub) with a column of images"
        )
    given = {name: next((folder / w for w in words if (folder / w).is_dir()), None) for name, words in WORDS.items()}
    divided = given["train"] is not None and given["test"] is not None
    roots = {name: root for name, root in given.items() if root is not None} if divided else {"all": folder}
    classes = sorted({child.name for root in roots.values() for child in root.iterdir() if child.is_dir()})
    if len(classes) < 2:
        raise ValueError(
            f"data.path={path} has {len(classes)} folders of classes: it needs one for each class, FOLDER/class/image.png"
        )
    files = [
        (name, label, file)
        for name, root in roots.items()
        for label, kind in enumerate(classes)
        for file in sorted((root / kind).rglob("*"))
        if file.suffix.lower() in _ENDINGS
    ]
    if not files:
        raise ValueError(f"data.path={path} has no images ({', '.join(_ENDINGS)}) in its folders")
    return _Found(
        [file for _, _, file in files],
        np.array([file.relative_to(folder).as_posix() for _, _, file in files]),
        Targets(np.array([label for _, label, _ in files], dtype=np.int64), "classes", tuple(classes)),
        np.array([name for name, _, _ in files], dtype=object) if divided else None,
        "files",
    )


def _read(found: _Found, size: int) -> tuple[list[Image.Image], np.ndarray]:
    """The images that can be read, grey or RGB, size by size; and their places among all."""
    pictures, kept, broken = [], [], []
    for place, encoded in enumerate(found.encoded):
        try:
            if encoded is None:
                raise ValueError("a row without an image")
            with Image.open(io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded) as opened:
                pictures.append(_square(opened, size))
        except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            broken.append(str(found.places[place]))
            continue
        kept.append(place)
    if broken:
        log.warning(
            "%d %s are no images or cut short, and left out: %s", len(broken), found.unit, ", ".join(broken[:5])
        )
    if not kept:
        raise ValueError(f"none of the {len(broken)} {found.unit} is an image that can be read, {broken[0]} for one")
    return pictures, np.array(kept, dtype=np.int64)


def _stacked(pictures: Sequence[Image.Image], rows: np.ndarray, mode: str, size: int) -> Tensor:
    """Some images as float32 [n, C, size, size] in [0, 1]."""
    x = np.empty((len(rows), len(mode), size, size), dtype=np.float32)
    for out, row in zip(x, rows, strict=True):
        pixels = np.asarray(pictures[row].convert(mode), dtype=np.float32) / 255
        out[...] = pixels if mode == "L" else pixels.transpose(2, 0, 1)
    return torch.from_numpy(x)


def _square(picture: Image.Image, size: int) -> Image.Image:
    """Grey (L) or RGB, the square around the centre, resized."""
    if picture.mode in ("LA", "PA", "RGBA") or "transparency" in picture.info:
        whole = picture.convert("RGBA")
        white = Image.new("RGBA", whole.size, "white")
        picture = Image.alpha_composite(white, whole).convert("RGB")
    elif picture.mode in ("I", "I;16", "F"):
        values = np.asarray(picture, dtype=np.float32)
        top = values.max() or 1.0
        picture = Image.fromarray((255 * values / top).clip(0, 255).astype(np.uint8))
    elif picture.mode not in ("L", "RGB"):
        picture = picture.convert("L" if picture.mode == "1" else "RGB")
    side = min(picture.size)
    left, top_ = (picture.width - side) // 2, (picture.height - side) // 2
    box = (left, top_, left + side, top_ + side)
    return (
        picture.resize((size, size), Image.Resampling.BILINEAR, box=box)
        if picture.size != (size, size)
        else picture.copy()
    )

"""Images of the user's own: a folder of classes."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import psutil
import torch
from PIL import Image, UnidentifiedImageError

from metagradient.data.corruption import LabelNoise
from metagradient.data.origins import origins
from metagradient.data.own.rows import NAMES, Shares, divide
from metagradient.data.splits import Splits, corrupt, standardise

log = logging.getLogger(__name__)

_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
_FOLDERS = {"train": ("train", "training"), "validation": ("validation", "valid", "val"), "test": ("test",)}


def image_folder(
    path: str,
    size: int = 32,
    channels: int | None = None,
    train: int | None = None,
    validation: float = 0.1,
    test: float = 0.2,
    stratify: bool = False,
    standardize: bool = False,
    noise: LabelNoise | None = None,
    seed: int = 0,
) -> Splits:
    """A folder with a folder of images for each class; or with folders train, test (and validation) of such folders.

    Images are cut to a square around their centre and resized (bilinear). Transparency is laid on white; palettes, CMYK
    and the like become RGB. Files that are no images or cut short are left out, counted and named.

    Args:
        path: the folder.
        size: pixels of a side.
        channels: 1 (grey) or 3; None: 1 where every image is grey.
        train: as in `table_file`, like validation, test, stratify, noise and seed; of given folders only `train` is read.
        validation: see train.
        test: see train.
        stratify: see train.
        standardize: mean 0 and variance 1 per channel, by the training rows.
        noise: see train.
        seed: see train.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: no images, one class alone, too few rows, too little memory.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(
            f"data.path={path} does not exist or is no folder: give a folder with one folder for each class"
        )
    if channels not in (None, 1, 3):
        raise ValueError(f"data.channels must be 1, 3 or null, not {channels}")
    given = {name: next((folder / w for w in words if (folder / w).is_dir()), None) for name, words in _FOLDERS.items()}
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
    _fits(len(files), size, channels or 3, path)
    pixels, kept = _read(files, size, channels)
    y = np.array([label for _, label, _ in kept], dtype=np.int64)
    if divided:
        split = np.array([name for name, _, _ in kept])
        order = np.random.default_rng([seed, 0]).permutation(len(y))
        rows = {name: order[split[order] == name] for name in NAMES}
        rows["train"] = rows["train"][:train]
    else:
        rows = divide(y, Shares(train, validation, test, stratify, seed))
    data, labels = torch.from_numpy(pixels), torch.from_numpy(y)
    tables = {name: {"x": data[rows[name]], "y": labels[rows[name]]} for name in NAMES}
    places = np.array([file.relative_to(folder).as_posix() for _, _, file in kept])
    splits = Splits(
        folder.name,
        tables["train"],
        tables["validation"],
        tables["test"],
        tuple(classes),
        kind="image",
        source=path,
        origins=origins(places, None, rows),
    )
    return corrupt(standardise(splits) if standardize else splits, noise, seed)


def _fits(count: int, size: int, channels: int, path: str) -> None:
    needed, free = 8 * count * channels * size * size, psutil.virtual_memory().available
    if needed > free:
        raise ValueError(
            f"data.path={path}: {count} images of {size}x{size} take {needed / 2**30:.1f} GiB and {free / 2**30:.1f} are free: set data.size={size // 2}"
        )


def _read(
    files: Iterable[tuple[str, int, Path]], size: int, channels: int | None
) -> tuple[np.ndarray, list[tuple[str, int, Path]]]:
    """[n, C, size, size] in [0, 1], and the files that could be read."""
    pixels, kept, broken, coloured = [], [], [], channels == 3
    for name, label, file in files:
        try:
            with Image.open(file) as opened:
                picture = _square(opened, size)
        except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            broken.append(str(file))
            continue
        coloured = coloured or picture.mode == "RGB"
        pixels.append(picture)
        kept.append((name, label, file))
    if broken:
        log.warning("%d files are no images or cut short, and left out: %s", len(broken), ", ".join(broken[:5]))
    if not kept:
        raise ValueError(f"none of the {len(broken)} image files can be read, {broken[0]} for one")
    mode = "L" if channels == 1 or not coloured else "RGB"
    stacked = np.stack([np.asarray(p.convert(mode), dtype=np.float32) / 255 for p in pixels])
    return (stacked[:, None] if mode == "L" else np.ascontiguousarray(stacked.transpose(0, 3, 1, 2))), kept


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

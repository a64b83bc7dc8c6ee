"""Images of the user's own: a folder of classes, or a table with a column of images."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from metagradient.data.corruption import LabelNoise
from metagradient.data.origins import origins
from metagradient.data.own.formats.files import must_fit
from metagradient.data.own.formats.images import BROKEN, Encoded, Pictures, decoded, pixels
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
    workers: int | None = None,
    noise: LabelNoise | None = None,
    seed: int = 0,
) -> Splits:
    """A folder with a folder of images for each class, or with folders train, test (and validation) of such; or a table.

    A table is a Parquet file, a folder of them or of `save_to_disk`, or a name of the hub, with a column of images (encoded,
    as bytes or {bytes, path}: what `datasets.Image` stores) and one or several that are to be predicted. A source that is divided already keeps its
    splits; a validation or test split that it lacks is drawn from its training rows.

    Images are turned as their EXIF orientation says, cut to a square around their centre and resized (bilinear). Transparency is
    laid on white; palettes, CMYK and the like become RGB. All grey images are divided by one number: bytes by 255, 16 bits
    by 65535; floats are clipped to [0, 1]. Files and rows that are no images or cut short are left out, counted and named. One image is
    decoded at a time; with `workers`, all are decoded once to see that they can be, and again whenever a step reads them.

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
        workers: None: the images are held in memory. A number: they are decoded when they are asked for, by so many
            processes that read ahead (0: by this one).
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
    _check_reading(workers, standardize, found)
    if workers is None:
        must_fit(5 * n * (channels or 3) * size * size, path, f"set data.size={size // 2}, or data.workers=1")
    read = [(place, picture.mode, picture if workers is None else None) for place, picture in _read(found, size)]
    kept = np.array([place for place, _, _ in read], dtype=np.int64)
    mode = "L" if channels == 1 or (channels is None and all(own != "RGB" for _, own, _ in read)) else "RGB"
    targets = dataclasses.replace(found.targets, y=found.targets.y[kept])
    given = None if found.given is None else found.given[kept]
    rows = divide(targets.strata(stratify), Shares(train, validation, test, stratify, seed), given=given)
    labels = torch.from_numpy(targets.y)
    if workers is None:
        held = [picture for _, _, picture in read if picture is not None]
        x: dict[str, Any] = {name: _stacked(held, rows[name], mode, size) for name in NAMES}
    else:
        assert isinstance(found.encoded, Sequence)
        x = {name: Pictures(found.encoded, kept[rows[name]], mode, size, workers) for name in NAMES}
    tables = {name: {"x": x[name], "y": labels[rows[name]]} for name in NAMES}
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


def _check_reading(workers: int | None, standardize: bool, found: _Found) -> None:
    if workers is None:
        return
    if not isinstance(workers, int) or workers < 0:
        raise ValueError(
            f"data.workers is a number of processes, 0 or more, or null, not {workers}: set data.workers=1"
        )
    if standardize:
        raise ValueError("data.standardize=true needs the images in memory: set data.workers=null, or leave it out")
    if not isinstance(found.encoded, Sequence):
        raise ValueError(
            "data.workers reads files of a folder, or rows of save_to_disk, one by one, and those of Parquet files it cannot: set "
            "data.workers=null, or datasets.load_dataset('parquet', data_files=...).save_to_disk(...) once"
        )


@dataclass(frozen=True)
class _Found:
    """Images that are not decoded yet: their contents, places (row numbers, or files' paths in the folder) and targets, n of each.

    Contents that can be asked for one by one are a sequence. `given` is the split of each where the source is divided, `unit` what the places are called.
    """

    encoded: Iterable[Encoded]
    places: np.ndarray
    targets: Targets
    given: np.ndarray | None
    unit: str


def _tabled(path: str, image: str, target: str | Sequence[str], task: Task | None) -> _Found:
    table = read_tabled(path, image, target, task)
    return _Found(table.by_row() or table.encoded(), table.rows, table.targets, table.given, "rows")


def _foldered(path: str) -> _Found:
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(
            f"data.path={path} does not exist or is no folder: give a folder with one folder for each class, or Parquet files (or "
            "owner/name of the Hugging Face hub) with a column of images"
        )
    given = {name: next((folder / w for w in words if (folder / w).is_dir()), None) for name, words in WORDS.items()}
    divided = given["train"] is not None and (given["validation"] is not None or given["test"] is not None)
    roots = {name: root for name, root in given.items() if root is not None} if divided else {"all": folder}
    found = [(name, kind, file) for name, root in roots.items() for kind, file in _images(root)]
    folders = {child.name for root in roots.values() for child in root.iterdir() if child.is_dir()}
    classes = sorted({kind for _, kind, _ in found})
    empty = sorted(name for name in folders.difference(classes) if not _hidden(Path(name)))
    if len(empty) > 1 and not found:
        raise ValueError(f"data.path={path} has no images ({', '.join(_ENDINGS)}) in its folders")
    if len(classes) < 2:
        raise ValueError(
            f"data.path={path} has {len(classes)} folders of classes: it needs one for each class, FOLDER/class/image.png"
        )
    if empty:
        log.warning("folders without images are no classes: %s", ", ".join(empty[:5]))
    files = [(name, classes.index(kind), file) for name, kind, file in found]
    return _Found(
        [file for _, _, file in files],
        np.array([file.relative_to(folder).as_posix() for _, _, file in files]),
        Targets(np.array([label for _, label, _ in files], dtype=np.int64), "classes", tuple(classes)),
        np.array([name for name, _, _ in files], dtype=object) if divided else None,
        "files",
    )


def _images(root: Path) -> Iterator[tuple[str, Path]]:
    """The class and file of each image in a folder of classes, class by class; what programs hide there is none."""
    for kind in sorted(child for child in root.iterdir() if child.is_dir()):
        for file in sorted(kind.rglob("*")):
            if file.suffix.lower() in _ENDINGS and not _hidden(file.relative_to(root)):
                yield kind.name, file


def _hidden(path: Path) -> bool:
    """`.ipynb_checkpoints`, `._cat.jpg` and what else programs leave in a folder."""
    return any(part.startswith(".") or part == "__MACOSX" for part in path.parts)


def _read(found: _Found, size: int) -> Iterator[tuple[int, Image.Image]]:
    """The place among all, and the image, of each that can be read."""
    broken, any_ = [], False
    for place, encoded in enumerate(found.encoded):
        try:
            picture = decoded(encoded, size)
        except BROKEN:
            broken.append(str(found.places[place]))
            continue
        any_ = True
        yield place, picture
    if broken:
        log.warning(
            "%d %s are no images or cut short, and left out: %s", len(broken), found.unit, ", ".join(broken[:5])
        )
    if not any_:
        raise ValueError(f"none of the {len(broken)} {found.unit} is an image that can be read, {broken[0]} for one")


def _stacked(pictures: Sequence[Image.Image], rows: np.ndarray, mode: str, size: int) -> Tensor:
    """Some images as float32 [n, C, size, size] in [0, 1]."""
    x = np.empty((len(rows), len(mode), size, size), dtype=np.float32)
    for out, row in zip(x, rows, strict=True):
        out[...] = pixels(pictures[row], mode)
    return torch.from_numpy(x)

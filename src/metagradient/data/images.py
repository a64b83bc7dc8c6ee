"""Labelled images of a hub set or a local folder, decoded once and kept."""

import io
import json
import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metagradient.data.remote import reach
from metagradient.data.splits import Table
from metagradient.escapes import visible
from metagradient.files import digest, replacing

log = logging.getLogger(__name__)

_FORMAT = "1"  # raise it when what the cache holds changes, so that an old file is not read as a new one
_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


@dataclass(frozen=True)
class Images:
    """Every split of an image set: x uint8 [n, C, H, W] and y int64 [n], and the classes' names."""

    tables: dict[str, Table]
    classes: tuple[str, ...]


def read_images(path: str) -> Images:
    """The images and labels of a local folder of parquet files, or of a hub set.

    Decoding PNGs takes seconds, so the pixels are kept in METAGRADIENT_CACHE (default ~/.cache/metagradient):
    for a folder under its files' names, sizes and times, for a hub set under its name, so that a second run
    needs no network (delete the file to read a changed set anew).

    Raises:
        FileNotFoundError: a folder that is not there, or an unknown hub name.
        ConnectionError: a hub set that cannot be downloaded.
        ValueError: no images, or no labels.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        source = str(folder.resolve())
        files = sorted(folder.rglob("*.parquet"))
        if not files:
            raise FileNotFoundError(_missing(path))
        stats = [(str(f.relative_to(folder)), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    elif _HUB_NAME.fullmatch(path):
        source, stats = path, []
    else:
        raise FileNotFoundError(_missing(path))

    key = digest(json.dumps([_FORMAT, source, stats]))[:16]
    root = Path(os.environ.get("METAGRADIENT_CACHE") or "~/.cache/metagradient").expanduser()
    cached = root / f"{folder.name}-{key}.safetensors"
    if cached.exists():
        return _load(cached)
    if not stats:
        reach(
            path,
            _missing(path),
            "give a local folder, e.g. data.path=../data/mnist, set HF_HUB_OFFLINE=1 if its files are already in the "
            "Hugging Face cache, or use data=digits",
        )
    images = _decode(path, source)
    _save(images, cached)
    return images


def _missing(path: str) -> str:
    return (
        f"data.path={path} does not exist or holds no parquet files; give a local folder or a hub name, "
        "e.g. data.path=ylecun/mnist; without network use data=digits"
    )


def _decode(path: str, source: str) -> Images:
    import datasets

    try:
        splits = datasets.load_dataset(source)
    except FileNotFoundError as error:
        raise FileNotFoundError(_missing(path)) from error
    except ConnectionError as error:
        raise ConnectionError(
            f"data.path={path} is no local folder and not in the Hugging Face cache, and the hub cannot be "
            "reached; give a local folder, e.g. data.path=../data/mnist, or use data=digits"
        ) from error
    except datasets.exceptions.DatasetsError as error:
        raise ValueError(
            f"data.path={path} cannot be read as one data set ({type(error).__name__}); give a folder that holds "
            "the parquet files of one set, e.g. data.path=../data/mnist and not data.path=../data"
        ) from error
    features = next(iter(splits.values())).features
    image = next((name for name in ("image", "img") if name in features), None)
    if image is None or "label" not in features:
        raise ValueError(
            f"data.path={path} needs a column 'image' or 'img' and a column 'label'; "
            f"it has {', '.join(features)}; try for example data.path=ylecun/mnist"
        )
    tables = {}
    for split, rows in splits.items():
        x = _pixels(rows.data.column(image), path, split)
        tables[split] = {"x": torch.from_numpy(x), "y": torch.tensor(rows.data.column("label").to_pylist())}
    names = getattr(features["label"], "names", None)
    if names is None:
        names = [str(c) for c in range(1 + max(int(table["y"].max()) for table in tables.values()))]
    return Images(tables, tuple(names))


def _pixels(column: Any, path: str, split: str) -> np.ndarray:
    """uint8 [n, C, H, W] of an Arrow column of encoded images: one channel if the first is grey, else RGB."""
    from PIL import Image
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import track

    def records() -> Iterator[bytes]:
        for chunk in column.chunks:
            for record in chunk.field("bytes"):
                yield record.as_py()

    with Image.open(io.BytesIO(next(records()))) as first:
        mode = "L" if first.mode in ("1", "L") else "RGB"
        size = first.size
    pixels = np.empty((len(column), len(mode), *size[::-1]), np.uint8)
    console = Console(stderr=True)
    said = escape(visible(f"decoding {path} {split}"))
    bar = track(records(), said, total=len(column), transient=True, console=console)
    for i, record in enumerate(bar):
        with Image.open(io.BytesIO(record)) as picture:
            if picture.size != size:
                raise ValueError(
                    f"data.path={path}: all images must have one size; {split} image {i} has {picture.size}, "
                    f"the first {size}; try for example data.path=ylecun/mnist"
                )
            # [H, W] or [H, W, 3]
            decoded = np.asarray(picture if picture.mode == mode else picture.convert(mode))
        pixels[i] = decoded if decoded.ndim == 2 else decoded.transpose(2, 0, 1)
    return pixels


def _load(file: Path) -> Images:
    from safetensors import safe_open

    tables: dict[str, Table] = {}
    with safe_open(file, framework="pt") as stored:
        classes = tuple(json.loads(stored.metadata()["classes"]))
        for name in stored.keys():  # noqa: SIM118 (a safetensors file is no mapping)
            split, column = name.rsplit(".", 1)
            tables.setdefault(split, {})[column] = stored.get_tensor(name)
    return Images(tables, classes)


def _save(images: Images, file: Path) -> None:
    from safetensors.torch import save_file

    flat = {f"{split}.{column}": t for split, table in images.tables.items() for column, t in table.items()}
    try:
        with replacing(file) as draft:
            save_file(flat, draft, metadata={"classes": json.dumps(images.classes)})
    except OSError as error:
        log.warning("decoded images are not kept: %s; METAGRADIENT_CACHE names another folder", error)

"""Pairs that were found and are not decoded yet: in a folder, a table, or tar files."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from metagradient.data.own.formats.files import schema, values_of
from metagradient.data.own.formats.images import Encoded
from metagradient.data.own.formats.places import find
from metagradient.data.own.reading import given, missing_column, read_parts
from metagradient.data.own.tabled_pictures import content

log = logging.getLogger(__name__)

ENDINGS = (".parquet", ".jsonl", ".ndjson", ".csv", ".tsv")


@dataclass(frozen=True)
class FoundPairs:
    """n pairs.

    Attributes:
        images: files or their contents; None: the pair has none.
        texts: in words.
        places: where they stand: row numbers, or names [n].
        columns: what else is known of each, by name, [n].
        given: train, validation or test of each [n], where the source is divided.
        unit: what the places are called.
    """

    images: Sequence[Encoded]
    texts: Sequence[str]
    places: np.ndarray
    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    given: np.ndarray | None = None
    unit: str = "rows"

    def column(self, name: str, setting: str) -> Sequence[Any]:
        """A column by name.

        Raises:
            ValueError: no such column; all of them are told.
        """
        if name not in self.columns:
            raise missing_column(name, [*self.columns], setting)
        return self.columns[name]


def read_folder(path: str, endings: Sequence[str]) -> FoundPairs:
    """Image files with a text file of the same name beside each, KEY.png and KEY.txt; the folder's name is the column `folder`.

    Raises:
        ValueError: no pair.
    """
    root = Path(path).expanduser()
    images = [
        file
        for file in sorted(root.rglob("*"))
        if file.suffix.lower() in endings and not any(part.startswith(".") for part in file.relative_to(root).parts)
    ]
    texts = [_text_beside(file) for file in images]
    lacking = [str(file.relative_to(root)) for file, text in zip(images, texts, strict=True) if not text]
    if lacking:
        log.warning("%d images without a text beside them are left out: %s", len(lacking), ", ".join(lacking[:5]))
    kept = [(file, text) for file, text in zip(images, texts, strict=True) if text]
    if not kept:
        raise ValueError(f"data.path={path} holds no pairs: give KEY.png (jpg, webp, ...) with KEY.txt beside it")
    files = [file for file, _ in kept]
    return FoundPairs(
        files,
        [text for _, text in kept],
        np.array([file.relative_to(root).as_posix() for file in files]),
        {"folder": [file.relative_to(root).parent.as_posix() for file in files]},
        unit="files",
    )


def _text_beside(file: Path) -> str:
    text = file.with_suffix(".txt")
    return text.read_text(encoding="utf-8", errors="replace").strip() if text.is_file() else ""


def read_table(path: str, image: str, caption: str) -> FoundPairs:
    """Rows with a column of images (encoded, {bytes, path}, or files' names beside the table) and one of texts.

    Rows without a text are left out and counted.

    Raises:
        FileNotFoundError: nothing there.
        ConnectionError: a hub set, and no network.
        ValueError: no such columns, no pair.
    """
    parts = find(path, ENDINGS)
    frame = read_parts(parts, path, without=(image,))
    encoded: list[Encoded] = []
    for part in parts:
        folder = part.rows.parent if isinstance(part.rows, Path) else Path()
        if isinstance(part.rows, Path) and part.rows.suffix != ".parquet":
            if image not in frame.columns:
                raise missing_column(image, list(frame.columns), "data.image")
            continue
        values = _column(part.rows, image)
        encoded += [folder / value if isinstance(value, str) else content(value, folder) for value in values]
    if image in frame.columns:
        root = Path(path).expanduser()
        folder = root if root.is_dir() else root.parent
        encoded = [folder / str(name) if isinstance(name, str) else None for name in frame[image]]
    if caption not in frame.columns:
        raise missing_column(caption, list(frame.columns), "data.caption")
    said = frame[caption].fillna("").astype(str).str.strip()
    there = (said != "").to_numpy()
    if not there.all():
        lacking = np.flatnonzero(~there)
        log.warning("%d pairs without text are left out: rows %s", len(lacking), ", ".join(map(str, lacking[:5])))
    if not there.any():
        raise ValueError(f"data.path={path} holds no pair with a text in data.caption={caption}")
    rows, split = np.flatnonzero(there), given(frame)
    return FoundPairs(
        [encoded[row] for row in rows],
        said[there].tolist(),
        rows,
        {str(name): frame[name][there].tolist() for name in frame.columns if name not in (image, caption)},
        None if split is None else split[there],
    )


def _column(rows: Any, image: str) -> Any:
    names = schema(rows).names
    if image not in names:
        raise missing_column(image, names, "data.image")
    return values_of(rows, image)

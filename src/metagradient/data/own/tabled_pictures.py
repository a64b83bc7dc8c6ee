"""Images that stand in a table: a column of encoded images beside the targets."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from metagradient.data.own.formats.files import schema, values_of
from metagradient.data.own.formats.places import Part, find, is_hub_name, is_saved
from metagradient.data.own.reading import given, missing_column, read_parts
from metagradient.data.own.targets import Targets, labelled
from metagradient.data.splits import Task

if TYPE_CHECKING:
    import datasets

PARQUET = (".parquet",)


@dataclass(frozen=True)
class Tabled:
    """Encoded images by row: the rows that have a target, what it is, and where they are.

    Attributes:
        rows: row numbers [m] of those with a target, ascending.
        targets: of these.
        given: train, validation or test of each [m], by the source; None where it is not divided.
    """

    parts: tuple[Part, ...]
    image: str
    rows: np.ndarray
    targets: Targets
    given: np.ndarray | None

    def encoded(self) -> Iterator[bytes | Path | None]:
        """The file or its content of each row with a target, in order, a few in memory at once; None: the row has none."""
        wanted, number = set(self.rows.tolist()), itertools.count()
        for part in self.parts:
            folder = part.rows.parent if isinstance(part.rows, Path) else Path()
            for value in values_of(part.rows, self.image):
                if next(number) in wanted:
                    yield content(value, folder)

    def by_row(self) -> Contents | None:
        """The same one by one, of Arrow data sets, which are on disk as they are in memory; None for Parquet files."""
        sets = [part.rows for part in self.parts if not isinstance(part.rows, Path)]
        if len(sets) < len(self.parts):
            return None
        return Contents([each.select_columns([self.image]).with_format("arrow") for each in sets], self.rows)


class Contents(Sequence[bytes | Path | None]):
    """Encoded images of Arrow data sets, read when they are asked for.

    Args:
        sets: of one column each, one data set after the other.
        rows: their numbers over all sets [m].
    """

    def __init__(self, sets: Sequence[datasets.Dataset], rows: np.ndarray) -> None:
        self.sets, self.rows = sets, rows
        self.starts = np.cumsum([0, *(len(each) for each in sets)])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: Any) -> Any:
        row = int(self.rows[place])
        part = int(np.searchsorted(self.starts, row, side="right")) - 1
        found = self.sets[part][row - int(self.starts[part])]
        return content(found.column(0)[0].as_py(), Path())


def is_table(path: str) -> bool:
    """Whether `data.path` is a table of images and not a folder of image files."""
    place = Path(path).expanduser()
    if place.is_dir():
        return is_saved(place) or any(place.rglob("*.parquet"))
    return place.suffix in PARQUET if place.is_file() else is_hub_name(path)


def read_tabled(path: str, image: str, target: str | Sequence[str], task: Task | None) -> Tabled:
    """The images and targets of Parquet files, of a folder of `save_to_disk` or of a hub set; no image is read yet.

    Raises:
        FileNotFoundError: nothing there.
        ConnectionError: a hub set, and no network.
        ValueError: no such columns, or an image column that holds something else.
    """
    parts = tuple(find(path, PARQUET))
    for part in parts:
        kind = schema(part.rows)
        if image not in kind.names:
            raise missing_column(image, kind.names, "data.image")
        if not _holds_images(kind.field(image).type):
            raise ValueError(
                f"data.image={image} holds {kind.field(image).type}, and no images: bytes, or {{bytes, path}}, as datasets.Image"
            )
    frame, targets = labelled(read_parts(parts, path, without=(image,)), target, task)
    return Tabled(parts, image, frame.index.to_numpy(), targets, given(frame))


def _holds_images(kind: Any) -> bool:
    import pyarrow.types as types

    if types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 or kind.get_field_index("path") >= 0
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def content(value: Any, folder: Path) -> bytes | Path | None:
    """What a cell of a column of images holds: the bytes, or a file, of a name in `folder`; None where it is empty."""
    if isinstance(value, dict):
        kept, path = value.get("bytes"), value.get("path")
        return kept if kept is not None or path is None else folder / path
    return value

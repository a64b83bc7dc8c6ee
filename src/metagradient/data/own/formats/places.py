"""What stands at `data.path`: a file, a folder of files, a data set of `save_to_disk`, or one of the Hugging Face hub."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from metagradient.data.own.formats.files import ENDINGS, ending
from metagradient.data.own.rows import WORDS
from metagradient.data.remote import reach

if TYPE_CHECKING:
    import datasets

log = logging.getLogger(__name__)

_SAVED = ("dataset_dict.json", "state.json")
_HUB_NAME = re.compile(r"(?P<name>[\w-][\w.-]*/[\w-][\w.-]*)(:(?P<configuration>[\w.-]+))?")


@dataclass(frozen=True)
class Part:
    """Rows that stand together.

    Attributes:
        name: as the source calls it.
        rows: a file, or an Arrow data set.
        split: "train", "validation" or "test"; None where the source is not divided.
    """

    name: str
    rows: Path | datasets.Dataset
    split: str | None = None


def find(path: str, endings: Sequence[str] = ENDINGS, needs: str | None = "train") -> list[Part]:
    """The parts of a data set, in a fixed order.

    A folder's files, and the splits of a `DatasetDict`, are divided by their names (`train-00000-of-00002.parquet`,
    `test/part.csv`, `valid`); names that say neither train, validation nor test are left out where others do, and told.

    Args:
        path: a file, a folder, or `owner/name` or `owner/name:configuration` of the hub.
        endings: of the files that are read.
        needs: the split that must be there where the source is divided.

    Raises:
        FileNotFoundError: nothing there, or nothing of these endings.
        ConnectionError: a hub set, and no network.
        ValueError: another kind of file, files of several kinds, splits none of which is `needs`.
    """
    place = Path(path).expanduser()
    if place.is_file():
        if ending(place) not in endings:
            raise ValueError(
                f"data.path={path}: files are read by their ending, {', '.join(endings)} (and .gz), not '{ending(place)}'"
            )
        return [Part(place.name, place)]
    if place.is_dir():
        return _divided(_saved(place, path) if is_saved(place) else _files(place, path, endings), path, needs)
    named = _HUB_NAME.fullmatch(path)
    if named is None or ending(place) in endings:
        raise FileNotFoundError(_missing(path, endings))
    return _divided(_of_hub(path, named["name"], named["configuration"], _missing(path, endings)), path, needs)


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` wrote a folder."""
    return any((folder / name).is_file() for name in _SAVED)


def is_hub_name(path: str) -> bool:
    """Whether a path reads like `owner/name` or `owner/name:configuration`."""
    return _HUB_NAME.fullmatch(path) is not None


def split_of(name: str) -> str | None:
    """The split that a file's or a split's name says; the last word counts, `train/part_test.csv` is for testing."""
    said = [word for word in re.split(r"[^a-z]+", name.lower()) if word]
    known = {word: split for split, words in WORDS.items() for word in words}
    return next((known[word] for word in reversed(said) if word in known), None)


def _missing(path: str, endings: Sequence[str]) -> str:
    return (
        f"data.path={path} does not exist: give a file ({', '.join(endings)}), a folder of them or of save_to_disk, or owner/name "
        "of the Hugging Face hub"
    )


def _files(folder: Path, path: str, endings: Sequence[str]) -> list[Part]:
    files = [
        file
        for file in sorted(folder.rglob("*"))
        if ending(file) in endings
        and file.is_file()
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    ]
    if not files:
        raise FileNotFoundError(f"data.path={path} holds no {', '.join(endings)} files and no data set of save_to_disk")
    kinds = sorted({ending(file) for file in files})
    if len(kinds) > 1:
        raise ValueError(
            f"data.path={path} holds {' and '.join(kinds)} files: give one of them, or a folder of one kind"
        )
    return [Part(file.relative_to(folder).as_posix(), file) for file in files]


def _saved(folder: Path, path: str) -> list[Part]:
    import datasets  # seconds of import that other data need not pay

    try:
        found = datasets.load_from_disk(str(folder))
    except Exception as error:
        raise ValueError(
            f"data.path={path} is a folder of save_to_disk that cannot be read: {(str(error).splitlines() or [''])[0]}"
        ) from error
    return [Part(name, rows) for name, rows in found.items()] if isinstance(found, dict) else [Part(path, found)]


def _of_hub(path: str, name: str, configuration: str | None, missing: str) -> list[Part]:
    import datasets

    reach(
        name,
        missing,
        "give a local file or folder, or set HF_HUB_OFFLINE=1 if its files are already in the Hugging Face cache",
    )
    try:
        found = datasets.load_dataset(name, configuration)
    except ConnectionError as error:
        raise ConnectionError(
            f"data.path={path} is no local file or folder and not in the Hugging Face cache, and the hub cannot be reached"
        ) from error
    except (ValueError, FileNotFoundError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        # a configuration that must be chosen, a set with code of its own, a set behind a login: the library says which
        said = " ".join(str(error).split())
        raise ValueError(
            f"data.path={path} cannot be loaded from the hub: {said[:300]}; a configuration is given as data.path={name}:NAME"
        ) from error
    return [Part(split, rows) for split, rows in found.items()]


def _divided(parts: list[Part], path: str, needs: str | None) -> list[Part]:
    """The parts with the splits that their names say; of none, or of one alone, with none."""
    splits = [split_of(part.name) for part in parts]
    if len(set(splits)) < 2:
        return parts
    unread = [part.name for part, split in zip(parts, splits, strict=True) if split is None]
    if unread:
        log.warning("data.path=%s: %s not read, since train, validation and test are", path, _listed(unread))
    if needs is not None and needs not in splits:
        use = "training" if needs == "train" else needs
        raise ValueError(
            f"data.path={path} has {_listed(part.name for part in parts)}, of which none is for {use}: give one of them"
        )
    return [Part(p.name, p.rows, split) for p, split in zip(parts, splits, strict=True) if split is not None]


def _listed(names: Iterable[str], most: int = 5) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")

"""WebDataset shards: tar files in which the members of a pair stand side by side, key.jpg and key.txt (or key.json)."""

from __future__ import annotations

import json
import logging
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from metagradient.data.pairs.found import FoundPairs

log = logging.getLogger(__name__)

IMAGES = ("jpg", "jpeg", "png", "webp")
_TEXT, _FIELDS = "txt", "json"


@dataclass(frozen=True)
class Members(Sequence[bytes]):
    """Members of tar files, read when they are asked for.

    Attributes:
        shards: the files.
        shard: of each member [n], the number of its file; start and size: its bytes there.
        keys: [n], for messages.
    """

    shards: tuple[Path, ...]
    shard: np.ndarray
    start: np.ndarray
    size: np.ndarray

    def __len__(self) -> int:
        return len(self.shard)

    def __getitem__(self, place: Any) -> Any:
        with self.shards[self.shard[place]].open("rb") as file:
            file.seek(int(self.start[place]))
            return file.read(int(self.size[place]))


@dataclass
class _Sample:
    image: tuple[int, int] | None = None
    text: str | None = None
    fields: dict[str, Any] = field(default_factory=dict)


def read_shards(path: str, caption: str) -> FoundPairs:
    """The pairs of a tar file, or of a folder of them, in the order of the files; no image is read yet.

    Each file is read once from its beginning to its end: of images the place is kept, of texts what they say. A pair's text
    is its key.txt, or the value `caption` of its key.json; what else the JSON says are columns. Pairs that lack their text or
    image are left out, counted and named, and what stands in a file behind the place where it is cut short.

    Raises:
        ValueError: no pair at all, or a compressed file.
    """
    place = Path(path).expanduser()
    shards = tuple(sorted(place.rglob("*.tar"))) if place.is_dir() else (place,)
    lacking: dict[str, list[str]] = {"text": [], "image": []}
    cut: list[str] = []
    rows: list[tuple[int, int, int]] = []
    names: list[str] = []
    texts: list[str] = []
    fields: list[dict[str, Any]] = []
    for number, shard in enumerate(shards):
        for key, sample in _samples(shard, caption, cut):
            name = f"{shard.name}/{key}"
            if sample.image is None or sample.text is None:
                lacking["image" if sample.image is None else "text"].append(name)
                continue
            rows.append((number, *sample.image))
            names.append(name)
            texts.append(sample.text)
            fields.append(sample.fields)
    for what, which in lacking.items():
        if which:
            log.warning("%d pairs without %s are left out: %s", len(which), what, ", ".join(which[:5]))
    if cut:
        log.warning("%d shards are cut short, and read up to there: %s", len(cut), ", ".join(cut[:5]))
    if not rows:
        raise ValueError(f"data.path={path} holds no pairs: shards have KEY.jpg (png, webp) and KEY.txt (or .json)")
    shard, start, size = np.array(rows, dtype=np.int64).T
    columns = Counter(name for each in fields for name in each)
    return FoundPairs(
        Members(shards, shard, start, size),
        texts,
        np.array(names),
        {name: [each.get(name) for each in fields] for name in columns},
        unit="pairs",
    )


def _samples(shard: Path, caption: str, cut: list[str]) -> Iterator[tuple[str, _Sample]]:
    """The samples of a shard by key, in order."""
    found: dict[str, _Sample] = {}
    try:
        with tarfile.open(shard, "r:") as tar:
            length = shard.stat().st_size
            for member in tar:
                if not member.isfile():
                    continue
                if member.offset_data + member.size > length:
                    raise tarfile.ReadError("unexpected end of data")
                file = PurePosixPath(member.name)
                stem, _, kind = file.name.partition(".")
                if stem == "" or kind.lower() not in (*IMAGES, _TEXT, _FIELDS):
                    continue
                sample = found.setdefault(str(file.parent / stem), _Sample())
                if kind.lower() in IMAGES:
                    sample.image = member.offset_data, member.size
                    continue
                content = tar.extractfile(member)
                assert content is not None
                _say(sample, kind.lower(), content.read(), caption)
            if not _ended(shard, tar.offset):
                raise tarfile.ReadError("unexpected end of data")
    except tarfile.ReadError as error:
        if not found and shard.stat().st_size and "end of data" not in str(error):
            raise ValueError(f"{shard} cannot be read as a tar file ({error}): unpack what is compressed") from error
        cut.append(shard.name)
    yield from found.items()


def _ended(shard: Path, offset: int) -> bool:
    """Whether the block of zeros that ends a tar file stands where the next header would; tarfile does not ask."""
    with shard.open("rb") as file:
        file.seek(offset)
        return file.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)


def _say(sample: _Sample, kind: str, content: bytes, caption: str) -> None:
    """What a text or JSON member says; a JSON that is none says nothing."""
    if kind == _TEXT:
        sample.text = content.decode("utf-8", errors="replace").strip() or None
        return
    try:
        said = json.loads(content)
    except ValueError:
        return
    if isinstance(said, dict):
        sample.fields = {str(name): value for name, value in said.items() if isinstance(value, str | int | float)}
        if sample.text is None and isinstance(said.get(caption), str):
            sample.text = said[caption].strip() or None

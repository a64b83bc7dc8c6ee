"""Pairs of the user's own: from a folder, a table or WebDataset shards to splits."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from metagradient.data.origins import origins
from metagradient.data.own.formats.files import must_fit
from metagradient.data.own.formats.images import BROKEN, Pictures, decoded, pixels
from metagradient.data.own.formats.places import is_hub_name, is_saved
from metagradient.data.own.rows import NAMES, Shares, divide
from metagradient.data.pairs.found import ENDINGS, FoundPairs, read_folder, read_table
from metagradient.data.pairs.shards import read_shards
from metagradient.data.pairs.splits import PairSplits
from metagradient.data.pairs.texts import TextEncoder, encoder_of

if TYPE_CHECKING:
    from PIL import Image

log = logging.getLogger(__name__)

_IMAGE_FILES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")


def image_text_pairs(
    path: str,
    size: int = 32,
    channels: int = 3,
    image: str = "image",
    caption: str = "caption",
    extra: str | None = None,
    extra_words: int = 4,
    style: str | None = None,
    target: str | None = None,
    concept: str | None = None,
    oracle: str | None = None,
    tokens: str = "words",
    vocab: int = 8192,
    length: int = 16,
    same: str = "text",
    train: int | None = None,
    validation: float = 0.1,
    test: float = 0.1,
    group: str | None = None,
    workers: int | None = None,
    check: bool = True,
    seed: int = 0,
) -> PairSplits:
    """Images with texts: a folder, a table (Parquet, JSON Lines, CSV, the hub), or WebDataset shards as DataComp ships them.

    Pairs without a text or with an image that cannot be read are left out, counted and named. The images are treated as in
    `image_folder`.

    Args:
        path: a folder of KEY.png and KEY.txt; a table's file or folder, or a name of the hub; a .tar file or a folder of them.
        size: pixels of a side.
        channels: 1 (grey) or 3.
        image: a table's column of images, or of their files' names.
        caption: a table's column of texts, or the name of the text in a shard's KEY.json.
        extra: a column of lists of words, of which `extra_words` are said behind the captions of the pool (alone: validation
            and test texts are the captions).
        extra_words: see extra.
        style: the column that says where a pair is from (of folders: `folder`).
        target: the style that the model is for: validation and test pairs are of it, and the pool has none of it. None:
            all three are drawn from all styles.
        concept: the column that says what the image shows by one name in all styles. Validation and test pairs of a `target`
            are one a concept; those without one are left out.
        oracle: a column: the pairs of the pool that have something there are those that an insider would choose.
        tokens: "words" (by frequency, small letters), "bpe" (byte-pair encoding; both of the pool's texts), or the path of a
            tokenizer.json.
        vocab: tokens at most.
        length: tokens of a text that are read.
        same: "text": pairs with equal tokens are no negatives of each other; "row": only a pair and its own copies.
        train: at most so many pairs of the pool.
        validation: a share of the pairs (of the target's concepts), or a number; test likewise.
        test: see validation.
        group: a column whose equal values stay together, where there is no `target`.
        workers: None: images are held in memory. A number: they are decoded when a step reads them, by so many processes ahead.
        check: with workers, decode each image once at the start to see that it can be; False: one that cannot ends the run
            when it is read.
        seed: of the division.

    Raises:
        FileNotFoundError: nothing there.
        ConnectionError: a hub set, and no network.
        ValueError: no such column or target, too few pairs, no image that can be read, too little memory.
    """
    if channels not in (1, 3) or same not in ("text", "row"):
        raise ValueError(f"data.channels must be 1 or 3, and data.same text or row, not {channels} and {same}")
    found = _found(path, image, caption)
    if workers is None:
        must_fit(5 * len(found.texts) * channels * size * size, path, f"set data.size={size // 2}, or data.workers=1")
    mode = "L" if channels == 1 else "RGB"
    kept, pictures = _readable(found, size, held=workers is None, check=check)
    columns = {
        name: _words(found.column(column, setting), kept)
        for name, column, setting in (
            ("style", style, "data.style"),
            ("concept", concept, "data.concept"),
            ("group", group, "data.group"),
            ("oracle", oracle, "data.oracle"),
        )
        if column is not None
    }
    captions = [found.texts[i] for i in kept]
    more = [""] * len(kept) if extra is None else _said(found.column(extra, "data.extra"), kept, extra_words)
    rows = _divide(found, kept, columns, captions, target, Shares(train, validation, test, seed=seed))
    pool = [f"{captions[i]} {more[i]}".strip() for i in rows["train"]]
    encoder = encoder_of(tokens, pool, vocab, length)
    texts = {name: pool if name == "train" else [captions[i] for i in rows[name]] for name in NAMES}

    def x(name: str) -> Any:
        if workers is not None:
            return Pictures(found.images, kept[rows[name]], mode, size, workers)
        stacked = [torch.from_numpy(pixels(pictures[i], mode)) for i in rows[name]]
        return torch.stack(stacked) if stacked else torch.empty(0, channels, size, size)

    wanted = columns.get("oracle")
    tables = {name: paired(x(name), texts[name], encoder, same) for name in NAMES}
    return PairSplits(
        Path(path).name,
        tables["train"],
        tables["validation"],
        tables["test"],
        encoder=encoder,
        captions={name: tuple(captions[i] for i in rows[name]) for name in NAMES},
        sources=_by_split(columns.get("style"), rows),
        concepts=_by_split(columns.get("concept"), rows),
        target=target or "",
        oracle=None if wanted is None else torch.tensor([wanted[i] != "" for i in rows["train"]]),
        source=path,
        origins=origins(found.places[kept], None, rows),
    )


def paired(x: Any, texts: Sequence[str], encoder: TextEncoder, same: str = "text") -> dict[str, Tensor]:
    """The fields of some pairs; `same` as in `image_text_pairs`."""
    y = encoder(texts)
    pair = y.unique(dim=0, return_inverse=True)[1] if same == "text" and len(y) else torch.arange(len(y))
    return {"x": x, "y": y, "pair": pair}


def _found(path: str, image: str, caption: str) -> FoundPairs:
    place = Path(path).expanduser()
    if place.suffix == ".tar" or (place.is_dir() and any(place.rglob("*.tar"))):
        if not place.exists():
            raise FileNotFoundError(f"data.path={path} does not exist: give a .tar file, or a folder of them")
        return read_shards(path, caption)
    if place.is_dir() and not is_saved(place) and not any(file.suffix in ENDINGS for file in place.rglob("*")):
        return read_folder(path, _IMAGE_FILES)
    if not place.exists() and not is_hub_name(path):
        raise FileNotFoundError(
            f"data.path={path} does not exist: give a folder of KEY.png and KEY.txt, a table ({', '.join(ENDINGS)}), a .tar file or "
            "a folder of them, or owner/name of the Hugging Face hub"
        )
    return read_table(path, image, caption)


def _readable(found: FoundPairs, size: int, *, held: bool, check: bool) -> tuple[np.ndarray, list[Image.Image]]:
    """The places among all of the pairs whose images can be read [m], and with `held` the images."""
    if not held and not check:
        return np.arange(len(found.texts)), []
    kept, pictures, broken = [], [], []
    for place, encoded in enumerate(found.images):
        try:
            picture = decoded(encoded, size)
        except BROKEN:
            broken.append(str(found.places[place]))
            continue
        kept.append(place)
        if held:
            pictures.append(picture)
    if broken:
        log.warning(
            "%d pairs whose image is missing, no image or cut short are left out: %s %s",
            len(broken),
            found.unit,
            ", ".join(broken[:5]),
        )
    if not kept:
        raise ValueError(f"none of the {len(broken)} pairs has an image that can be read, {broken[0]} for one")
    return np.array(kept, dtype=np.int64), pictures


def _words(values: Sequence[Any], kept: np.ndarray) -> list[str]:
    """A column as words; what is missing is "". (NaN is not equal to itself.)"""
    return ["" if values[i] is None or values[i] != values[i] else str(values[i]) for i in kept]


def _said(values: Sequence[Any], kept: np.ndarray, most: int) -> list[str]:
    """Of each pair the first words of its list."""
    lists = (values[i] for i in kept)
    return [
        " ".join(map(str, list(each)[:most])) if isinstance(each, list | tuple | np.ndarray) else "" for each in lists
    ]


def _divide(
    found: FoundPairs,
    kept: np.ndarray,
    columns: Mapping[str, Sequence[str]],
    captions: Sequence[str],
    target: str | None,
    shares: Shares,
) -> dict[str, np.ndarray]:
    """Rows of each split among the pairs that are kept."""
    if target is None:
        import pandas as pd

        group = None if "group" not in columns else pd.Series(columns["group"], name="group")
        given = None if found.given is None else found.given[kept]
        return divide(np.zeros(len(kept), dtype=np.int64), shares, group=group, given=given)
    if "style" not in columns:
        raise ValueError(f"data.target={target} is a style: name the column of styles, data.style=...")
    style = np.array(columns["style"], dtype=object)
    if target not in style:
        raise ValueError(f"data.target={target}: no such style; there are {', '.join(sorted(set(style))[:20])}")
    own, pool = np.flatnonzero(style == target), np.flatnonzero(style != target)
    if not len(pool):
        raise ValueError(f"all pairs are of data.target={target}: the pool would be empty")
    order = np.random.default_rng([shares.seed, 0]).permutation(len(own))
    concepts = columns.get("concept", captions)
    first: dict[str, int] = {}
    for row in own[order]:
        if concepts[row]:
            first.setdefault(concepts[row], int(row))
    if (left := len(own) - len(first)) > 0:
        log.info(
            "%d of %d pairs of %s are left out: without a concept, or of one that is there", left, len(own), target
        )
    rows = np.array(list(first.values()), dtype=np.int64)
    sizes = {
        name: round(wanted * len(rows)) if wanted < 1 else int(wanted)
        for name, wanted in (("validation", shares.validation), ("test", shares.test))
    }
    if sum(sizes.values()) > len(rows) or min(sizes.values()) < 1:
        raise ValueError(
            f"data.validation={shares.validation} and data.test={shares.test} ask for {sum(sizes.values())} of the {len(rows)} "
            f"concepts of {target}: set data.validation=0.5 data.test=0.5"
        )
    drawn = pool[np.random.default_rng([shares.seed, 1]).permutation(len(pool))]
    return {
        "train": drawn[: shares.train],
        "validation": rows[: sizes["validation"]],
        "test": rows[sizes["validation"] :][: sizes["test"]],
    }


def _by_split(column: Sequence[str] | None, rows: Mapping[str, np.ndarray]) -> dict[str, tuple[str, ...]]:
    return {name: tuple("" if column is None else column[i] for i in rows[name]) for name in NAMES}

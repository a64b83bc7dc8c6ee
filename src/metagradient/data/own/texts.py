"""Labelled texts of the user's own, as the most frequent words of the training rows."""

from __future__ import annotations

from pathlib import Path

import torch

from metagradient.data.corruption import LabelNoise
from metagradient.data.labelled_sentences import SentenceSplits, tokens, vocabulary
from metagradient.data.origins import origins
from metagradient.data.own.reading import column, labelled, read_frame
from metagradient.data.own.rows import NAMES, Shares, divide
from metagradient.data.own.verbatim import identifiers
from metagradient.data.splits import corrupt


def text_file(
    path: str,
    target: str,
    text: str = "text",
    train: int | None = None,
    validation: float = 0.1,
    test: float = 0.2,
    split: str | None = None,
    group: str | None = None,
    id: str | None = None,
    stratify: bool = False,
    length: int = 64,
    words: int = 2000,
    noise: LabelNoise | None = None,
    seed: int = 0,
) -> SentenceSplits:
    """The rows of a file with a column of texts and one of classes.

    Args:
        path: a CSV, TSV, Parquet or JSON Lines file.
        target: the column of classes.
        text: the column of texts, divided at white space.
        length: words of a text that are read.
        words: size of the vocabulary, padding and the unknown word included; it is made of the training rows alone.
        train: as in `table_file`, like validation, test, split, group, id, stratify, noise and seed.
        validation: see train.
        test: see train.
        split: see train.
        group: see train.
        id: see train.
        stratify: see train.
        noise: see train.
        seed: see train.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no such column, too few rows or words.
    """
    frame, y, classes = labelled(read_frame(path), target)
    said = [str(s).split()[:length] for s in column(frame, text, "data.text").fillna("")]
    rows = divide(
        y,
        Shares(train, validation, test, stratify, seed),
        None if split is None else column(frame, split, "data.split"),
        None if group is None else column(frame, group, "data.group"),
    )
    known = vocabulary([said[i] for i in rows["train"]], words)
    labels = torch.from_numpy(y)
    tables = {
        name: {"x": tokens([said[i] for i in rows[name]], known, length), "y": labels[rows[name]]} for name in NAMES
    }
    splits = SentenceSplits(
        Path(path).name,
        tables["train"],
        tables["validation"],
        tables["test"],
        classes,
        kind="text",
        vocabulary=known,
        source=path,
        columns=(text,),
        origins=origins(frame.index.to_numpy(), None if id is None else identifiers(path, frame, id), rows),
    )
    noisy = corrupt(splits, noise, seed)
    assert isinstance(noisy, SentenceSplits)
    return noisy

"""Labelled texts of the user's own, as the most frequent words of the training rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from metagradient.data.corruption import LabelNoise
from metagradient.data.labelled_sentences import SentenceSplits, tokens, vocabulary
from metagradient.data.origins import origins
from metagradient.data.own.formats.files import must_fit
from metagradient.data.own.inspection import inspect
from metagradient.data.own.reading import column, given, read_frame
from metagradient.data.own.rows import NAMES, Shares, divide
from metagradient.data.own.targets import labelled
from metagradient.data.own.verbatim import identifiers
from metagradient.data.splits import Task, corrupt


def text_file(
    path: str,
    target: str | Sequence[str],
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
    task: Task | None = None,
    noise: LabelNoise | None = None,
    seed: int = 0,
) -> SentenceSplits:
    """The rows of a table with a column of texts and one or several that are to be predicted.

    Args:
        path: as in `table_file`: a file, a folder, or a name of the hub.
        target: as in `table_file`, like task.
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
        task: see target.
        noise: see train.
        seed: see train.

    Raises:
        FileNotFoundError: no such file.
        ConnectionError: a hub set, and no network.
        ValueError: no such column, too few rows or words, too little memory.
    """
    frame, targets = labelled(read_frame(path), target, task)
    if text in ([target] if isinstance(target, str) else target):
        raise ValueError(f"data.text={text} is data.target as well: name the column of texts")
    texts = column(frame, text, "data.text").fillna("")
    rows = divide(
        targets.strata(stratify),
        Shares(train, validation, test, stratify, seed),
        None if split is None else column(frame, split, "data.split"),
        None if group is None else column(frame, group, "data.group"),
        given(frame),
    )

    def said(name: str) -> Iterator[list[str]]:
        return (str(each).split()[:length] for each in texts.iloc[rows[name]])

    known = vocabulary(said("train"), words)
    labels = torch.from_numpy(targets.y)
    must_fit(8 * len(frame) * length, path, "set a smaller data.length, or read fewer rows")
    tables = {
        name: {"x": tokens(said(name), known, length, len(rows[name])), "y": labels[rows[name]]} for name in NAMES
    }
    splits = SentenceSplits(
        Path(path).name,
        tables["train"],
        tables["validation"],
        tables["test"],
        targets.names,
        kind="text",
        task=targets.task,
        vocabulary=known,
        source=path,
        columns=(text,),
        origins=origins(frame.index.to_numpy(), None if id is None else identifiers(path, frame, id), rows),
    )
    inspect(splits)
    noisy = corrupt(splits, noise, seed)
    assert isinstance(noisy, SentenceSplits)
    return noisy

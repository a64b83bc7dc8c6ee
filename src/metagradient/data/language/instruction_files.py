"""Instruction data of the user's own: sources mixed, tokenised, with responses as targets, and held-out questions."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metagradient.data.language.byte_pair import train_byte_pair
from metagradient.data.language.conversations import ChatTokenizer, table, without_end
from metagradient.data.language.drawing import distinct, divided, drawn_apart, take_all, take_in_turn
from metagradient.data.language.fitting import Candidate, Fitted, Fitting
from metagradient.data.language.noise import AnswerNoise
from metagradient.data.language.pretrained_tokenizer import load_tokenizer
from metagradient.data.language.sources import Place, places, read
from metagradient.data.language.splits import AnswerTruth, TextSplits
from metagradient.data.origins import Origin
from metagradient.data.own.rows import Shares

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TokenizerSettings:
    """Which tokenizer reads the texts.

    Attributes:
        name: a folder, a GGUF file or a name of the Hugging Face hub; None: byte pairs, trained on the pool.
        vocab: the most tokens of byte pairs.
        chat: use the named tokenizer's chat template where it has one.
    """

    name: str | None = None
    vocab: int = 512
    chat: bool = True

    def load(self, rows: Sequence[Candidate]) -> ChatTokenizer:
        """The tokenizer that is named, or one that is trained on some rows.

        Raises:
            FileNotFoundError: no such file or folder.
            ValueError: no tokenizer there, or a vocabulary without room for bytes.
        """
        if self.name is not None:
            return load_tokenizer(str(self.name), self.chat)
        return train_byte_pair((turn.content for row in rows for turn in row.conversation.turns), self.vocab)


def instructions(
    path: str | Sequence[Any] | Mapping[str, Any],
    layout: str | None = None,
    columns: Mapping[str, str] | None = None,
    target: str | Mapping[str, Any] | None = None,
    train: int | None = None,
    validation: float = 0.1,
    test: float = 0.2,
    length: int = 256,
    tokenizer: TokenizerSettings | None = None,
    id: str | None = None,
    noise: AnswerNoise | None = None,
    seed: int = 0,
) -> TextSplits:
    """Prompts and responses: a pool to train on, of one source or several, and held-out questions.

    Only responses are targets, the token that ends them included; of plain texts every token. Rows that are longer than
    `length`, or have nothing to be predicted, are left out, counted and named; no row is ever cut.

    Args:
        path: a CSV, TSV, Parquet or JSON Lines file, a folder of them or of `save_to_disk`, a name of the Hugging Face hub, or
            {path, layout, columns, name, share, rows, split} (`sources.Place`), or a list of either.
        layout: of all sources that do not say otherwise (`layouts.LAYOUTS`); None: what their columns fit.
        columns: the files' names of the layout's columns, {prompt: question}.
        target: a source of held-out questions, which validation and test rows come from; multiple choice questions have their
            options in `TextSplits.choices`. None: they come from the pool.
        train: rows to train on; None: all.
        validation: a share of the rows of the target (of the pool, without one), or a number.
        test: see validation.
        length: the most tokens of a row.
        tokenizer: None: byte pairs, trained on the pool.
        id: a column that names rows, which results then carry; all sources must have it.
        noise: on training responses.
        seed: of the rows, the split and the noise.

    Raises:
        FileNotFoundError: no such file.
        ConnectionError: a hub set, and no network.
        ValueError: no layout that fits, missing columns, too few rows that can be used, a tokenizer that cannot be loaded.
    """
    if type(length) is not int or length < 2:
        raise ValueError(f"data.length is a number of tokens >= 2, not {length}: set data.length=256")
    shares = Shares(train, validation, test, seed=seed)
    wanted = places(path, "data.path", layout=layout, columns=columns)
    questions = [] if target is None else places(target, "data.target")
    rng = np.random.default_rng([seed, 0])
    pool = [read(place, id, "train" if questions else None, rng) for place in wanted]
    asked = [read(place, id, "test", rng) for place in questions]
    names = distinct([rows.name for rows in (*pool, *asked)])
    drawn = drawn_apart(pool, asked, rng) if asked else divided(pool, shares)

    encoder = (tokenizer or TokenizerSettings()).load(drawn["train"])
    held_out = Fitting(encoder.encode, length, names, options=True)
    training = Fitting(encoder.encode, length, names, options=False)
    found = take_in_turn(held_out, drawn["test"], shares) if asked else take_all(held_out, drawn)
    caps = {i: place.rows for i, place in enumerate(wanted) if place.rows is not None}
    found["train"], _ = training.take(drawn["train"], train, caps)
    for fitting, split in ((training, "train"), (held_out, "test")):
        fitting.tell()
        if not found[split]:
            raise ValueError(f"no row of {split} can be used: {fitting.reasons or 'there is none'}")
    truth = None
    if noise is not None and noise.fraction:
        found["train"], truth = noise.apply(found["train"], training, np.random.default_rng([seed, 1]))
    _tell_copies(found)
    return _splits(found, encoder, names, truth, [*wanted, *questions], len(wanted))


def _splits(
    found: Mapping[str, Sequence[Fitted]],
    encoder: ChatTokenizer,
    names: Sequence[str],
    truth: AnswerTruth | None,
    every: Sequence[Place],
    pool: int,
) -> TextSplits:
    """The tables of the rows that were drawn, all of one width; the first `pool` sources are those of the training rows."""
    width = max(len(each) for rows in found.values() for row in rows for each in row.encodings)
    tables = {split: table([row.own for row in rows], width) for split, rows in found.items()}
    choosing = [s for s in ("validation", "test") if found[s] and all(len(row.encodings) > 1 for row in found[s])]
    return TextSplits(
        " + ".join(names[:pool]),
        tables["train"],
        tables["validation"],
        tables["test"],
        encoder,
        torch.tensor([row.candidate.source for row in found["train"]]),
        torch.tensor([row.candidate.source for row in found["test"]]),
        tuple(names),
        truth,
        {split: _choices(found[split], width) for split in choosing},
        files=tuple(place.path for place in every),
        origins={split: _origin(rows) for split, rows in found.items()},
    )


def _tell_copies(found: Mapping[str, Sequence[Fitted]]) -> None:
    """Say how many held-out rows are training rows as well."""
    known = {row.candidate.conversation.turns for row in found["train"]}
    held_out = [row for split in ("validation", "test") for row in found[split]]
    if leaked := sum(row.candidate.conversation.turns in known for row in held_out):
        log.warning(
            "%d of %d validation and test rows are copies of training rows, which flatters what is measured on them",
            leaked,
            len(held_out),
        )


def _choices(rows: Sequence[Fitted], width: int) -> dict[str, Tensor]:
    """Every option of every question as a row, the question's place in the split, and whether it is the right one.

    The token that ends them all is no part of an option.
    """
    options = [
        (q, row.candidate.conversation.right == o, e)
        for q, row in enumerate(rows)
        for o, e in enumerate(without_end(row.encodings))
    ]
    numbers = {"question": torch.tensor([q for q, _, _ in options]), "right": torch.tensor([r for _, r, _ in options])}
    return table([each for _, _, each in options], width) | numbers


def _origin(rows: Sequence[Fitted]) -> Origin:
    ids = [row.candidate.id for row in rows]
    named = None if any(each is None for each in ids) else np.array(ids, dtype=str)
    return Origin(np.array([row.candidate.place for row in rows], dtype=np.int64), named)

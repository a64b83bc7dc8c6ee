"""Prompts and responses before they are tokens, and the tables of them afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor

from metagradient.data.language.tokenizers import Tokenizer

IGNORED = -100
"""The label of a token that is no target, as in `torch.nn.functional.cross_entropy`."""

Role = Literal["system", "user", "assistant", "text"]


@dataclass(frozen=True)
class Turn:
    """What one side says. Targets are the tokens of the assistant, and of a plain "text", which no template surrounds."""

    role: Role
    content: str


@dataclass(frozen=True)
class Conversation:
    """Turns, of which the last is a response or a plain text.

    Attributes:
        turns: in their order.
        options: of a multiple choice question, the responses to choose from.
        right: the place of the right one, which the last turn holds.
    """

    turns: tuple[Turn, ...]
    options: tuple[str, ...] = ()
    right: int = 0

    @property
    def response(self) -> str:
        """What the last turn says."""
        return self.turns[-1].content

    def answered(self, response: str) -> Conversation:
        """The same with another response."""
        return replace(self, turns=(*self.turns[:-1], replace(self.turns[-1], content=response)))


def asked(prompt: str, response: str) -> Conversation:
    """A prompt of the user and its response."""
    return Conversation((Turn("user", prompt), Turn("assistant", response)))


@dataclass(frozen=True)
class Encoded:
    """A row's tokens, and which of them are to be predicted."""

    tokens: tuple[int, ...]
    targets: tuple[bool, ...]

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def labels(self) -> list[int]:
        """The tokens that are targets, `IGNORED` elsewhere and in the first place, which nothing predicts."""
        return [t if on and j else IGNORED for j, (t, on) in enumerate(zip(self.tokens, self.targets, strict=True))]


def without_end(options: Sequence[Encoded]) -> Sequence[Encoded]:
    """Options without the token that ends each of them, where there is one and something remains to be predicted."""
    if len({each.tokens[-1] for each in options}) > 1 or min(sum(each.targets) for each in options) < 2:
        return options
    return [Encoded(each.tokens[:-1], each.targets[:-1]) for each in options]


class ChatTokenizer(Tokenizer, Protocol):
    """A tokenizer that knows how turns become one row."""

    def encode(self, turns: Sequence[Turn]) -> Encoded:
        """The turns with all special tokens, each once, the end of the last response among the targets."""


def table(rows: Sequence[Encoded], length: int) -> dict[str, Tensor]:
    """tokens, mask and labels [n, length] of n rows, padded at their ends by token 0."""
    n = len(rows)
    tokens, labels = torch.zeros((n, length), dtype=torch.int64), torch.full((n, length), IGNORED)
    mask = torch.zeros((n, length), dtype=torch.bool)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = torch.tensor(row.tokens)
        labels[i, : len(row)] = torch.tensor(row.labels)
        mask[i, : len(row)] = True
    return {"tokens": tokens, "mask": mask, "labels": labels}

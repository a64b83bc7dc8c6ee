"""What results need of a tokenizer, and the simplest one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

_CUT = "\N{REPLACEMENT CHARACTER}"


class Tokenizer(Protocol):
    """Numbers 0, 1, ..., size - 1 as text."""

    @property
    def size(self) -> int:
        """Different tokens."""

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of some tokens, special ones included."""

    def pieces(self, tokens: Sequence[int]) -> list[str]:
        """One string for each token, which together are `decode(tokens)`."""


def pieces_of(decode: Callable[[Sequence[int]], str], tokens: Sequence[int]) -> list[str]:
    """What each token adds to the text of those before it.

    A character that takes several tokens is the last one's; the others are empty.
    """
    found, said = [], ""
    for end in range(1, len(tokens) + 1):
        text = decode(tokens[:end])
        whole = not text.endswith(_CUT) or end == len(tokens)
        found.append(text[len(said) :] if whole else "")
        said = text if whole else said
    return found


@dataclass(frozen=True)
class Characters:
    """Single characters, by their place in `vocabulary`."""

    vocabulary: str

    @property
    def size(self) -> int:
        """Different characters."""
        return len(self.vocabulary)

    def decode(self, tokens: Sequence[int]) -> str:
        """The characters as one string."""
        return "".join(self.pieces(tokens))

    def pieces(self, tokens: Sequence[int]) -> list[str]:
        """The characters."""
        return [self.vocabulary[i] for i in tokens]

"""Which rows can be used, in the order in which they are drawn; what is left out is counted and named."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from metagradient.data.language.conversations import Conversation, Encoded, Turn
from metagradient.data.own.targets import named_rows

log = logging.getLogger(__name__)

Encode = Callable[[Sequence[Turn]], Encoded]


@dataclass(frozen=True)
class Candidate:
    """A row that may be used: its conversation, the number of its source, its place there, and the user's name of it."""

    conversation: Conversation
    source: int
    place: int
    id: str | None = None


@dataclass(frozen=True)
class Fitted:
    """A row that is used, as tokens: of a multiple choice question one encoding for each option, otherwise one."""

    candidate: Candidate
    encodings: tuple[Encoded, ...]

    @property
    def own(self) -> Encoded:
        """The encoding of the row's own response."""
        return self.encodings[self.candidate.conversation.right if len(self.encodings) > 1 else 0]


class Fitting:
    """Takes rows in turn, until there are enough.

    Args:
        encode: turns as tokens.
        length: the most tokens of a row.
        names: of the sources.
        options: encode every option of a question, all of which must fit.
    """

    def __init__(self, encode: Encode, length: int, names: Sequence[str], options: bool) -> None:
        self.encode, self.length, self.names, self.options = encode, length, names, options
        self.left: dict[tuple[str, int], list[int]] = defaultdict(list)
        self.seen = Counter[int]()

    def take(
        self, candidates: Sequence[Candidate], wanted: int | None, caps: Mapping[int, int] | None = None
    ) -> tuple[list[Fitted], Sequence[Candidate]]:
        """The first `wanted` rows that can be used (None: all), and the candidates behind them.

        caps: the most rows of a source.
        """
        taken: list[Fitted] = []
        room = Counter(caps or {})
        for i, candidate in enumerate(candidates):
            if wanted is not None and len(taken) == wanted:
                return taken, candidates[i:]
            if caps and candidate.source in caps and not room[candidate.source]:
                continue
            self.seen[candidate.source] += 1
            fitted = self.of(candidate)
            if isinstance(fitted, str):
                self.left[fitted, candidate.source].append(candidate.place)
            else:
                room[candidate.source] -= 1
                taken.append(fitted)
        return taken, ()

    def of(self, candidate: Candidate) -> Fitted | str:
        """The row as tokens, or why it cannot be used."""
        said = candidate.conversation
        if not said.turns or not said.response.strip():
            return "have an empty response"
        answers = [said.answered(option) for option in said.options] if self.options and said.options else [said]
        encodings = tuple(self.encode(each.turns) for each in answers)
        if (longest := max(map(len, encodings))) > self.length:
            first = encodings[0].targets.index(True) if True in encodings[0].targets else longest
            filled = first >= self.length
            return (
                f"have a prompt that fills data.length={self.length}"
                if filled
                else f"are longer than data.length={self.length} tokens"
            )
        if not all(any(label >= 0 for label in each.labels) for each in encodings):
            return "have no token to be predicted"
        return Fitted(candidate, encodings)

    def tell(self) -> None:
        """One line for each source and reason of rows that were left out."""
        for (why, source), rows in self.left.items():
            name, named = self.names[source], named_rows(np.sort(rows))
            log.warning("%s: %d of %d rows %s (%s): left out", name, len(rows), self.seen[source], why, named)

    @property
    def reasons(self) -> str:
        """What rows were left out for, with their number; empty where none was."""
        counts = Counter[str]()
        for (why, _), rows in self.left.items():
            counts[why] += len(rows)
        return ", ".join(f"{n} {why}" for why, n in counts.items())

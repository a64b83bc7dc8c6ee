"""A pool of instructions that the package makes itself: sums, strings, definitions, and noise of two kinds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from metagradient.data.language.byte_pair import train_byte_pair
from metagradient.data.language.conversations import Conversation, asked, table
from metagradient.data.language.splits import AnswerTruth, TextSplits

_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_WORDS = ("pears", "coins", "birds", "books", "cups", "stones", "boats", "lamps")
_NAMES = ("Ann", "Bob", "Tim", "Eve", "Max", "Sue")
_KINDS = ("animal", "fruit", "tool", "colour", "river", "game")
_POOL = (
    "add {a} and {b}",
    "{a} plus {b}",
    "what is {a} and {b}?",
    "{name} has {a} {word} and finds {b}. how many {word}?",
    "{name} has {a} {word} and buys {b}. how many {word}?",
    "there are {a} {word} and {name} gets {b}. how many {word}?",
    "{name} sees {a} {word} and {b} more. how many?",
)
_CORPUS = (
    "{a} + {b} =",
    "the sum of {a} and {b}",
    "{a} {word} and {b} {word} make",
    "{name}: {a} and {b}?",
    "count {a} {word}, then {b}. total?",
)
_TARGET = ("{name} has {a} {word} and gets {b} more. how many {word}?",)
_SHARES: Mapping[str, float] = {
    "sums": 0.25,
    "wrong sums": 0.25,
    "strings": 0.15,
    "definitions": 0.15,
    "gibberish": 0.2,
}
_WRONG = ("wrong sums", "gibberish")

_Make = Callable[[np.random.Generator], tuple[Conversation, str]]


def made_instructions(
    train: int = 800,
    validation: int = 120,
    test: int = 200,
    vocab: int = 384,
    seed: int = 0,
    target: Literal["stories", "pool"] = "stories",
    largest: int = 5,
    corpus: int = 0,
) -> TextSplits:
    """Instructions of five sources and, as validation and test rows, a task that none of them words alike.

    The target is the sum of two small numbers, told as a story. In the pool a quarter each are sums in other words, and
    such sums with another number for an answer; the rest are questions about strings, definitions of made-up words, and
    gibberish. The truth says which responses are wrong: those of the second source, and gibberish.

    Args:
        train: rows of the pool.
        validation: rows of the target.
        test: other rows of the target.
        vocab: tokens of a byte-pair tokenizer, trained on the pool.
        seed: of the rows.
        target: "stories" as above, or "pool": other rows of the pool's right sources, whose numbers `query_sources` tells.
        largest: number in a sum; from 1 to 9.
        corpus: right sums in wordings that neither the pool nor the target has, for a model to have read before; 0: none.

    Raises:
        ValueError: no such target, too few rows for every source, more than half of the target's different rows, numbers out of
            range, or a vocabulary without room for bytes.
    """
    for split, size, least in (("train", train, 20), ("validation", validation, 1), ("test", test, 1)):
        if not isinstance(size, int) or size < least:
            raise ValueError(f"data.{split} must be an integer >= {least}, not {size}: set data.{split}=200")
    if target not in ("stories", "pool"):
        raise ValueError(f"data.target must be stories or pool, not '{target}': set data.target=stories")
    if not isinstance(largest, int) or not 1 <= largest <= 9:
        raise ValueError(f"data.largest must be an integer from 1 to 9, not {largest}: set data.largest=5")
    if not isinstance(corpus, int) or corpus < 0:
        raise ValueError(f"data.corpus must be an integer >= 0, not {corpus}: set data.corpus=800")
    rng, sums = np.random.default_rng(seed), _Sums(largest)
    if target == "stories" and validation + test > (most := sums.most_stories):
        raise ValueError(
            f"data.validation={validation} and data.test={test} are more than {most} rows: set data.test={max(1, most - validation)}"
        )
    makers, counts = _makers(sums), _counts(train)
    rows = [(s, *makers[name](rng)) for s, name in enumerate(_SHARES) for _ in range(counts[name])]
    rows = [rows[i] for i in rng.permutation(train)]
    held_out = validation + test
    told = [(-1, row) for row in sums.stories(held_out, rng)] if target == "stories" else _right(held_out, makers, rng)
    read = [sums.told(_CORPUS, rng) for _ in range(corpus)]
    tokenizer = train_byte_pair((turn.content for _, row, _ in rows for turn in row.turns), vocab, "data.vocab")
    pool, asked, before = (
        [tokenizer.encode(row.turns) for row in each] for each in ([r for _, r, _ in rows], [r for _, r in told], read)
    )
    length = max(map(len, [*pool, *asked, *before]))
    sources = torch.tensor([source for source, _, _ in rows])
    wrong = torch.isin(sources, torch.tensor([list(_SHARES).index(name) for name in _WRONG]))
    return TextSplits(
        "made_instructions",
        table(pool, length),
        table(asked[:validation], length),
        table(asked[validation:], length),
        tokenizer,
        sources,
        torch.tensor([source for source, _ in told[validation:]]),
        tuple(_SHARES),
        AnswerTruth(wrong, tuple(right for _, _, right in rows)),
        corpus=table(before, length) if before else None,
    )


def _counts(rows: int) -> dict[str, int]:
    counts = {name: round(share * rows) for name, share in _SHARES.items()}
    counts["gibberish"] += rows - sum(counts.values())
    return counts


def _right(rows: int, makers: Mapping[str, _Make], rng: np.random.Generator) -> list[tuple[int, Conversation]]:
    """So many rows of the sources without wrong responses, in equal shares, each with its source."""
    right = [(s, name) for s, name in enumerate(_SHARES) if name not in _WRONG]
    return [(s, makers[name](rng)[0]) for s, name in (right[i % len(right)] for i in range(rows))]


@dataclass(frozen=True)
class _Sums:
    """Sums of two numbers from 0 to `largest`."""

    largest: int

    @property
    def most_stories(self) -> int:
        """Half of the different rows of the target."""
        return len(_NAMES) * len(_WORDS) * (self.largest + 1) ** 2 // 2

    def told(self, wordings: tuple[str, ...], rng: np.random.Generator) -> Conversation:
        a, b = (int(x) for x in rng.integers(self.largest + 1, size=2))
        said = str(rng.choice(wordings)).format(a=a, b=b, name=rng.choice(_NAMES), word=rng.choice(_WORDS))
        return asked(said, str(a + b))

    def stories(self, rows: int, rng: np.random.Generator) -> list[Conversation]:
        """So many different rows of the target."""
        found: dict[Conversation, None] = {}
        while len(found) < rows:
            found[self.told(_TARGET, rng)] = None
        return list(found)

    def wrong(self, rng: np.random.Generator) -> tuple[Conversation, str]:
        row = self.told(_POOL, rng)
        right = row.response
        others = [str(x) for x in range(2 * self.largest + 1) if str(x) != right]
        return row.answered(str(rng.choice(others))), right


def _word(rng: np.random.Generator, least: int, most: int) -> str:
    return "".join(rng.choice(list(_LETTERS), size=rng.integers(least, most + 1)))


def _string(rng: np.random.Generator) -> tuple[Conversation, str]:
    word = _word(rng, 3, 5)
    kind = int(rng.integers(5))
    times = int(rng.integers(2, 4))
    prompt, response = (
        (f"reverse {word}", word[::-1]),
        (f"write {word} in capitals", word.upper()),
        (f"what is the first letter of {word}?", word[0]),
        (f"how many letters has {word}?", str(len(word))),
        (f"write {word[:2]} {times} times", word[:2] * times),
    )[kind]
    return asked(prompt, response), ""


def _dictionary(words: int) -> dict[str, str]:
    """Made-up words and what each is, the same in every run."""
    rng = np.random.default_rng(7)
    return {_word(rng, 4, 6): _KINDS[i % len(_KINDS)] for i in range(words)}


_MEANT = _dictionary(40)


def _definition(rng: np.random.Generator) -> tuple[Conversation, str]:
    word = str(rng.choice(list(_MEANT)))
    wording = str(rng.choice(("what is a {}?", "define {}", "{} is a kind of")))
    return asked(wording.format(word), _MEANT[word]), ""


def _gibberish(rng: np.random.Generator) -> tuple[Conversation, str]:
    prompt = " ".join(_word(rng, 2, 5) for _ in range(rng.integers(2, 5)))
    return asked(prompt, _word(rng, 1, 4)), ""


def _makers(sums: _Sums) -> Mapping[str, _Make]:
    return {
        "sums": lambda rng: (sums.told(_POOL, rng), ""),
        "wrong sums": sums.wrong,
        "strings": _string,
        "definitions": _definition,
        "gibberish": _gibberish,
    }

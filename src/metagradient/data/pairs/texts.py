"""Texts as token numbers: words by their frequency, pieces of words, or a tokenizer of somebody's."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PADDING, UNKNOWN = 0, 1
_WORD = re.compile(r"[^\W_]+")


class TextEncoder(Protocol):
    """Texts -> tokens.

    Attributes:
        vocab: the number of tokens, the padding 0 included.
        length: tokens of a text that are read.
    """

    @property
    def vocab(self) -> int: ...

    @property
    def length(self) -> int: ...

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """int64 [n, length], 0 behind a text's end."""
        ...


def words_of(text: str) -> list[str]:
    """Its words in small letters: runs of letters and digits."""
    return _WORD.findall(text.lower())


@dataclass(frozen=True)
class Words:
    """The words of a vocabulary, 2, 3, ... by frequency; 1 stands for every other word."""

    words: tuple[str, ...]
    length: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "_number", {word: i + 2 for i, word in enumerate(self.words)})

    @staticmethod
    def of(texts: Iterable[str], vocab: int, length: int) -> Words:
        """The most frequent words of these texts, so that there are at most `vocab` tokens."""
        counts = Counter(word for text in texts for word in words_of(text))
        ranked = sorted(counts, key=lambda word: (-counts[word], word))
        return Words(tuple(ranked[: vocab - 2]), length)

    @property
    def vocab(self) -> int:
        """Words, padding and the unknown one."""
        return len(self.words) + 2

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """int64 [n, length]."""
        number = self._number  # type: ignore[attr-defined]
        return _padded([[number.get(word, UNKNOWN) for word in words_of(text)] for text in texts], self.length)


@dataclass(frozen=True)
class Pieces:
    """What a tokenizer of the package `tokenizers` gives, one higher, so that 0 is the padding."""

    tokenizer: Tokenizer
    length: int

    @staticmethod
    def of(texts: Iterable[str], vocab: int, length: int) -> Pieces:
        """Byte-pair encoding, learned from these texts in small letters; every text can be written with its pieces."""
        from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

        tokenizer = Tokenizer(models.BPE())
        tokenizer.normalizer = normalizers.Lowercase()
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab - 1, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
        )
        tokenizer.train_from_iterator(texts, trainer)
        return Pieces(tokenizer, length)

    @staticmethod
    def from_file(path: str, length: int) -> Pieces:
        """A `tokenizer.json`, as Hugging Face models bring.

        Raises:
            ValueError: it cannot be read.
        """
        from tokenizers import Tokenizer

        try:
            tokenizer = Tokenizer.from_file(str(Path(path).expanduser()))
        except Exception as error:  # the package raises its base class alone
            raise ValueError(f"data.tokens={path} cannot be read as a tokenizer.json: {error}") from error
        tokenizer.no_padding()
        return Pieces(tokenizer, length)

    @property
    def vocab(self) -> int:
        """Pieces and the padding."""
        return int(self.tokenizer.get_vocab_size()) + 1

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """int64 [n, length]."""
        found = self.tokenizer.encode_batch(list(texts), add_special_tokens=True)
        return _padded([[number + 1 for number in each.ids] for each in found], self.length)


def encoder_of(tokens: str, texts: Iterable[str], vocab: int, length: int) -> TextEncoder:
    """The encoder that `data.tokens` names, made of the pool's texts: words, bpe, or the path of a tokenizer.json.

    Raises:
        ValueError: another name, or sizes that are none.
    """
    if length < 1 or vocab < 3:
        raise ValueError(f"data.length and data.vocab must be at least 1 and 3, not {length} and {vocab}")
    if tokens == "words":
        return Words.of(texts, vocab, length)
    if tokens == "bpe":
        if vocab < 258:
            raise ValueError(f"data.vocab={vocab}: byte pairs need the 256 bytes at least: set data.vocab=1024")
        return Pieces.of(texts, vocab, length)
    if not tokens.endswith(".json"):
        raise ValueError(f"data.tokens must be words, bpe or the path of a tokenizer.json, not {tokens}")
    return Pieces.from_file(tokens, length)


def _padded(rows: Sequence[Sequence[int]], length: int) -> Tensor:
    found = torch.zeros(len(rows), length, dtype=torch.int64)
    for out, row in zip(found, rows, strict=True):
        kept = row[:length]
        out[: len(kept)] = torch.tensor(kept, dtype=torch.int64)
    return found

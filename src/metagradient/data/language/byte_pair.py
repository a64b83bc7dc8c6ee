"""A byte-pair tokenizer that is trained on the spot, with a chat template of its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from metagradient.data.language.conversations import Encoded, Turn
from metagradient.data.language.tokenizers import pieces_of

if TYPE_CHECKING:
    import tokenizers

_END = "<|end|>"
_BEFORE = {role: f"<|{role}|>" for role in ("system", "user", "assistant", "text")}
_SPECIAL = (_END, *_BEFORE.values())
_NUMBER = {token: i for i, token in enumerate(_SPECIAL)}  # they come first in the vocabulary
_BYTES = 256


@dataclass(frozen=True, eq=False)
class BytePair:
    """Byte pairs, digits one by one. A turn is `<|role|>`, its text and, of targets, `<|end|>`."""

    model: tokenizers.Tokenizer

    @property
    def size(self) -> int:
        """Different tokens, special ones included."""
        return self.model.get_vocab_size()

    def decode(self, tokens: Sequence[int]) -> str:
        """The text, special tokens as they are written."""
        return self.model.decode(list(tokens), skip_special_tokens=False)

    def pieces(self, tokens: Sequence[int]) -> list[str]:
        """What each token adds to the text."""
        return pieces_of(self.decode, tokens)

    def encode(self, turns: Sequence[Turn]) -> Encoded:
        """`<|user|>`, prompt, `<|assistant|>`, response, `<|end|>`: the targets are the response and the end."""
        tokens: list[int] = []
        targets: list[bool] = []
        for turn in turns:
            own = self.model.encode(turn.content, add_special_tokens=False).ids
            predicted = turn.role in ("assistant", "text")
            end = [_NUMBER[_END]] if predicted else []
            tokens += [_NUMBER[_BEFORE[turn.role]], *own, *end]
            targets += [False, *[predicted] * (len(own) + len(end))]
        return Encoded(tuple(tokens), tuple(targets))


def train_byte_pair(texts: Iterable[str], vocab: int, setting: str = "data.tokenizer.vocab") -> BytePair:
    """The tokenizer of `vocab` tokens at most that has the most frequent byte pairs of some texts; `setting` is the size's name.

    Raises:
        ValueError: fewer tokens than there are bytes and special tokens.
    """
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    least = _BYTES + len(_SPECIAL)
    if not isinstance(vocab, int) or vocab < least:
        raise ValueError(f"{setting}={vocab} has no room for the {least} bytes and special tokens: set {setting}=512")
    model = tokenizers.Tokenizer(models.BPE())
    bytewise = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), bytewise])
    model.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=list(_SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator(texts, trainer=trainer)
    model.encode_special_tokens = True  # "<|end|>" in a text of the user's is text
    return BytePair(model)

"""A Hugging Face tokenizer and its chat template: special tokens exactly once, and exact borders of responses."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from metagradient.data.language.conversations import Encoded, Turn
from metagradient.data.language.tokenizers import pieces_of

log = logging.getLogger(__name__)

Segment = tuple[str, bool]
"""Text, and whether its tokens are targets."""

_PROBE = (Turn("user", "one"), Turn("assistant", "two"))


@dataclass(frozen=True, eq=False)
class Pretrained:
    """A tokenizer of transformers.

    Attributes:
        model: the tokenizer.
        name: where it is from, for messages.
        chat: use its chat template; otherwise a prompt, a line break and the response.
    """

    model: Any
    name: str
    chat: bool

    @property
    def size(self) -> int:
        """Different tokens, added ones included."""
        return len(self.model)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text, special tokens as they are written."""
        return self.model.decode(list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def pieces(self, tokens: Sequence[int]) -> list[str]:
        """What each token adds to the text."""
        return pieces_of(self.decode, tokens)

    def encode(self, turns: Sequence[Turn]) -> Encoded:
        """The turns as the chat template has them, responses with the token that ends them as targets.

        An end is added where the template has none. A plain text lies between the beginning, where the tokenizer adds one,
        and the end.

        Raises:
            ValueError: the template refuses the turns, or does not write each behind those before it.
        """
        chat = self.chat and turns[0].role != "text"
        tokens, targets = self._joined(self._templated(turns) if chat else _plain(turns), [] if chat else self._begin)
        if tokens and tokens[-1] not in self._special and self.model.eos_token_id is not None:
            tokens, targets = [*tokens, self.model.eos_token_id], [*targets, True]
        return Encoded(tuple(tokens), tuple(targets))

    def render(self, turns: Sequence[Turn], asks: bool = False) -> str:
        """The turns by the chat template; `asks`: with what precedes a response.

        Raises:
            ValueError: the template refuses them.
        """
        import jinja2

        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        try:
            text = self.model.apply_chat_template(messages, tokenize=False, add_generation_prompt=asks)
        except (jinja2.TemplateError, TypeError) as error:
            roles = ", ".join(turn.role for turn in turns)
            raise ValueError(
                f"the chat template of {self.name} refuses the turns {roles} ({error}): set data.tokenizer.chat=false"
            ) from error
        begin = self.model.bos_token
        while begin and text.startswith(2 * begin):
            text = text.removeprefix(begin)
        return text

    @cached_property
    def _special(self) -> frozenset[int]:
        return frozenset(i for i, token in self.model.added_tokens_decoder.items() if token.special)

    @cached_property
    def _begin(self) -> list[int]:
        """The token that the tokenizer itself puts before a text, if any."""
        bos = self.model.bos_token_id
        return [bos] if bos is not None and self.model("a")["input_ids"][:1] == [bos] else []

    def _templated(self, turns: Sequence[Turn]) -> list[Segment]:
        """Prompts and responses in turn, cut from what the template writes."""
        found: list[Segment] = []
        said = ""
        for i, turn in enumerate(turns):
            if turn.role != "assistant":
                continue
            before, after = self.render(turns[:i], asks=True), self.render(turns[: i + 1])
            if not (before.startswith(said) and after.startswith(before)):
                raise ValueError(
                    f"the chat template of {self.name} does not write a response behind its prompt as it was asked: set "
                    "data.tokenizer.chat=false"
                )
            whole = self._ended_once(after)
            found += [(before[len(said) :], False), (whole[len(before) :], True)]
            said = whole
        return found

    def _ended_once(self, text: str) -> str:
        """A rendered conversation up to the token that ends its last response, which stands there once."""
        shorter, end = text.rstrip(), self.model.eos_token
        if not shorter.endswith(tuple(str(self.model.added_tokens_decoder[i]) for i in self._special)):
            return text
        while end and shorter.endswith(2 * end):
            shorter = shorter.removesuffix(end)
        return shorter

    def _joined(self, segments: Sequence[Segment], begin: Sequence[int]) -> tuple[list[int], list[bool]]:
        """Tokens of all segments, cut where they meet: those of a prompt are the same whatever follows it."""
        tokens: list[int] = []
        targets: list[bool] = []
        said = ""
        for text, predicted in segments:
            said += text
            whole = self._ids(said)  # a text that goes on is not always cut like one that begins
            own = whole[len(tokens) :] if whole[: len(tokens)] == tokens else self._ids(text)
            tokens += own
            targets += [predicted] * len(own)
        return [*begin, *tokens], [*(False for _ in begin), *targets]

    def _ids(self, text: str) -> list[int]:
        return self.model(text, add_special_tokens=False, verbose=False)["input_ids"]

    def tell(self) -> None:
        """Say once that a template writes the end twice, which is mended.

        Raises:
            ValueError: as `encode`.
        """
        if not self.chat:
            return
        self.encode(_PROBE)
        end = self.model.eos_token
        if end and self.render(_PROBE).rstrip().endswith(2 * end):
            log.warning("the chat template of %s ends a response by %s twice: one is kept", self.name, end)


def _plain(turns: Sequence[Turn]) -> list[Segment]:
    """Each prompt with a line break behind it, each response as it is; a plain text likewise."""
    predicted = [turn.role in ("assistant", "text") for turn in turns]
    return [(t.content if own else f"{t.content}\n", own) for t, own in zip(turns, predicted, strict=True)]


def load_tokenizer(name: str, chat: bool = True) -> Pretrained:
    """The tokenizer of a folder, of a GGUF file or of the Hugging Face hub.

    Args:
        name: which.
        chat: use its chat template where it has one.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: transformers is not installed, or there is no tokenizer.
    """
    try:
        import transformers
    except ImportError as error:
        raise ValueError(
            f"data.tokenizer.name={name} needs transformers: pip install 'metagradient[hf]', or set data.tokenizer.name=null"
        ) from error
    place = Path(name).expanduser()
    file = place.suffix == ".gguf"
    if not place.exists() and (file or name.startswith((".", "/", "~"))):
        raise FileNotFoundError(
            f"data.tokenizer.name={name} does not exist: give a folder, a GGUF file or a hub name; null: one is trained"
        )
    where, settings = (
        (str(place.parent), {"gguf_file": place.name}) if file else (str(place) if place.is_dir() else name, {})
    )
    try:
        model = transformers.AutoTokenizer.from_pretrained(where, **settings)
    except Exception as error:  # whatever a foreign file makes of the library
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"data.tokenizer.name={name} has no tokenizer that can be loaded: {said[:200]}") from error
    found = Pretrained(model, place.name if file else name, chat and bool(model.chat_template))
    found.tell()
    return found

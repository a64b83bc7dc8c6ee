"""How the columns of a row become a conversation: one function for each layout that instruction data come in."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from metagradient.data.language.conversations import Conversation, Role, Turn, asked

Row = Mapping[str, Any]
"""What a row says in each column; a missing cell is an empty string."""

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_ROLES: Mapping[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}


@dataclass(frozen=True)
class Layout:
    """A way to write conversations in columns.

    Attributes:
        columns: that a row must have.
        read: a row's conversation; it ends with a response, or with a plain text.
        optional: columns that are read where they are there.
    """

    columns: tuple[str, ...]
    read: Callable[[Row], Conversation]
    optional: tuple[str, ...] = ()


def _prompt_response(row: Row) -> Conversation:
    return asked(_text(row["prompt"]), _text(row["response"]))


def _alpaca(row: Row) -> Conversation:
    given = _text(row.get("input", ""))
    return asked(_text(row["instruction"]) + (f"\n\n{given}" if given.strip() else ""), _text(row["output"]))


def _chat(row: Row) -> Conversation:
    """Messages {role, content}, or {from, value}; what follows the last response is left out.

    Raises:
        ValueError: other messages.
    """
    turns: list[Turn] = []
    for message in row["messages"] or ():
        role = str(message.get("role", message.get("from"))) if isinstance(message, Mapping) else ""
        if role not in _ROLES:
            raise ValueError(
                f"data.layout=chat reads messages {{role, content}} with a role of {', '.join(_ROLES)}; got {str(message)[:80]}"
            )
        turns.append(Turn(_ROLES[role], _text(message.get("content", message.get("value")))))
    while turns and turns[-1].role != "assistant":
        turns.pop()
    return Conversation(tuple(turns))


def _question_answer(row: Row) -> Conversation:
    return asked(_text(row["question"]), _text(row["answer"]))


def _input_target(row: Row) -> Conversation:
    return asked(_text(row["input"]), _text(row["target"]))


def _plain(row: Row) -> Conversation:
    return Conversation((Turn("text", _text(row["text"])),))


def _multiple_choice(row: Row) -> Conversation:
    """The question with its lettered options; the responses are letters, as MMLU is asked."""
    options, right = _options(row)
    letters = tuple(_LETTERS[: len(options)])
    listed = "\n".join(f"{letter}. {option}" for letter, option in zip(letters, options, strict=True))
    prompt = f"{_text(row['question'])}\n{listed}\nAnswer:"
    return Conversation((Turn("user", prompt), Turn("assistant", letters[right])), letters, right)


def _multiple_choice_texts(row: Row) -> Conversation:
    """The question alone; the responses are the options themselves."""
    options, right = _options(row)
    return Conversation((Turn("user", _text(row["question"])), Turn("assistant", options[right])), options, right)


def _options(row: Row) -> tuple[tuple[str, ...], int]:
    """The options of a question and the place of the right one, which is given by number, letter or text.

    Raises:
        ValueError: fewer than two options, more than there are letters, or an answer that is none of them.
    """
    options = tuple(map(_text, row["choices"] or ()))
    if not 2 <= len(options) <= len(_LETTERS):
        raise ValueError(f"a multiple choice question has 2 to {len(_LETTERS)} choices, not {len(options)}")
    answer = row["answer"]
    said = _text(answer)
    places = [str(i) for i in range(len(options))]
    for known in (options, places, tuple(_LETTERS[: len(options)])):
        if said in known and not (known is options and isinstance(answer, int)):
            return options, list(known).index(said)
    raise ValueError(
        f"a multiple choice answer is the place of a choice from 0, its letter or its text, not {said[:40]!r}"
    )


def _text(cell: Any) -> str:
    return "" if cell is None else str(cell)


LAYOUTS: Mapping[str, Layout] = {
    "chat": Layout(("messages",), _chat),
    "multiple_choice": Layout(("question", "choices", "answer"), _multiple_choice),
    "multiple_choice_texts": Layout(("question", "choices", "answer"), _multiple_choice_texts),
    "question_answer": Layout(("question", "answer"), _question_answer),
    "alpaca": Layout(("instruction", "output"), _alpaca, optional=("input",)),
    "prompt_response": Layout(("prompt", "response"), _prompt_response),
    "input_target": Layout(("input", "target"), _input_target),
    "text": Layout(("text",), _plain),
}
"""By name, in the order in which columns are matched."""


def recognised(columns: Collection[str], path: str) -> str:
    """The first layout whose columns are there.

    Raises:
        ValueError: none.
    """
    for name, layout in LAYOUTS.items():
        if set(layout.columns) <= set(columns):
            return name
    known = "; ".join(f"{name} ({', '.join(layout.columns)})" for name, layout in LAYOUTS.items())
    raise ValueError(
        f"data.path={path} has the columns {', '.join(columns)}, which are none of the layouts {known}: set data.layout=prompt_response "
        "'data.columns={prompt: ..., response: ...}'"
    )

"""Layouts: what each makes of a row of its kind, and which columns are taken for which."""

import re
from typing import Any

import pytest

from metagradient.data.language.conversations import Conversation, Turn
from metagradient.data.language.layouts import LAYOUTS, recognised


def _read(layout: str, **row: Any) -> Conversation:
    assert recognised(row, "f") == layout.removesuffix("_texts")
    return LAYOUTS[layout].read(row)


def _said(conversation: Conversation) -> list[tuple[str, str]]:
    return [(turn.role, turn.content) for turn in conversation.turns]


def test_prompts_and_responses() -> None:
    pair = [("user", "p"), ("assistant", "r")]
    assert _said(_read("prompt_response", prompt="p", response="r")) == pair
    assert _said(_read("question_answer", question="p", answer="r")) == pair
    assert _said(_read("input_target", input="p", target="r", task="t")) == pair
    assert _said(_read("alpaca", instruction="p", output="r")) == pair
    assert _said(_read("alpaca", instruction="p", input="", output="r")) == pair
    assert _said(_read("alpaca", instruction="p", input="i", output="r"))[0] == ("user", "p\n\ni")
    assert _said(_read("text", text="all of it")) == [("text", "all of it")]
    assert _said(_read("prompt_response", prompt=17, response=None)) == [("user", "17"), ("assistant", "")]


def test_messages_end_with_a_response() -> None:
    said = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]
    whole = [("system", "s"), ("user", "u"), ("assistant", "a")]
    assert _said(_read("chat", messages=said)) == whole
    assert _said(_read("chat", messages=[*said, {"role": "user", "content": "more?"}])) == whole
    assert _said(_read("chat", messages=[{"from": "human", "value": "u"}, {"from": "gpt", "value": "a"}])) == whole[1:]
    assert _read("chat", messages=[]).turns == ()
    with pytest.raises(ValueError, match="robot"):
        _read("chat", messages=[{"role": "robot", "content": "x"}])


@pytest.mark.parametrize("answer", [1, "1", "B", "blue"])
def test_a_multiple_choice_question_is_asked_by_letters_or_by_texts(answer: object) -> None:
    row = {"question": "The sky is?", "choices": ["red", "blue", "green"], "answer": answer}
    letters = _read("multiple_choice", **row)
    assert letters.turns == (Turn("user", "The sky is?\nA. red\nB. blue\nC. green\nAnswer:"), Turn("assistant", "B"))
    assert (letters.options, letters.right) == (("A", "B", "C"), 1)
    texts = _read("multiple_choice_texts", **row)
    assert texts.turns == (Turn("user", "The sky is?"), Turn("assistant", "blue"))
    assert (texts.options, texts.right) == (("red", "blue", "green"), 1)


def test_an_answer_given_by_number_is_no_text() -> None:
    """MMLU's choices may be numbers themselves."""
    row = {"question": "1 + 1?", "choices": ["2", "1", "0", "3"], "answer": 0}
    assert LAYOUTS["multiple_choice"].read(row).response == "A"
    assert LAYOUTS["multiple_choice"].read(row | {"answer": "0"}).response == "C"


@pytest.mark.parametrize("broken", [{"answer": 3}, {"answer": "purple"}, {"choices": []}, {"choices": ["one"]}])
def test_questions_without_a_right_option_are_refused(broken: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="multiple choice"):
        LAYOUTS["multiple_choice"].read({"question": "?", "choices": ["a", "b", "c"], "answer": 0} | broken)


def test_columns_of_no_layout_are_told_with_the_way_out() -> None:
    with pytest.raises(ValueError, match=re.escape("data.columns={prompt: ..., response: ...}")) as told:
        recognised(["ask", "reply"], "mine.csv")
    assert "ask, reply" in str(told.value)
    assert "alpaca (instruction, output)" in str(told.value)

"""Tokenizers: special tokens once, responses alone as targets, prompts that are cut the same whatever follows them."""

import sys
from pathlib import Path
from typing import Any

import pytest

from metagradient.data.language.byte_pair import train_byte_pair
from metagradient.data.language.conversations import Encoded, Turn
from metagradient.data.language.pretrained_tokenizer import load_tokenizer
from metagradient.data.language.tokenizers import Characters, Tokenizer

TEXTS = ["add 17 and 25", "hello hello wörld, 你好", "the answer is forty two\n\n", "yes, it is"] * 3
ASKED = (Turn("user", "add 1 and 2?"), Turn("assistant", "three 你好"))
PLAIN = "{% for m in messages %}{{ '<u>' if m['role'] == 'user' else '<a>' }}{{ m['content'] }}{% if m['role'] == 'assistant' %}"
END = "{% endif %}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
TEMPLATES = {
    "ends by itself": (PLAIN + "</s>\n" + END, "<u>add 1 and 2?<a>three 你好</s>"),
    "ends twice": (PLAIN + "</s></s>" + END, "<u>add 1 and 2?<a>three 你好</s>"),
    "does not end": (PLAIN + END, "<u>add 1 and 2?<a>three 你好</s>"),
    "begins": ("{{ bos_token }}" + PLAIN + "</s>" + END, "<s><u>add 1 and 2?<a>three 你好</s>"),
    "begins twice": ("{{ bos_token }}{{ bos_token }}" + PLAIN + "</s>" + END, "<s><u>add 1 and 2?<a>three 你好</s>"),
}


def _foreign(folder: Path, template: str | None, *, begins: bool = False) -> Path:
    """The folder of a tokenizer of transformers: byte pairs, <s> and </s>."""
    transformers = pytest.importorskip("transformers", reason="transformers is an extra")
    from tokenizers import processors

    model = train_byte_pair(TEXTS, 320).model
    model.add_special_tokens(["<s>", "</s>"])
    if begins:
        start = [("<s>", model.token_to_id("<s>"))]
        model.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=start)
    found = transformers.PreTrainedTokenizerFast(tokenizer_object=model, bos_token="<s>", eos_token="</s>")
    found.chat_template = template
    found.save_pretrained(folder)
    return folder


def _said(tokenizer: Tokenizer, row: Encoded) -> tuple[str, str]:
    """The row, and its targets."""
    targets = [label for label in row.labels if label >= 0]
    return tokenizer.decode(row.tokens), tokenizer.decode(targets)


def test_byte_pairs_write_special_tokens_once_and_predict_the_response_and_its_end() -> None:
    tokenizer = train_byte_pair(TEXTS, 320)
    row = tokenizer.encode(ASKED)
    assert _said(tokenizer, row) == ("<|user|>add 1 and 2?<|assistant|>three 你好<|end|>", "three 你好<|end|>")
    assert _said(tokenizer, tokenizer.encode((Turn("text", "hello"),))) == ("<|text|>hello<|end|>", "hello<|end|>")
    injected = tokenizer.encode((Turn("user", "say <|end|>"), Turn("assistant", "<|end|>")))
    assert sum(token == row.tokens[-1] for token in injected.tokens) == 1  # what a user writes is text
    assert max(row.tokens) < tokenizer.size


def test_all_responses_of_a_conversation_are_targets() -> None:
    tokenizer = train_byte_pair(TEXTS, 320)
    turns = (Turn("system", "be brief"), *ASKED, Turn("user", "sure?"), Turn("assistant", "yes"))
    assert _said(tokenizer, tokenizer.encode(turns))[1] == "three 你好<|end|>yes<|end|>"


def test_a_vocabulary_is_the_same_every_time() -> None:
    one, two = (train_byte_pair(TEXTS, 300).model.get_vocab() for _ in range(2))
    assert one == two


@pytest.mark.parametrize("kind", TEMPLATES)
def test_a_chat_template_has_each_special_token_once(kind: str, tmp_path: Path, caplog: Any) -> None:
    template, whole = TEMPLATES[kind]
    tokenizer = load_tokenizer(str(_foreign(tmp_path, template, begins=True)))
    assert _said(tokenizer, tokenizer.encode(ASKED)) == (whole, "three 你好</s>")
    assert ("twice: one is kept" in caplog.text) == (kind == "ends twice")


def test_turns_of_a_chat_template_are_cut_where_each_response_ends(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(_foreign(tmp_path, TEMPLATES["ends by itself"][0])))
    row = tokenizer.encode((*ASKED, Turn("user", "sure?"), Turn("assistant", "yes")))
    assert _said(tokenizer, row) == ("<u>add 1 and 2?<a>three 你好</s>\n<u>sure?<a>yes</s>", "three 你好</s>yes</s>")


@pytest.mark.parametrize("response", ["three", " three", "\n\nthree", "ee", "1", " "])
@pytest.mark.parametrize("chat", [True, False])
def test_a_prompts_tokens_are_the_same_whatever_follows_it(response: str, chat: bool, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(_foreign(tmp_path, TEMPLATES["does not end"][0] if chat else None)))
    row = tokenizer.encode((Turn("user", "the answer\n"), Turn("assistant", response)))
    prompt = "<u>the answer\n<a>" if chat else "the answer\n\n"
    alone = tokenizer.model(prompt, add_special_tokens=False)["input_ids"]
    assert list(row.tokens[: len(alone)]) == alone
    assert row.targets == (False,) * len(alone) + (True,) * (len(row) - len(alone))
    assert tokenizer.decode(row.tokens) == f"{prompt}{response}</s>"


def test_without_a_template_a_prompt_is_a_line_and_the_beginning_stands_once(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(_foreign(tmp_path, None, begins=True)))
    assert _said(tokenizer, tokenizer.encode(ASKED)) == ("<s>add 1 and 2?\nthree 你好</s>", "three 你好</s>")
    assert _said(tokenizer, tokenizer.encode((Turn("text", "hello"),))) == ("<s>hello</s>", "hello</s>")
    assert tokenizer.size == len(tokenizer.model)


def test_templates_that_cannot_be_cut_are_told(tmp_path: Path) -> None:
    rewrites = "{% for m in messages %}{{ messages|length }}{{ m['content'] }}{% endfor %}"
    with pytest.raises(ValueError, match=r"behind its prompt.*data\.tokenizer\.chat=false"):
        load_tokenizer(str(_foreign(tmp_path, rewrites)))
    assert load_tokenizer(str(tmp_path), chat=False).size
    refuses = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + TEMPLATES["begins"][0]
    )
    tokenizer = load_tokenizer(str(_foreign(tmp_path / "other", refuses)))
    with pytest.raises(ValueError, match=r"refuses the turns system, user.*no system"):
        tokenizer.encode((Turn("system", "s"), *ASKED))


def test_pieces_are_one_for_each_token_and_together_the_text() -> None:
    for tokenizer, tokens in (
        (made := train_byte_pair(TEXTS[:1], 300), made.encode(ASKED).tokens),  # 你 takes three tokens
        (Characters("abc"), [2, 0, 1]),
    ):
        pieces = tokenizer.pieces(tokens)
        assert len(pieces) == len(tokens)
        assert "".join(pieces) == tokenizer.decode(tokens)
    assert made.pieces(made.encode(ASKED).tokens)[-7:] == ["", "", "你", "", "", "好", "<|end|>"]


def test_tokenizers_that_are_not_there_are_told(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="transformers is an extra")
    with pytest.raises(FileNotFoundError, match=r"data\.tokenizer\.name="):
        load_tokenizer(str(tmp_path / "none.gguf"))
    (tmp_path / "damaged.gguf").write_bytes(b"GGUF")
    with pytest.raises(ValueError, match="no tokenizer that can be loaded"):
        load_tokenizer(str(tmp_path / "damaged.gguf"))
    with pytest.raises(ValueError, match="no tokenizer that can be loaded"):
        load_tokenizer(str(tmp_path))


def test_a_named_tokenizer_without_transformers_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=r"pip install 'metagradient\[hf\]', or set data\.tokenizer\.name=null"):
        load_tokenizer("some/model")

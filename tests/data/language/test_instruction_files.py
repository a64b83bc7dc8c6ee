"""Instruction files: what is read, drawn, left out and planted, read back from the tables."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional as F

from metagradient.data import AnswerNoise, TextSplits, TokenizerSettings, instructions
from metagradient.data.language.byte_pair import train_byte_pair
from metagradient.data.own.chosen import write_chosen_texts

SHARED = Path(__file__).parents[4] / "shared" / "data"
Write = Callable[[str, Sequence[dict[str, Any]]], str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def written(name: str, rows: Sequence[dict[str, Any]]) -> str:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
        return str(path)

    return written


def _rows(n: int, word: str = "item") -> list[dict[str, Any]]:
    return [{"prompt": f"what is {word} {i}?", "response": f"it is {word} {i}"} for i in range(n)]


def _pairs(splits: TextSplits, split: str) -> list[tuple[str, str]]:
    """Prompt and response of each row, without special tokens."""
    found, table = [], getattr(splits, split)
    for tokens, mask, labels in zip(table["tokens"], table["mask"], table["labels"], strict=True):
        parts = (tokens[mask & (labels < 0)], labels[labels >= 0])
        prompt, response = (re.sub(r"<\|\w+\|>", "", splits.tokenizer.decode(part.tolist())) for part in parts)
        found.append((prompt, response))
    return found


def test_rows_are_those_of_the_file_and_know_their_place(write: Write) -> None:
    rows = [row | {"name": f"0{i}"} for i, row in enumerate(_rows(60))]
    splits = instructions(write("a.jsonl", rows), validation=5, test=0.1, id="name")
    seen = []
    for split in ("train", "validation", "test"):
        origin = splits.origins[split]
        assert origin.ids is not None
        for pair, place, name in zip(_pairs(splits, split), origin.places.tolist(), origin.ids, strict=True):
            assert pair == (rows[place]["prompt"], rows[place]["response"])
            assert name == rows[place]["name"]
            seen.append(place)
    assert sorted(seen) == list(range(60))
    assert [len(splits.origins[split].places) for split in ("train", "validation", "test")] == [49, 5, 6]
    assert splits.query_sources.tolist() == [0] * 6
    again = instructions(write("a.jsonl", rows), validation=5, test=0.1, id="name")
    assert torch.equal(again.train["tokens"], splits.train["tokens"])


def test_several_sources_are_mixed_and_held_out_questions_are_a_source_of_their_own(write: Write) -> None:
    other = [{"instruction": f"say {i}", "output": f"{i}"} for i in range(40)]
    chat = [
        {"messages": [{"role": "user", "content": f"hi {i}"}, {"role": "assistant", "content": "ho"}]}
        for i in range(20)
    ]
    pool: list[Any] = [
        {"path": write("a.jsonl", _rows(40)), "rows": 10},
        {"path": write("b.jsonl", other), "share": 0.5, "name": "said"},
        write("c.jsonl", chat),
    ]
    asked = {"path": write("q.csv.jsonl", _rows(30, "question")), "layout": "prompt_response"}
    splits = instructions(pool, target=asked, validation=6, test=20)
    assert splits.source_names == ("a", "said", "c", "q")
    assert splits.sources.bincount().tolist() == [10, 20, 20]
    words = ("item", "say", "hi")
    for (prompt, _), source in zip(_pairs(splits, "train"), splits.sources.tolist(), strict=True):
        assert words[source] in prompt
    questions = [*_pairs(splits, "test"), *_pairs(splits, "validation")]
    assert len(set(questions)) == 26
    assert all("question" in prompt for prompt, _ in questions)
    assert splits.query_sources.tolist() == [3] * 20
    assert len(instructions(pool, target=asked, train=7, validation=6, test=20).sources) == 7


def test_a_divided_source_keeps_its_splits(write: Write, tmp_path: Path) -> None:
    for split in ("train", "test"):
        write(f"d/{split}-00000-of-00001.jsonl", _rows(20, split))
    folder = str(tmp_path / "d")
    alone = instructions(folder, validation=3)
    assert {split for prompt, _ in _pairs(alone, "test") for split in ("train", "test") if split in prompt} == {"test"}
    assert [len(_pairs(alone, split)) for split in ("train", "validation", "test")] == [17, 3, 20]
    apart = instructions(folder, target=folder, validation=3, test=5)
    assert all("train" in prompt for prompt, _ in _pairs(apart, "train"))
    assert all("test" in prompt for prompt, _ in [*_pairs(apart, "test"), *_pairs(apart, "validation")])
    assert len(apart.sources) == 20
    swapped = instructions(
        {"path": folder, "split": "test"}, target={"path": folder, "split": "train"}, validation=3, test=5
    )
    assert all("test" in prompt for prompt, _ in _pairs(swapped, "train"))


def test_multiple_choice_rows_have_all_their_options(write: Write) -> None:
    rows = [
        {"question": f"one of {i}?", "choices": [f"a{i}", f"b{i}", f"c{i}"][: 2 + i % 2], "answer": i % 2}
        for i in range(12)
    ]
    path = write("m.jsonl", rows)
    splits = instructions(
        write("a.jsonl", _rows(20)), target={"path": path, "layout": "multiple_choice_texts"}, validation=4, test=6
    )
    assert set(splits.choices) == {"validation", "test"}
    table = splits.choices["test"]
    origin = splits.origins["test"]
    asked = [rows[place] for place in origin.places]
    assert table["question"].tolist() == [q for q, row in enumerate(asked) for _ in row["choices"]]
    said = [splits.tokenizer.decode(labels[labels >= 0].tolist()) for labels in table["labels"]]
    assert said == [choice for row in asked for choice in row["choices"]]
    assert table["right"].tolist() == [i == row["answer"] for row in asked for i in range(len(row["choices"]))]
    own = F.pad(splits.test["mask"][:, 1:], (0, 1))  # without the token that ends each of them
    assert torch.equal(table["mask"][table["right"]], own)
    assert torch.equal(table["tokens"][table["right"]], splits.test["tokens"] * own)
    assert not instructions(write("a.jsonl", _rows(20))).choices


def test_rows_that_cannot_be_used_are_left_out_counted_and_named(write: Write, caplog: Any) -> None:
    rows = _rows(30)
    rows[3]["response"] = "  "
    rows[7]["response"] = None
    rows[11]["response"] = " ".join(f"word{i}" for i in range(90))
    rows[13]["prompt"] = " ".join(f"word{i}" for i in range(90))
    splits = instructions(write("a.jsonl", rows), validation=0, test=1, length=64)
    used = {int(place) for origin in splits.origins.values() for place in origin.places}
    held_out = 30 - len(used) - 4
    assert held_out == 0
    assert used.isdisjoint({3, 7, 11, 13})
    assert re.search(r"a: 2 of \d+ rows have an empty response \(rows 3, 7\): left out", caplog.text)
    assert re.search(r"a: 1 of \d+ rows are longer than data\.length=64 tokens \(rows 11\): left out", caplog.text)
    assert re.search(r"a: 1 of \d+ rows have a prompt that fills data\.length=64 \(rows 13\): left out", caplog.text)


def test_rows_without_a_target_are_left_out(write: Write, tmp_path: Path, caplog: Any) -> None:
    """A text of one token, by a tokenizer that puts nothing around it."""
    transformers = pytest.importorskip("transformers", reason="transformers is an extra")
    model = train_byte_pair(["hello"], 300).model
    transformers.PreTrainedTokenizerFast(tokenizer_object=model).save_pretrained(tmp_path / "bare")
    settings = TokenizerSettings(str(tmp_path / "bare"))
    texts = [{"text": "x" if i == 2 else f"text {i}"} for i in range(10)]
    splits = instructions(write("a.jsonl", texts), validation=0, test=1, tokenizer=settings)
    assert "have no token to be predicted (rows 2): left out" in caplog.text
    assert bool((splits.train["labels"] >= 0).any(1).all())
    with pytest.raises(ValueError, match=r"no row of train can be used: 9 have no token to be predicted"):
        instructions(write("b.jsonl", [{"text": "x"}] * 10), validation=0, test=1, tokenizer=settings)


def test_held_out_questions_that_cannot_be_used_are_replaced_by_others(write: Write) -> None:
    questions = _rows(20, "question")
    for row in questions[::2]:
        row["response"] = "x" * 300
    pool, target = write("a.jsonl", _rows(20)), write("q.jsonl", questions)
    splits = instructions(pool, target=target, validation=4, test=6, length=64)
    places = [*splits.origins["test"].places, *splits.origins["validation"].places]
    assert sorted(places) == list(range(1, 20, 2))
    with pytest.raises(
        ValueError, match=r"10 are longer than data\.length=64.*data\.validation=4; set data\.validation=3"
    ):
        instructions(pool, target=target, validation=4, test=7, length=64)


def test_shuffled_answers_are_those_of_other_rows_and_known(write: Write) -> None:
    rows = _rows(50)
    path = write("a.jsonl", rows)
    clean = instructions(path, validation=0, test=10)
    noisy = instructions(path, validation=0, test=10, noise=AnswerNoise(fraction=0.5))
    assert clean.truth is None
    assert noisy.truth is not None
    assert int(noisy.truth.wrong.sum()) == 20
    given = [response for _, response in _pairs(noisy, "train")]
    own = [rows[place]["response"] for place in noisy.origins["train"].places]
    assert [a != b for a, b in zip(given, own, strict=True)] == noisy.truth.wrong.tolist()
    assert sorted(given) == sorted(own)  # permuted among the rows
    assert [right or response for right, response in zip(noisy.truth.right, given, strict=True)] == own
    assert _pairs(noisy, "test") == _pairs(clean, "test")
    assert noisy.origins["train"].places.tolist() == clean.origins["train"].places.tolist()
    with pytest.raises(ValueError, match=r"data\.noise\.fraction"):
        AnswerNoise(fraction=1.5)


def test_rows_keep_their_responses_where_the_others_are_the_same_or_too_long(write: Write, caplog: Any) -> None:
    caplog.set_level("INFO")
    same = [row | {"response": "so it is"} for row in _rows(20)]
    splits = instructions(write("a.jsonl", same), validation=0, test=2, noise=AnswerNoise(fraction=1.0))
    assert splits.truth is not None
    assert not bool(splits.truth.wrong.any())
    assert "18 of 18 rows keep their own response" in caplog.text
    uneven = [
        {"prompt": " ".join(f"w{i}" for i in range(20)), "response": f"{k}"}
        if k % 2
        else {"prompt": f"{k}", "response": " ".join(f"v{i}" for i in range(20))}
        for k in range(20)
    ]
    splits = instructions(write("b.jsonl", uneven), validation=0, test=2, length=90, noise=AnswerNoise(fraction=1.0))
    assert splits.truth is not None
    assert splits.train["tokens"].shape == (18, splits.test["tokens"].shape[1])
    assert 0 < int(splits.truth.wrong.sum()) < 18


def test_held_out_rows_that_are_trained_on_are_told(write: Write, caplog: Any) -> None:
    path = write("a.jsonl", _rows(20))
    instructions(path, target=path, validation=4, test=5)
    assert "9 of 9 validation and test rows are copies of training rows" in caplog.text
    caplog.clear()
    instructions(path, validation=4, test=5)
    assert "copies" not in caplog.text


@pytest.mark.parametrize("several", [False, True])
def test_chosen_rows_are_the_files_own(write: Write, tmp_path: Path, several: bool) -> None:
    first = [row | {"extra": {"a": [i]}} for i, row in enumerate(_rows(20))]
    second = pd.DataFrame({"question": [f"q {i}" for i in range(10)], "answer": [f"0{i}" for i in range(10)]})
    second.to_csv(tmp_path / "b.csv", index=False)
    paths = [write("a.jsonl", first), {"path": str(tmp_path / "b.csv"), "name": "other one"}]
    splits = instructions(paths if several else paths[0], target=write("q.jsonl", _rows(5, "q")), validation=1, test=2)
    n = len(splits.sources)
    kept, weights = np.arange(n) % 3 > 0, np.arange(n) / 8
    out = tmp_path / "out"
    out.mkdir()
    found = write_chosen_texts(splits, kept, weights, "weight", out)
    assert [path.name for path in found] == (
        ["chosen_a.jsonl", "chosen_other_one.csv"] if several else ["chosen.jsonl"]
    )
    rows = [json.loads(line) for line in found[0].read_text().splitlines()]
    places = splits.origins["train"].places
    wanted = {int(places[i]): weights[i] for i in range(n) if kept[i] and splits.sources[i] == 0}
    assert rows == [first[place] | {"weight": weights} for place, weights in sorted(wanted.items())]
    if several:
        frame = pd.read_csv(found[1], dtype=str)
        others = {int(places[i]): str(weights[i]) for i in range(n) if kept[i] and splits.sources[i] == 1}
        assert dict(zip(frame["question"], frame["weight"], strict=True)) == {
            f"q {i}": w for i, w in sorted(others.items())
        }
        assert set(frame["answer"]) == {f"0{i}" for i in others}


def test_columns_of_other_names_and_other_files(tmp_path: Path) -> None:
    frame = pd.DataFrame({"ask": [f"q {i}" for i in range(20)], "reply": [f"r {i}" for i in range(20)], "prompt": "no"})
    frame.loc[4, "reply"] = None
    for name, save in (("f.csv", frame.to_csv), ("f.parquet", frame.to_parquet)):
        save(tmp_path / name, index=False)
        names = {"prompt": "ask", "response": "reply"}
        splits = instructions(str(tmp_path / name), layout="prompt_response", columns=names, validation=0, test=3)
        assert {*_pairs(splits, "train"), *_pairs(splits, "test")} == {
            (f"q {i}", f"r {i}") for i in range(20) if i != 4
        }


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"layout": "alpaka"}, "data.layout=alpaka: there are chat, "),
        ({"layout": "alpaca"}, "no such column"),
        ({"columns": {"prompt": "promt"}}, "did you mean data.columns=prompt?"),
        ({"columns": {"promt": "prompt"}}, "data.columns={promt: ...}: columns of layouts are answer, "),
        ({"id": "name"}, "data.id=name: no such column"),
        ({"length": 1}, "set data.length=256"),
        ({"length": 8}, "no row of train can be used: 18 have a prompt that fills data.length=8"),
        ({"validation": -1}, "set data.validation=0.1"),
        ({"train": 0}, "set data.train=1000"),
        ({"validation": 15, "test": 15}, "cannot be divided"),
        ({"tokenizer": TokenizerSettings(vocab=100)}, "set data.tokenizer.vocab=512"),
        ({"target": {"path": "{a}", "shares": 1}}, "data.target of {a} has no shares"),
        ({"target": {"layout": "chat"}}, "without a path"),
        ({"path": []}, "data.path=[] names no file"),
        ({"path": {"path": "{a}", "rows": 0}}, "for example {path: ..., rows: 1000}"),
        ({"path": {"path": "{a}", "share": 2}}, "for example {path: ..., share: 0.5}"),
        ({"path": {"path": "{a}", "split": "train"}}, "not divided into splits"),
        ({"path": "{folder}/empty.jsonl"}, "has no rows"),
        ({"path": "{folder}/none.jsonl"}, "does not exist"),
        ({"path": "{folder}/odd.jsonl"}, "row 1: data.layout=chat reads messages"),
        ({"path": "{folder}/silent.jsonl"}, "no row of train can be used: 8 have an empty response"),
    ],
    ids=str,
)
def test_bad_settings_are_one_line(write: Write, tmp_path: Path, settings: dict[str, Any], told: str) -> None:
    a = write("a.jsonl", _rows(20))
    (tmp_path / "empty.jsonl").touch()
    write("odd.jsonl", [{"messages": [{"role": "user", "content": "x"}]}, {"messages": [{"role": "ghost"}]}])
    write("silent.jsonl", [{"prompt": "x", "response": ""}] * 10)

    def filled(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: filled(inner) for key, inner in value.items()}
        return value.format(a=a, folder=tmp_path) if isinstance(value, str) else value

    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(told.replace("{a}", a))) as error:
        instructions(**{"path": a, "validation": 1, "test": 1} | filled(settings))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "layout", "words"),
    [
        ("alpaca-5000", "alpaca", ("output",)),
        ("gsm8k/test-00000-of-00001.parquet", "question_answer", ("answer",)),
        ("bbh", "input_target", ("target",)),
    ],
)
def test_real_files_are_recognised(name: str, layout: str, words: tuple[str], caplog: Any) -> None:
    path = SHARED / name
    if not path.exists():
        pytest.skip("no real data here")
    caplog.set_level("INFO")
    splits = instructions(str(path), train=20, validation=0.002, test=0.004, length=400)
    assert f"data.layout={layout}" in caplog.text
    frame = pd.read_parquet(path)
    for (_, response), place in zip(_pairs(splits, "train"), splits.origins["train"].places, strict=True):
        assert response == frame[words[0]][place]

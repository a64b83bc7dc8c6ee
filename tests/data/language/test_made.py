"""The made pool: right sums are right, wrong ones wrong and said to be, and the target is worded like no row of the pool."""

import dataclasses
import re
from collections import Counter

import pytest
import torch

from metagradient.data import TextSplits, made_instructions


@pytest.fixture(scope="module")
def made() -> TextSplits:
    return made_instructions(train=400, validation=60, test=80)


def _answers(splits: TextSplits, split: str) -> list[tuple[str, str]]:
    """Prompt and response of each row, read back from its tokens and labels."""
    table, found = getattr(splits, split), []
    for tokens, mask, labels in zip(table["tokens"], table["mask"], table["labels"], strict=True):
        target = labels >= 0
        prompt, response = (splits.tokenizer.decode(tokens[rows].tolist()) for rows in (mask & ~target, target))
        found.append((prompt, response))
    return found


def _sum_of(prompt: str) -> int:
    return sum(map(int, re.findall(r"\d+", prompt)))


def test_the_truth_about_sums(made: TextSplits) -> None:
    assert made.truth is not None
    seen = Counter[str]()
    for (prompt, response), source, wrong, right in zip(
        _answers(made, "train"), made.sources.tolist(), made.truth.wrong.tolist(), made.truth.right, strict=True
    ):
        name = made.source_names[source]
        seen[name] += 1
        assert wrong == (name in ("wrong sums", "gibberish"))
        if "sums" in name:
            assert (response == f"{_sum_of(prompt)}<|end|>") == (name == "sums")
            assert right == (str(_sum_of(prompt)) if wrong else "")
    assert seen == {"sums": 100, "wrong sums": 100, "strings": 60, "definitions": 60, "gibberish": 80}


def test_the_target_is_worded_like_no_row_of_the_pool(made: TextSplits) -> None:
    asked = [*_answers(made, "validation"), *_answers(made, "test")]
    assert all(response == f"{_sum_of(prompt)}<|end|>" for prompt, response in asked)
    assert len(set(asked)) == 140  # validation and test share no row
    assert not any(" gets " in prompt and " has " in prompt for prompt, _ in _answers(made, "train"))


def test_labels_are_the_tokens_of_responses_alone(made: TextSplits) -> None:
    for table in (made.train, made.validation, made.test):
        tokens, mask, labels = table["tokens"], table["mask"], table["labels"]
        target = labels >= 0
        assert torch.equal(labels[target], tokens[target])
        assert bool((labels[~target] == -100).all())
        assert not bool((target & ~mask).any())
        assert bool((mask.long().diff(dim=1) <= 0).all())  # a prefix
        assert not bool(target[:, 0].any())
        assert bool(target.any(1).all())
    assert made.train["tokens"].shape[1] == made.test["tokens"].shape[1]


def test_a_word_means_one_thing(made: TextSplits) -> None:
    meant: dict[str, set[str]] = {}
    for (prompt, response), source in zip(_answers(made, "train"), made.sources.tolist(), strict=True):
        if made.source_names[source] == "definitions":
            said = re.fullmatch(r"<\|user\|>(?:what is a |define )?(\w+)(?:\?| is a kind of)?<\|assistant\|>", prompt)
            assert said is not None
            meant.setdefault(said[1], set()).add(response)
    assert len(meant) > 20
    assert all(len(kinds) == 1 for kinds in meant.values())


def test_rows_of_the_pools_own_sources_tell_them() -> None:
    made = made_instructions(train=100, validation=10, test=30, target="pool")
    names = [made.source_names[source] for source in made.query_sources.tolist()]
    assert Counter(names) == {"sums": 10, "strings": 10, "definitions": 10}
    for (prompt, response), name in zip(_answers(made, "test"), names, strict=True):
        assert (name == "sums") <= response.startswith(str(_sum_of(prompt)))
        assert (name == "definitions") == bool(re.match(r".*(what is a \w+\?|define|is a kind of)", prompt))


def test_the_corpus_are_right_sums_in_wordings_of_its_own() -> None:
    made = made_instructions(train=200, validation=20, test=30, largest=3, corpus=90)
    assert made.corpus is not None
    assert len(made.corpus["tokens"]) == 90
    read = dataclasses.replace(made, validation=made.corpus)
    asked = [prompt for split in ("train", "test") for prompt, _ in _answers(made, split)]
    numbers = [int(x) for prompt in asked for x in re.findall(r"\d+", prompt)]
    assert max(numbers) == 3
    wordings = {re.sub(r"\d+|Ann|Bob|Tim|Eve|Max|Sue|\b\w+s\b", "", prompt) for prompt in asked}
    for prompt, response in _answers(read, "validation"):
        assert response == f"{_sum_of(prompt)}<|end|>"
        assert re.sub(r"\d+|Ann|Bob|Tim|Eve|Max|Sue|\b\w+s\b", "", prompt) not in wordings
    assert made.corpus["tokens"].shape[1] == made.train["tokens"].shape[1]
    assert made_instructions(train=200, validation=20, test=30).corpus is None


def test_rows_are_a_function_of_the_seed(made: TextSplits) -> None:
    again, other = made_instructions(400, 60, 80), made_instructions(400, 60, 80, seed=1)
    assert torch.equal(again.train["tokens"], made.train["tokens"])
    assert _answers(other, "train") != _answers(made, "train")


def test_bad_sizes_are_told() -> None:
    with pytest.raises(ValueError, match=r"data\.test"):
        made_instructions(validation=900, test=200)
    with pytest.raises(ValueError, match=r"set data\.test=86"):  # half of six names, eight things and four pairs
        made_instructions(validation=10, test=200, largest=1)
    with pytest.raises(ValueError, match=r"data\.largest"):
        made_instructions(largest=12)
    with pytest.raises(ValueError, match=r"data\.corpus"):
        made_instructions(corpus=-1)
    with pytest.raises(ValueError, match=r"data\.train"):
        made_instructions(train=0)
    with pytest.raises(ValueError, match=r"data\.vocab=512"):
        made_instructions(vocab=100)

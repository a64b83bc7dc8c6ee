"""BM25 by hand, and random scores that are the seed's."""

import math

import pytest
import torch

import metagradient as mg
from metagradient import models
from metagradient.attribution import TrainedRun, method
from metagradient.attribution.methods.baselines import bm25
from metagradient.errors import UserError

DOCUMENTS = ["the cat sat", "the dog saw the cat and the cat", "a bird"]
QUERIES = ["cat cat", "the bird", "fish"]


def words(texts: list[str]) -> list[list[str]]:
    return [text.split() for text in texts]


def test_bm25_is_the_formula_by_hand() -> None:
    found = bm25(words(DOCUMENTS), words(QUERIES))
    mean = (3 + 8 + 2) / 3

    def term(holders: int, often: int, length: int) -> float:
        rarity = math.log(1 + (3 - holders + 0.5) / (holders + 0.5))
        return rarity * often * 2.5 / (often + 1.5 * (0.25 + 0.75 * length / mean))

    expected = [
        [2 * term(2, 1, 3), term(2, 1, 3), 0.0],
        [2 * term(2, 2, 8), term(2, 3, 8), 0.0],
        [0.0, term(1, 1, 2), 0.0],
    ]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_bm25_of_nothing_is_nothing() -> None:
    assert bm25([[], []], [["a"], []]).tolist() == [[0.0, 0.0], [0.0, 0.0]]


def run(**told: object) -> TrainedRun:
    learner = mg.LanguageModel(models.GPT(9, 8, layers=1, heads=2, width=4), mg.SGD(), 0.1)
    tokens = torch.tensor([[0, 1, 2], [1, 1, 3], [4, 5, 6], [7, 8, 2]])
    batches = mg.Batches({"tokens": tokens}, torch.tensor([[0, 1], [2, 3]]))
    return TrainedRun(learner=learner, batches=batches, state=mg.initial_state(learner), **told)  # type: ignore[arg-type]


def test_bm25_reads_the_words_that_the_run_tells() -> None:
    queries = {"tokens": torch.tensor([[1, 3, 3], [8, 8, 0]])}
    trained = run(words=lambda fields: [list(map(str, row)) for row in fields["tokens"].tolist()])
    found = method("bm25")(trained, queries)
    assert found.argmax(0).tolist() == [1, 3]
    torch.testing.assert_close(method("bm25").aggregate(trained, queries), found.mean(1))
    with pytest.raises(UserError, match="bm25 compares the words of texts"):
        method("bm25")(run(), queries)


def test_random_scores_are_the_seeds_and_do_not_depend_on_the_other_queries() -> None:
    queries = {"tokens": torch.zeros(300, 3, dtype=torch.int64)}
    found = method("random", seed=3)(run(), queries)
    assert abs(float(found.mean())) < 0.1
    assert 0.9 < float(found.std()) < 1.1
    fewer = {"tokens": queries["tokens"][:2]}
    assert torch.equal(method("random", seed=3)(run(), fewer), found[:, :2])
    assert not torch.equal(method("random", seed=4)(run(), fewer), found[:, :2])
    with pytest.raises(UserError, match="self-influence"):
        method("random").self_influence(run())

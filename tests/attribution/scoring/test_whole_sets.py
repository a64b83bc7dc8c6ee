"""One score for a whole set, and of an example for itself: against the matrix that they spare."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import metagradient as mg
from metagradient import models
from metagradient.attribution import (
    TRAK,
    Dropout,
    ExactScores,
    Influence,
    KernelInfluence,
    Scorer,
    checkpoints,
    exact_scores,
    fit_at_weight,
    scores,
    tracin,
)
from metagradient.errors import UserError

N, Q, C = 14, 11, 3
CLOSE = {"rtol": 1e-9, "atol": 1e-12}


def data(n: int, seed: int) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {"x": torch.randn(n, 5, generator=g, dtype=torch.float64), "y": torch.randint(C, (n,), generator=g)}


TRAIN, QUERIES = data(N, 0), data(Q, 1)
BATCHES = mg.Batches(TRAIN, mg.epoch_plan(N, 4, 4, seed=0))


def learner(seed: int = 0) -> mg.Classifier:
    torch.manual_seed(seed)
    return mg.Classifier(models.mlp((5,), C, hidden=(4,)).double(), mg.SGD(0.5), 0.2)


LEARNER = learner()
STATES = [state for state, _ in checkpoints(LEARNER, BATCHES, 3)]
END = STATES[-1]
DROPOUT = Influence(Dropout(20), labels=None, batch_size=4)


def trak() -> Scorer:
    pairs = [(m := learner(seed), mg.train(m, BATCHES)) for seed in (0, 1)]
    return TRAK(Dropout(20), batch_size=4).fit(pairs, TRAIN)


SCORERS: dict[str, Callable[[], Scorer]] = {
    "compressed": lambda: DROPOUT.fit(LEARNER, END, TRAIN),
    "along the run": lambda: DROPOUT.fit(LEARNER, STATES, TRAIN),
    "at alpha": lambda: fit_at_weight(lambda state: DROPOUT.fit(LEARNER, state, TRAIN), LEARNER, BATCHES, 0.5),
    "kernels": lambda: KernelInfluence(labels=None, batch_size=4).fit(LEARNER, END, TRAIN),
    "products": lambda: KernelInfluence("identity", batch_size=4).fit(LEARNER, END, TRAIN),
    "cosine": lambda: KernelInfluence("identity", batch_size=4, cosine=True).fit(LEARNER, END, TRAIN),
    "tracin": lambda: tracin(LEARNER, checkpoints(LEARNER, BATCHES, 2), TRAIN),
    "trak": trak,
}


@pytest.mark.parametrize("name", SCORERS)
def test_the_score_for_a_set_is_the_mean_of_its_queries(name: str) -> None:
    scorer = SCORERS[name]()
    matrix = scores(scorer, QUERIES, 0.3)
    torch.testing.assert_close(scorer.aggregate(QUERIES, 0.3), matrix.mean(1), **CLOSE)
    contrast = torch.linspace(-1, 2, Q, dtype=torch.float64)
    torch.testing.assert_close(scorer.aggregate(QUERIES, 0.3, contrast), matrix @ contrast, **CLOSE)


@pytest.mark.parametrize("name", [name for name in SCORERS if name != "cosine"])
def test_self_influence_is_the_diagonal(name: str) -> None:
    scorer = SCORERS[name]()
    torch.testing.assert_close(scorer.self_influence(0.3), scores(scorer, TRAIN, 0.3).diagonal(), **CLOSE)


def test_a_cosine_with_itself_says_nothing() -> None:
    with pytest.raises(UserError, match="gradient_dot"):
        SCORERS["cosine"]().self_influence(0.3)


@pytest.mark.parametrize("at", [1.0, 0.5])
def test_exact_scores_of_a_set_take_one_replay(at: float) -> None:
    exact = ExactScores(LEARNER, BATCHES, at=at, at_once=5)
    matrix, thrice = exact_scores(exact, QUERIES)
    found, once = exact.aggregate(QUERIES)
    torch.testing.assert_close(found, matrix.mean(1), **CLOSE)
    assert thrice == 3 * once
    own = torch.cat([part for part, _ in exact.self_influence()])
    dense, _ = exact_scores(exact, TRAIN)
    torch.testing.assert_close(own, dense.diagonal(), **CLOSE)
    resumed = torch.cat([part for part, _ in exact.self_influence(start=10)])
    torch.testing.assert_close(resumed, own[10:], **CLOSE)


def test_a_mean_over_nobody_is_refused() -> None:
    with pytest.raises(UserError, match="no queries"):
        SCORERS["products"]().aggregate({name: field[:0] for name, field in QUERIES.items()}, 1.0)


def test_the_mean_leaves_out_queries_without_a_label() -> None:
    torch.manual_seed(0)
    some = mg.Classifier(models.mlp((5,), C, hidden=(4,)).double(), mg.SGD(0.5), 0.2, ignore_index=-1)
    queries = QUERIES | {"y": torch.where(torch.arange(Q) < 4, -1, QUERIES["y"])}
    labelled = {name: field[4:] for name, field in QUERIES.items()}
    end = mg.train(some, BATCHES)
    exact = ExactScores(some, BATCHES)
    torch.testing.assert_close(exact.aggregate(queries)[0], exact_scores(exact, labelled)[0].mean(1), **CLOSE)
    for method in (DROPOUT, KernelInfluence("identity", batch_size=4), KernelInfluence("identity", cosine=True)):
        scorer = method.fit(some, end, TRAIN)
        torch.testing.assert_close(scorer.aggregate(queries, 0.3), scores(scorer, labelled, 0.3).mean(1), **CLOSE)
    twins = TRAK(Dropout(20), batch_size=4).fit([(some, end)], TRAIN)
    torch.testing.assert_close(twins.aggregate(queries, 0.3), scores(twins, labelled, 0.3).mean(1), **CLOSE)

"""Scores of padded texts, by every method: those of each text alone, however they are padded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import metagradient as mg
from metagradient import models
from metagradient.attribution import ExactScores, TrainedRun, exact_scores, exact_token_scores, method
from metagradient.errors import UserError
from metagradient.evaluation import example_losses_of
from metagradient.learners.language import heads

N, VOCABULARY = 8, 17
Fields = dict[str, Tensor]


def texts(seed: int, count: int, width: int = 7, filler: int = 0) -> Fields:
    """Rows of 3 to 7 tokens, of which those after the first two are targets; the last row of the second seed has none."""
    rng = torch.Generator().manual_seed(seed)
    lengths = 3 + torch.arange(count) * 3 % 5
    tokens, mask = torch.full((count, width), filler), torch.arange(width) < lengths[:, None]
    tokens[mask] = torch.randint(VOCABULARY, (int(lengths.sum()),), generator=rng)
    labels = torch.where(mask & (torch.arange(width) > 1), tokens, -100)
    if seed == 1:
        labels[-1] = -100
    return {"tokens": tokens, "mask": mask, "labels": labels}


def run(**padding: int) -> TrainedRun:
    torch.manual_seed(0)
    gpt = models.GPT(VOCABULARY, 12, layers=1, heads=2, width=4, tied=True).double()
    learner = mg.LanguageModel(gpt, mg.SGD(momentum=0.5), 0.3)
    examples = texts(0, N, **padding)
    return TrainedRun.of(learner, mg.Batches(examples, mg.epoch_plan(N, 4, 2, seed=0)))


CURVED = [
    *(f"{name}:40" for name in ("dropout", "factor_dropout", "gaussian", "factor_gaussian", "sjlt", "dropout_sjlt")),
    *("pca:4", "factor_pca:40", "none", "dropout:40:path"),
]
PLAIN = ("gradient_dot", "cosine", "tracin:2", "exact")
CASES = [*((n, c) for n in CURVED for c in ("gauss_newton", "fisher")), *((n, "identity") for n in PLAIN)]


@pytest.mark.parametrize(("name", "curvature"), CASES)
def test_padding_changes_no_score(name: str, curvature: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "LARGE", 1)
    asked = method(name, curvature=curvature, labels=2, damping=0.5, batch=3)
    one, other = run(), run(width=11, filler=5)
    scores = asked(one, texts(1, 4))
    assert bool((scores[:, :3].abs().sum(0) > 0).all())
    assert float(scores[:, 3].abs().nan_to_num().max()) == 0  # a query without targets
    close = {"rtol": 1e-8, "atol": 1e-12}
    wider = texts(1, 4, width=11, filler=5)
    torch.testing.assert_close(asked(other, wider), scores, equal_nan=True, **close)
    torch.testing.assert_close(asked.aggregate(one, texts(1, 4)), scores[:, :3].mean(1), **close)
    if name not in ("cosine", "exact"):
        torch.testing.assert_close(asked.self_influence(other), asked.self_influence(one), **close)


def test_scores_are_the_closed_form_of_single_texts() -> None:
    """(1/n) g_q^T (F + damping tr(F) / P)^-1 g_i with g of each text by itself."""
    trained = run(width=11, filler=5)

    def gradient(fields: Fields, i: int) -> Tensor:
        length = int(fields["mask"][i].sum())
        leaf = trained.state.leaf()
        with trained.learner.evaluating(leaf):
            tokens = fields["tokens"][i : i + 1, :length]
            logits = trained.learner.model(tokens[:, :-1])[0]  # type: ignore[operator]
            losses = logits.logsumexp(1) - logits[torch.arange(length - 1), tokens[0, 1:]]
            return torch.autograd.grad(losses[1:].mean(), leaf.params)[0]

    queries = texts(1, 4)
    g, h = (torch.stack([gradient(f, i) for i in range(m)]) for f, m in ((trained.train, N), (queries, 3)))
    matrix = g.T @ g / N
    matrix += 0.3 * matrix.trace() / len(matrix) * torch.eye(len(matrix), dtype=torch.float64)
    expected = g @ torch.linalg.solve(matrix, h.T) / N
    for name in ("none", f"dropout:{len(matrix)}"):
        found = method(name, curvature="fisher", damping=0.3, batch=3)(trained, queries)
        torch.testing.assert_close(found[:, :3], expected, rtol=1e-8, atol=1e-12)


def test_a_store_of_padded_texts_answers_later_queries(tmp_path: Path) -> None:
    settings = {"labels": 1, "damping": 0.5, "batch": 3}
    expected = method("dropout:40", **settings)(run(), texts(1, 4))
    for _ in range(2):
        found = method("dropout:40", store=str(tmp_path), **settings)(run(), texts(1, 4, width=11, filler=5))
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("at", [1.0, 0.5])
def test_scores_of_tokens_sum_to_those_of_their_texts(at: float) -> None:
    trained, queries = run(), texts(1, 4)
    exact = ExactScores(trained.learner, trained.batches, at=at, at_once=3)
    tokens, cost = exact_token_scores(exact, queries)
    by_row = exact.token_weights().split(tokens.T)  # n of [q, L_i]
    assert [part.shape[1] for part in by_row] == (trained.train["labels"] != -100).sum(1).tolist()
    expected, expected_cost = exact_scores(exact, queries)
    torch.testing.assert_close(torch.stack([part.sum(1) for part in by_row]), expected, rtol=1e-9, atol=1e-13)
    assert cost == pytest.approx(expected_cost)


def test_the_score_of_a_token_is_what_its_weight_changes() -> None:
    """Central differences of the query's loss in the weight of one token."""
    trained, queries = run(), texts(1, 1, width=7)
    exact = ExactScores(trained.learner, trained.batches)
    (found,) = exact_token_scores(exact, queries)[0].T
    weights, step = exact.token_weights(), 1e-4
    for place in (0, 5, len(found) - 1):
        losses = []
        for sign in (1, -1):
            moved = weights.value.double().clone()
            moved[place] += sign * step
            z = mg.TokenWeights(moved, counts=weights.counts)
            losses.append(mg.train(trained.learner, trained.batches, [z]))
        up, down = (float(example_losses_of(trained.learner, state, queries)) for state in losses)
        assert float(found[place]) == pytest.approx(-(up - down) / (2 * step), rel=1e-5, abs=1e-9)


def test_token_scores_are_of_language_models() -> None:
    learner = mg.Classifier(models.linear((3,), 2), mg.SGD(), 0.1)
    batches = mg.Batches({"x": torch.randn(4, 3), "y": torch.tensor([0, 1, 0, 1])}, torch.tensor([[0, 1]]))
    with pytest.raises(UserError, match="token scores are of language models"):
        exact_token_scores(ExactScores(learner, batches), {"x": torch.randn(1, 3), "y": torch.tensor([0])})

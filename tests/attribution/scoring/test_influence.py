"""Influence scores against dense closed forms; exact scores against weights that are really changed."""

from typing import Any

import pytest
import torch
from torch import Tensor

import metagradient as mg
from metagradient import models
from metagradient.attribution import (
    PCA,
    Dropout,
    ExactScores,
    Influence,
    KernelInfluence,
    Uncompressed,
    checkpoints,
    exact_scores,
    fit_at_weight,
    run_damping,
    scores,
)
from metagradient.attribution.scoring import curvature
from metagradient.attribution.scoring.curvature import Dual, Primal, from_features
from metagradient.errors import UserError
from metagradient.training.batches import Batch

N, Q, C = 14, 4, 3
P = (5 + 1) * C


def data(n: int, seed: int) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {"x": torch.randn(n, 5, generator=g, dtype=torch.float64), "y": torch.randint(C, (n,), generator=g)}


TRAIN, QUERIES = data(N, 0), data(Q, 1)


def logistic() -> tuple[mg.Classifier, mg.TrainState]:
    torch.manual_seed(0)
    learner = mg.Classifier(models.linear((5,), C).double(), mg.SGD(), 0.1)
    return learner, mg.initial_state(learner)


def dense_gradients(state: mg.TrainState, examples: dict[str, Tensor], labels: Tensor | None = None) -> Tensor:
    """[n, P] of softmax regression, written down: (p - e_y) x^T, then p - e_y."""
    weight, bias = state.params[: 5 * C].view(C, 5), state.params[5 * C :]
    p = (examples["x"] @ weight.T + bias).softmax(1)
    delta = p - torch.nn.functional.one_hot(examples["y"] if labels is None else labels, C)
    return torch.cat([(delta.unsqueeze(2) * examples["x"].unsqueeze(1)).flatten(1), delta], dim=1)


def hessian(state: mg.TrainState) -> Tensor:
    """Of the mean training loss, by double backward: for softmax regression the Gauss-Newton matrix is the Hessian."""

    def loss(params: Tensor) -> Tensor:
        logits = TRAIN["x"] @ params[: 5 * C].view(C, 5).T + params[5 * C :]
        return torch.nn.functional.cross_entropy(logits, TRAIN["y"])

    return torch.autograd.functional.hessian(loss, state.params)  # type: ignore[no-untyped-call]


def closed_form(state: mg.TrainState, curvature: Tensor, damping: float) -> Tensor:
    """(1/n) g_q^T (F + damping tr(F) / P)^-1 g_i, [n, q]."""
    shifted = curvature + damping * curvature.trace() / P * torch.eye(P, dtype=torch.float64)
    return dense_gradients(state, TRAIN) @ torch.linalg.solve(shifted, dense_gradients(state, QUERIES).T) / N


def curvatures(state: mg.TrainState) -> dict[str, Tensor]:
    g = dense_gradients(state, TRAIN)
    return {"gauss_newton": hessian(state), "fisher": g.T @ g / N}


def test_what_was_prepared_is_not_computed_again() -> None:
    learner, _ = logistic()
    told: list[str] = []
    scorer = fit_at_weight(
        lambda s: Influence(Dropout(6)).fit(learner, s, TRAIN, lambda what, *_: told.append(what)),
        learner,
        mg.Batches(TRAIN, mg.epoch_plan(N, 7, 1, seed=0)),
        0.5,
    )
    assert "compressing" not in told
    scorer.prepare()
    assert told.count("compressing") == 1
    scores(scorer, QUERIES, 0.1)
    assert told.count("compressing") == 1


@pytest.mark.parametrize("batch_size", [5, 512])
@pytest.mark.parametrize("name", ["gauss_newton", "fisher"])
@pytest.mark.parametrize("damping", [1e-3, 0.3])
def test_influence_is_the_closed_form_on_logistic_regression(name: Any, damping: float, batch_size: int) -> None:
    learner, state = logistic()
    expected = closed_form(state, curvatures(state)[name], damping)
    close = {"rtol": 1e-9, "atol": 1e-12}
    for method in (
        Influence(Uncompressed(), name, labels=None, batch_size=batch_size),
        KernelInfluence(name, labels=None, batch_size=batch_size),
        Influence(Dropout(P), name, labels=None, batch_size=batch_size, cache=0),
    ):
        scorer = method.fit(learner, state, TRAIN)
        torch.testing.assert_close(scores(scorer, QUERIES, damping), expected, **close)
        own = dense_gradients(state, TRAIN)
        shifted = curvatures(state)[name].clone()
        shifted.diagonal().add_(damping * shifted.trace() / P)
        on_itself = (own * torch.linalg.solve(shifted, own.T).T).sum(1) / N
        torch.testing.assert_close(scorer.self_influence(damping), on_itself, **close)


def test_chunks_start_where_they_are_told_and_take_several_dampings() -> None:
    learner, state = logistic()
    for method in (Influence(Uncompressed(), labels=None, batch_size=4), KernelInfluence(labels=None, batch_size=4)):
        scorer = method.fit(learner, state, TRAIN)
        together = torch.cat(list(scorer.chunks(QUERIES, [0.1, 1.0], start=8)), dim=1)
        for d, damping in enumerate([0.1, 1.0]):
            torch.testing.assert_close(together[d], scores(scorer, QUERIES, damping)[8:])


def test_drawn_labels_make_the_gauss_newton_matrix_on_average() -> None:
    learner, state = logistic()
    kernels = KernelInfluence(labels=40).fit(learner, state, TRAIN)
    assert kernels.kernel is not None
    torch.testing.assert_close(kernels.kernel.diagonal().sum() / N, hessian(state).trace(), rtol=0.2, atol=0)
    often = {k: torch.cat([v] * 100) for k, v in TRAIN.items()}
    influence = Influence(Uncompressed(), labels=20).fit(learner, state, often)
    assert isinstance(influence.curvature, Primal)
    error = (influence.curvature.matrix - hessian(state)).norm() / hessian(state).norm()
    assert float(error) < 0.05


def test_positions_count_once_each_in_a_language_models_gauss_newton() -> None:
    """The factor 1/sqrt(T): drawn labels against the exact matrix (1/T) sum_t J_t^T (diag p - p p^T) J_t."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Embedding(4, 3), torch.nn.Linear(3, 4)).double()
    learner = mg.LanguageModel(model, mg.SGD(), 0.1)
    tokens = torch.randint(4, (2, 6), generator=torch.Generator().manual_seed(1))
    state = mg.initial_state(learner)
    batch = mg.Batch(0, torch.arange(2), {"tokens": tokens})

    def logits(params: Tensor) -> Tensor:
        with learner.evaluating(mg.TrainState(params, (), state.buffers)):
            return learner.logits(batch)

    jacobian = torch.autograd.functional.jacobian(logits, state.params)  # type: ignore[no-untyped-call]
    p = logits(state.params).softmax(-1)
    middle = torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)
    exact = torch.einsum("btcp,btcd,btdq->pq", jacobian, middle, jacobian) / 5 / 2
    fitted = Influence(Uncompressed(), labels=20).fit(learner, state, {"tokens": torch.cat([tokens] * 100)})
    assert isinstance(fitted.curvature, Primal)
    assert float((fitted.curvature.matrix - exact).norm() / exact.norm()) < 0.05


def test_primal_and_dual_agree_and_the_smaller_one_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    g = torch.Generator().manual_seed(0)
    h, queries = (torch.randn(m, 9, generator=g, dtype=torch.float64) for m in (6, 3))
    monkeypatch.setattr(curvature, "_COLUMNS", 4)
    dual = from_features(iter(h.split(4)), n=5, rows=6, k=9)
    primal = Primal(h.T @ h / 5)
    summed = from_features(iter(h.split(4)), n=5, rows=20, k=9)
    assert isinstance(summed, Primal)
    torch.testing.assert_close(summed.matrix, primal.matrix)
    assert isinstance(dual, Dual)
    for damping in (1e-3, 1.0):
        torch.testing.assert_close(dual.solve(queries, damping), primal.solve(queries, damping))


def test_without_curvature_scores_are_gradient_products_and_cosines() -> None:
    learner, state = logistic()
    g, q = dense_gradients(state, TRAIN), dense_gradients(state, QUERIES)
    plain = KernelInfluence("identity").fit(learner, state, TRAIN)
    torch.testing.assert_close(scores(plain, QUERIES, 1.0), g @ q.T / N)
    cosine = KernelInfluence("identity", cosine=True).fit(learner, state, TRAIN)
    torch.testing.assert_close(
        scores(cosine, QUERIES, 1.0), torch.nn.functional.cosine_similarity(g[:, None], q, dim=2)
    )
    masked = Influence(Dropout(P), "identity").fit(learner, state, TRAIN)
    torch.testing.assert_close(scores(masked, QUERIES, 1.0), g @ q.T / N)


@pytest.mark.parametrize("damping", [0.0, -1.0])
def test_a_damping_that_is_not_positive_is_refused(damping: float) -> None:
    learner, state = logistic()
    for method in (Influence(Uncompressed(), labels=None), KernelInfluence(labels=None)):
        with pytest.raises(UserError, match="damping"):
            scores(method.fit(learner, state, TRAIN), QUERIES, damping)


def run(at: float = 1.0, at_once: int | None = None) -> ExactScores:
    torch.manual_seed(0)
    learner = mg.Classifier(models.mlp((5,), C, hidden=(4,)).double(), mg.SGD(0.9), 0.2)
    batches = mg.Batches(TRAIN, mg.epoch_plan(N, 4, 6, seed=0))
    return ExactScores(learner, batches, at=at, at_once=at_once)


@pytest.mark.parametrize("at", [1.0, 0.5])
def test_an_exact_score_is_what_removing_a_little_of_the_example_does(at: float) -> None:
    """Positive where the query's loss rises: score = (loss at w_i - h) - (loss at w_i), over h."""
    this = run(at)
    found, cost = exact_scores(this, QUERIES)
    assert cost >= 1

    def query_losses(weights: Tensor) -> Tensor:
        state = mg.train(this.learner, this.batches, [mg.DataWeights(weights)])
        with torch.no_grad(), this.learner.evaluating(state):
            return this.learner.losses(mg.Batch(0, torch.arange(Q), dict(QUERIES)))

    for i in (0, 7, 13):
        less, more = (torch.full((N,), at, dtype=torch.float64) for _ in range(2))
        less[i] -= 1e-5
        more[i] += 1e-5
        torch.testing.assert_close(found[i], (query_losses(less) - query_losses(more)) / 2e-5, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("weight", [1.0, 0.5])
def test_of_a_converged_run_influence_and_exact_scores_are_the_same(weight: float) -> None:
    """With weight decay as its damping, around any weight of the examples: the implicit function theorem."""
    decay = 0.05
    torch.manual_seed(0)
    learner = mg.Classifier(models.linear((5,), C).double(), mg.SGD(weight_decay=decay), 1.0)
    batches = mg.Batches(TRAIN, mg.full_batch_plan(N, 400))
    exact, _ = exact_scores(ExactScores(learner, batches, at=weight, checkpoints="sqrt"), QUERIES)
    method = Influence(Uncompressed(), labels=None)
    scorer = fit_at_weight(lambda state: method.fit(learner, state, TRAIN), learner, batches, weight)
    state = mg.train(learner, batches, [mg.DataWeights(torch.full((N,), weight))])
    damping = decay / weight / float(hessian(state).diagonal().mean())
    torch.testing.assert_close(scores(scorer, QUERIES, damping), exact, rtol=1e-6, atol=1e-9)
    assert scorer.scale is not None
    assert run_damping(learner, batches) / scorer.scale == pytest.approx(damping * (1 + 1 / (400 * decay)))


def test_decay_that_spares_parameters_counts_with_its_share_of_them() -> None:
    learner = mg.Classifier(
        models.linear((5,), C), mg.SGD(weight_decay=0.2), 0.5, decay=lambda _, shape: len(shape) > 1
    )
    assert run_damping(learner, mg.Batches(TRAIN, mg.full_batch_plan(N, 4))) == pytest.approx(0.2 * 15 / 18 + 0.5)


def test_at_one_weight_for_all_the_divisor_has_to_stay() -> None:
    learner = mg.Classifier(models.linear((5,), C).double(), mg.SGD(), 1.0, normalize="kept")
    with pytest.raises(UserError, match=r"learner\.normalize=batch"):
        fit_at_weight(lambda state: Influence(Uncompressed()).fit(learner, state, TRAIN), learner, run().batches, 0.5)


@pytest.mark.parametrize("cache", [0, 2**30])
@pytest.mark.parametrize("name", ["gauss_newton", "fisher"])
def test_along_a_run_gradients_and_curvature_are_means_over_its_states(name: Any, cache: int) -> None:
    learner, first = logistic()
    last = mg.train(learner, mg.Batches(TRAIN, mg.full_batch_plan(N, 30)))
    mean = torch.stack([curvatures(state)[name] for state in (first, last)]).mean(0)
    own = torch.stack([dense_gradients(state, TRAIN) for state in (first, last)]).mean(0)
    shifted = mean + 0.1 * mean.trace() / P * torch.eye(P, dtype=torch.float64)
    expected = own @ torch.linalg.solve(shifted, dense_gradients(last, QUERIES).T) / N
    for compressor in (Uncompressed(), Dropout(P)):
        scorer = Influence(compressor, name, labels=None, batch_size=5, cache=cache).fit(learner, [first, last], TRAIN)
        torch.testing.assert_close(scores(scorer, QUERIES, 0.1), expected, rtol=1e-9, atol=1e-12)
        on_itself = scores(scorer, TRAIN, 0.1).diagonal()
        torch.testing.assert_close(scorer.self_influence(0.1), on_itself, rtol=1e-9, atol=1e-12)
        assert scorer.scale == pytest.approx(float(mean.trace()) / P)


def test_of_a_run_far_from_converged_its_own_damping_predicts_the_exact_scores() -> None:
    """Forty steps: mean correlation over the queries with the replay's scores, and relative error."""
    torch.manual_seed(0)
    learner = mg.Classifier(models.linear((5,), C).double(), mg.SGD(momentum=0.5), 0.1)
    batches = mg.Batches(TRAIN, mg.full_batch_plan(N, 40))
    assert run_damping(learner, batches) == pytest.approx(0.5 / (40 * 0.1))
    exact, _ = exact_scores(ExactScores(learner, batches), QUERIES)
    path = [state for state, _ in checkpoints(learner, batches, 10)]
    method = Influence(Uncompressed(), labels=None)

    def agreement(states: mg.TrainState | list[mg.TrainState], factor: float) -> tuple[float, float]:
        scorer = method.fit(learner, states, TRAIN)
        found = scores(scorer, QUERIES, factor * run_damping(learner, batches) / scorer.scale)
        columns = [torch.stack([found[:, q], exact[:, q]]).corrcoef()[0, 1] for q in range(Q)]
        return float(torch.stack(columns).mean()), float((found - exact).norm() / exact.norm())

    correlation, error = agreement(path, 1.0)
    assert correlation > 0.99
    assert correlation > max(agreement(path, factor)[0] for factor in (0.3, 3.0)) + 0.01
    assert error < agreement(path[-1], 1.0)[1]


def test_principal_directions_are_fitted_on_all_states_of_a_run() -> None:
    """As many examples as two batches of one state, of 12 dimensions 8: half are of the last state, and lie in the subspace."""
    learner, first = logistic()
    last = mg.TrainState(torch.linspace(-2, 2, P, dtype=torch.float64), (), first.buffers)
    method = Influence(PCA(8, examples=8), "identity", batch_size=4)
    scorer = method.fit(learner, [first, last], TRAIN)
    rows = torch.arange(4)
    kept = scorer.features(Batch(0, rows, {k: v[rows] for k, v in TRAIN.items()}))
    whole = dense_gradients(last, TRAIN)[rows]
    torch.testing.assert_close(kept @ kept.T, whole @ whole.T, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("optimizer", "rate", "says"),
    [
        (mg.Adam(), 0.1, "not Adam"),
        (mg.SGD(), 0.0, "learner.learning_rate"),
        (mg.SGD(momentum=1.0), 0.1, "learner.optimizer.momentum"),
    ],
)
def test_a_run_without_a_damping_of_its_own_is_refused(optimizer: Any, rate: float, says: str) -> None:
    learner = mg.Classifier(models.linear((5,), C), optimizer, rate)
    with pytest.raises(UserError, match=says):
        run_damping(learner, mg.Batches(TRAIN, mg.full_batch_plan(N, 3)))


def test_queries_in_chunks_have_the_same_exact_scores() -> None:
    together, once = exact_scores(run(), QUERIES)
    in_chunks, thrice = exact_scores(run(at_once=2), QUERIES)
    torch.testing.assert_close(together, in_chunks)
    assert thrice == 2 * once
    resumed = next(run(at_once=2).columns(QUERIES, start=2))[0]
    torch.testing.assert_close(resumed, together[:, 2:])

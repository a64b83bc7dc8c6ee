"""Judges of scores, against cases whose answer is known."""

import pytest
import torch
from scipy.stats import pearsonr, spearmanr

import metagradient as mg
from metagradient import models
from metagradient.errors import UserError
from metagradient.evaluation import (
    GroundTruth,
    brittleness,
    check_scores,
    inspection_curve,
    leave_one_out,
    leave_one_out_correlation,
    linear_datamodeling_score,
    mislabel_auc,
    source_precision,
    subsets,
    with_every_label,
)

N, Q, R = 30, 6, 40
G = torch.Generator().manual_seed(0)
SCORES = torch.randn(N, Q, generator=G)
KEPT = subsets(N, 0.3, R, seed=0)
ADDITIVE = (~KEPT).float() @ SCORES  # a world in which losses rise by the sum of the removed scores


def test_true_scores_of_an_additive_world_are_perfect_and_their_negatives_worst() -> None:
    assert linear_datamodeling_score(SCORES, KEPT, ADDITIVE).mean == pytest.approx(1)
    assert linear_datamodeling_score(-SCORES, KEPT, ADDITIVE).mean == pytest.approx(-1)
    monotone = linear_datamodeling_score(SCORES, KEPT, ADDITIVE.exp() + torch.arange(Q))  # ranks alone count
    assert monotone.mean == pytest.approx(1)


def test_it_is_the_mean_of_spearman_correlations_with_an_interval_around() -> None:
    losses = (ADDITIVE + 4 * torch.randn(R, Q, generator=G)).round()  # with ties
    found = linear_datamodeling_score(SCORES, KEPT, losses)
    expected = [spearmanr(ADDITIVE[:, q], losses[:, q]).statistic for q in range(Q)]
    torch.testing.assert_close(found.per_query, torch.tensor(expected, dtype=torch.float64))
    assert found.mean == pytest.approx(sum(expected) / Q)
    assert found.low < found.mean < found.high
    constant = losses.clone()
    constant[:, 0] = 1.0
    assert linear_datamodeling_score(SCORES, KEPT, constant).per_query[0] == 0


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """Over fresh subsets and noise, the 95 % interval holds the score that very many retrainings would give."""
    g = torch.Generator().manual_seed(1)

    def score(runs: int, seed: int, resamples: int = 100) -> tuple[float, float, float]:
        kept = subsets(N, 0.3, runs, seed)
        losses = (~kept).float() @ SCORES + 3 * torch.randn(runs, Q, generator=g)
        found = linear_datamodeling_score(SCORES, kept, losses, resamples=resamples)
        return found.low, found.mean, found.high

    truth = score(4000, 99, 0)[1]
    hits = sum(low <= truth <= high for low, _, high in (score(R, seed) for seed in range(40)))
    assert hits >= 34


def test_scores_of_the_wrong_shape_or_value_are_refused() -> None:
    with pytest.raises(UserError, match="transposed"):
        check_scores(SCORES.T, N, Q)
    with pytest.raises(UserError, match="1 of the scores"):
        check_scores(SCORES.masked_fill(SCORES.max() == SCORES, torch.nan), N, Q)
    with pytest.raises(UserError, match="R >= 3"):
        linear_datamodeling_score(SCORES, KEPT[:, :5], ADDITIVE)


def test_leave_one_out_leaves_out_one() -> None:
    kept = leave_one_out(N, N, seed=0)
    assert torch.equal(kept.sum(1), torch.full((N,), N - 1))
    assert torch.equal(kept.sum(0), torch.full((N,), N - 1))  # each of them once
    assert torch.equal(kept[:4], leave_one_out(N, 4, seed=0))
    with pytest.raises(UserError, match="leave_one_out=30"):
        leave_one_out(N, N + 1, seed=0)


def test_leave_one_out_compares_single_scores() -> None:
    kept = leave_one_out(N, 12, seed=0)
    removed = (~kept).nonzero()[:, 1]
    losses = 2 + SCORES[removed] + torch.randn(12, Q, generator=torch.Generator().manual_seed(1))
    ranks, values = leave_one_out_correlation(SCORES, kept, losses)
    for found, reference in ((ranks, spearmanr), (values, pearsonr)):
        expected = [reference(SCORES[removed, q], losses[:, q]).statistic for q in range(Q)]
        torch.testing.assert_close(found.per_query, torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-6)
        assert found.low < found.mean < found.high
    assert all(c.mean == pytest.approx(-1) for c in leave_one_out_correlation(SCORES, kept, 5 - 3 * SCORES[removed]))


def test_wrong_labels_found() -> None:
    wrong = torch.tensor([0, 1, 0, 1, 0, 0]).bool()
    suspicion = torch.tensor([5.0, 90.0, -3.0, 40.0, 60.0, 2.0])
    assert mislabel_auc(suspicion, wrong) == pytest.approx(7 / 8)  # 7 of the 8 pairs are in order
    torch.testing.assert_close(inspection_curve(suspicion, wrong), torch.tensor([0, 0.5, 0.5, 1, 1, 1, 1]).double())
    with pytest.raises(UserError, match="0 of 6"):
        mislabel_auc(suspicion, torch.zeros(6).bool())


def test_planted_sources_found() -> None:
    scores = torch.tensor([[3.0, 0], [2, 1], [1, 9], [0, 8]])
    sources = torch.tensor([0, 1, 1, 1])
    assert source_precision(scores, sources, torch.tensor([0, 1]), k=2) == pytest.approx(0.75)


def test_removing_what_a_prediction_hangs_on_flips_it() -> None:
    """Two clusters of one class each; the query lies in the smaller one, which is what must go."""
    x = torch.cat([torch.full((20, 1), -1.0), torch.full((4, 1), 1.0)]) + 0.01 * torch.randn(24, 1, generator=G)
    data = {"x": x, "y": (torch.arange(24) >= 20).long()}
    query = {"x": torch.tensor([[1.0]]), "y": torch.tensor([1])}
    torch.manual_seed(0)
    learner = mg.Classifier(models.linear((1,), 2, zero_init=True), mg.SGD(), 0.5)
    batches = mg.Batches(data, mg.full_batch_plan(24, 100))
    truth = GroundTruth(learner, batches, with_every_label(query, 2))
    good = torch.where(data["y"] == 1, 1.0, 0.0).unsqueeze(1)
    found = brittleness(truth, good, query["y"], [1, 4])
    assert found.smallest.tolist() == [4.0]
    assert float(found.rise[1, 0]) > float(found.rise[0, 0]) > 0
    useless = brittleness(truth, -good, query["y"], [1, 4])
    assert useless.smallest.tolist() == [float("inf")]

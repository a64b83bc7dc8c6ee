"""Rows chosen by their scores."""

from types import SimpleNamespace

import torch

from metagradient.studies.selection.influence import _that_fits, best_share, random_rows, top


def test_the_share_of_highest_scores_is_kept():
    scores = torch.tensor([0.1, 3.0, -1.0, 2.0])
    assert top(scores, 0.5).tolist() == [False, True, False, True]
    assert top(scores, 0.01).tolist() == [False, True, False, False]


def test_random_rows_are_as_many_as_asked_for():
    kept = random_rows(50, 20, torch.Generator().manual_seed(0))
    assert int(kept.sum()) == 20
    assert not torch.equal(kept, random_rows(50, 20, torch.Generator().manual_seed(1)))


def test_the_share_whose_models_are_worth_most_is_taken():
    """Models that are trained on two of the four rows do best, whatever the order of the shares."""
    pool = {"x": torch.arange(4.0)}
    tuner = SimpleNamespace(accuracies=lambda examples, weights, tests: {"": -abs(len(examples["x"]) - 2.0)})
    search = SimpleNamespace(tuner=tuner, progress=SimpleNamespace(callback=lambda stage: lambda *told: None))
    scores = torch.tensor([0.1, 3.0, -1.0, 2.0])
    for shares in ([0.25, 0.5, 1.0], [1.0, 0.5, 0.25]):
        kept, share = best_share(search, pool, pool, scores, shares)
        assert share == 0.5
        assert kept.tolist() == [False, True, False, True]


def test_a_method_keeps_no_more_coordinates_than_there_are():
    assert _that_fits("dropout:2048:path", 100) == "dropout:100:path"
    assert _that_fits("dropout:2048", 4096) == "dropout:2048"
    assert _that_fits("gradient_dot", 100) == "gradient_dot"

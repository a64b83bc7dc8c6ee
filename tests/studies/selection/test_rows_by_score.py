"""Rows chosen by their scores."""

import torch

from metagradient.studies.selection.influence import random_rows, top


def test_the_share_of_highest_scores_is_kept():
    scores = torch.tensor([0.1, 3.0, -1.0, 2.0])
    assert top(scores, 0.5).tolist() == [False, True, False, True]
    assert top(scores, 0.01).tolist() == [False, True, False, False]


def test_random_rows_are_as_many_as_asked_for():
    kept = random_rows(50, 20, torch.Generator().manual_seed(0))
    assert int(kept.sum()) == 20
    assert not torch.equal(kept, random_rows(50, 20, torch.Generator().manual_seed(1)))

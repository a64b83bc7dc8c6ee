"""The predicted saving, on a clock that counts examples: what it says is what happens."""

from collections.abc import Sequence

import pytest
import torch
from unlearning_toys import CLASSES, INPUTS, PLANS, N, delete, examples

import metagradient as mg
from metagradient.unlearning import DeltaGrad, RecordedRun, Retrain, predicted_saving, record, saving


class Counting(mg.Classifier):
    """Its losses count the examples that they are asked for."""

    asked = 0

    def losses(self, batch: mg.Batch) -> torch.Tensor:
        Counting.asked += len(batch)
        return super().losses(batch)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> RecordedRun:
    monkeypatch.setattr(saving, "perf_counter", lambda: float(Counting.asked))
    torch.manual_seed(1)
    learner = Counting(torch.nn.Linear(INPUTS, CLASSES).double(), mg.SGD(weight_decay=0.01), 0.2)
    return record(learner, mg.Batches(examples(), PLANS["full"]))


@pytest.mark.parametrize(("period", "burn_in", "rows"), [(5, 10, [3]), (2, 0, range(20)), (4, 30, range(50))])
def test_the_saving_is_the_one_that_follows(run: RecordedRun, period: int, burn_in: int, rows: Sequence[int]) -> None:
    method, request = DeltaGrad(period, burn_in), delete(*rows)
    said = predicted_saving(method, run, request)
    costs = []
    for each in (Retrain(), method):
        before = Counting.asked
        each(run, request)
        costs.append(Counting.asked - before)
    # The run's own first steps, exact until there are two pairs, are what the prediction does not count.
    assert said == pytest.approx(costs[0] / costs[1], rel=0.05 if burn_in else 0.1)
    if len(rows) == 50:
        assert said < 0.5 * predicted_saving(method, run, delete(0)) < N
    assert predicted_saving(DeltaGrad(1), run, request) < 1.01

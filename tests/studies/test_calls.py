"""The questions in one call each, against the parts that they are made of and against what is true."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import metagradient as mg
from metagradient.attribution import TrainedRun, method
from metagradient.descent import WeightSelection
from metagradient.errors import UserError
from metagradient.unlearning import Retrain

N = 60


def data(seed: int = 0, wrong: int = 0, n: int = N) -> dict[str, Tensor]:
    """Two classes apart along the first axis; the first `wrong` labels are flipped."""
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 2
    x = torch.randn(n, 4, generator=g)
    x[:, 0] += 3 * (2 * y - 1)
    return {"x": x, "y": torch.where(torch.arange(n) < wrong, 1 - y, y)}


class Rows(Dataset):
    def __len__(self) -> int:
        return N

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return data()["x"][row], int(data()["y"][row])


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(4, 2)


def test_attribution_in_one_call_is_the_method_on_the_run(tmp_path: Path) -> None:
    queries = data(1, n=3)
    found = mg.attribute(net(), data(), queries, "none", training=mg.Training(epochs=3), damping=2.0)
    routine = mg.Training(epochs=3).routine(net())
    batches = routine.batches(data(), 0)
    run = TrainedRun.of(routine.learner(0, len(batches)), batches)
    assert torch.equal(found.values, method("none", damping=2.0)(run, queries))
    whole = mg.attribute(net(), data(), queries, "none", training=mg.Training(epochs=3), aggregate=True, damping=2.0)
    torch.testing.assert_close(whole.values[:, 0], found.values.mean(1))
    best, worst = found.top(1, 4)
    column = found.values[:, 1]
    assert column[best].tolist() == sorted(column.tolist(), reverse=True)[:4]
    assert column[worst].tolist() == sorted(column.tolist())[:4]
    found.csv(tmp_path / "top.csv", 2)
    rows = list(csv.DictReader((tmp_path / "top.csv").open()))
    assert [(r["query"], r["rank"]) for r in rows[4:8]] == [("1", "1"), ("1", "2"), ("1", "-1"), ("1", "-2")]
    assert [int(r["train_index"]) for r in rows[4:8]] == best[:2] + worst[:2]


def test_a_model_that_exists_is_asked_as_it_is() -> None:
    model = net()
    queries = data(1, n=2)
    found = mg.attribute(model, data(), queries, "gradient_dot", trained=True)

    def gradient(x: Tensor, y: Tensor) -> Tensor:
        loss = nn.functional.cross_entropy(model(x[None]), y[None])
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])

    one, other = gradient(data()["x"][5], data()["y"][5]), gradient(queries["x"][0], queries["y"][0])
    assert float(found.values[5, 0]) == pytest.approx(float(one @ other) / N, rel=1e-4)
    assert torch.equal(found.learner.model.weight, model.weight)


def test_selection_finds_the_wrong_labels() -> None:
    found = mg.select(
        lambda: nn.Linear(4, 2),
        data(wrong=12),
        data(1, n=40),
        descent=WeightSelection(metasteps=4),
        training=mg.Training(epochs=3),
    )
    assert found.weights[:12].mean() < found.weights[12:].mean() - 0.2


@pytest.mark.parametrize("rows", ["tensors", "read"])
def test_forgotten_rows_are_gone(rows: str) -> None:
    examples = data() if rows == "tensors" else Rows()
    how = mg.Training(epochs=20, batch_size=None, learning_rate=0.5)
    found = mg.unlearn(net(), examples, torch.arange(N) < 3, training=how, judge=True)
    assert found.distance_to_retrained is not None
    assert 0 < found.distance_to_retrained < 0.1 * found.distance
    truth = mg.unlearn(net(), examples, [0, 1, 2], by=Retrain(), training=how, judge=True)
    assert truth.distance_to_retrained == 0
    plain = net()
    optimizer = torch.optim.SGD(plain.parameters())
    for t in range(20):
        optimizer.param_groups[0]["lr"] = mg.Cosine(0.5, 20)(t)
        optimizer.zero_grad()
        nn.functional.cross_entropy(plain(data()["x"][3:]), data()["y"][3:]).backward()
        optimizer.step()
    torch.testing.assert_close(truth.learner.model.weight, plain.weight)


def test_what_does_not_fit_is_one_line() -> None:
    with pytest.raises(UserError, match=r"held_out=0.01 of 4 validation rows"):
        mg.select(net(), data(), data(1, n=4), held_out=0.01)
    with pytest.raises(UserError, match="no setting dampening"):
        mg.attribute(net(), data(), data(1, n=2), dampening=1.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size must be a whole number from 1 .*, not 0"),
        ({"epochs": 0}, "epochs must be a whole number from 1, not 0"),
        ({"learning_rate": "0.1"}, "learning_rate must be a number > 0, not '0.1'"),
    ],
)
def test_a_training_that_cannot_be_is_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        mg.Training(**settings)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (torch.ones(N + 1, dtype=torch.bool), rf"a mask of {N} truth values, not a mask \[{N + 1}\]"),
        ([], "none is given"),
        (["A-1"], r"not \['A-1'\]: of ids look up the rows"),
        ([0.5], r"not float32 \[1\]"),
    ],
)
def test_rows_that_cannot_be_forgotten_are_one_line(rows: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        mg.unlearn(net(), data(), rows)


def test_batches_and_arrays_are_data_as_tensors_are() -> None:
    how, descent = mg.Training(epochs=2), WeightSelection(metasteps=1)
    trusted, few = data(1, n=20), data(1, n=3)
    arrays = {name: x.numpy() for name, x in data().items()}
    whole = [mg.Batches(x, mg.epoch_plan(len(x["y"]), 10, 1, seed=0)) for x in (data(), trusted, few)]
    want = mg.select(net(), data(), trusted, training=how, descent=descent)
    for train, validation in ((whole[0], whole[1]), (arrays, trusted)):
        assert torch.equal(mg.select(net(), train, validation, training=how, descent=descent).weights, want.weights)
    scored = mg.attribute(net(), arrays, whole[2], training=how)
    assert torch.equal(scored.values, mg.attribute(net(), data(), few, training=how).values)


def test_by_default_small_models_are_not_compressed() -> None:
    assert mg.attribute(net(), data(), data(1, n=2), trained=True).method == "none"
    wide = nn.Sequential(nn.Linear(4, 1200), nn.Tanh(), nn.Linear(1200, 2))
    assert mg.attribute(wide, data(n=10), data(1, n=2), trained=True).method == "dropout:2048"


def test_numbers_with_fractions_are_regressed() -> None:
    x = data()["x"]
    examples = {"x": x, "y": x @ torch.tensor([1.0, -0.5, 0.25, 2.0]) + 0.3}
    found = mg.attribute(nn.Linear(4, 1), examples, examples, training=mg.Training(epochs=60))
    assert isinstance(found.learner, mg.Regressor)
    torch.testing.assert_close(found.learner(x)[:, 0], examples["y"], rtol=0, atol=0.05)


@pytest.mark.parametrize("read", [False, True])
def test_a_class_that_the_model_has_not_is_one_line(read: bool) -> None:
    train: Any = Rows() if read else data()
    with pytest.raises(UserError, match="labels go up to 1, but the model has 1 outputs"):
        mg.select(lambda: nn.Linear(4, 1), train, data(1, n=20), training=mg.Training(epochs=1))
    with pytest.raises(UserError, match="labels go up to 1, but the model has 1 outputs"):
        mg.select(
            lambda: nn.Linear(4, 1), data() | {"y": torch.zeros(N)}, data(1, n=20), training=mg.Training(epochs=1)
        )

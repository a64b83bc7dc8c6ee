"""A table with embedded categories: the one-hot model where it must be, and differentiable through its training."""

import numpy as np
import pandas as pd
import pytest
import torch

import metagradient as mg
from metagradient.data import Splits, table_file
from metagradient.models import TableMLP, linear


@pytest.fixture
def tables(tmp_path_factory: pytest.TempPathFactory) -> tuple[Splits, Splits]:
    """One table with codes and one-hot; a value of the test rows is unknown to the training rows, another is missing."""
    rng, n = np.random.default_rng(0), 90
    city = rng.choice(["Oslo", "Bern", "Lima"], n).astype(object)
    frame = pd.DataFrame({"age": rng.normal(size=n), "city": city, "member": rng.integers(0, 2, n).astype(bool)})
    frame["kind"], frame["part"] = np.where(frame["age"] > 0, "old", "young"), ["train", "val", "test"] * (n // 3)
    frame.loc[2, "city"], frame.loc[5, "city"] = "Rome", None
    path = str(tmp_path_factory.mktemp("table") / "a.csv")
    frame.to_csv(path, index=False)
    codes, hot = (table_file(path, "kind", split="part", encode=e) for e in ("codes", "onehot"))
    return codes, hot


def test_codes_are_the_places_of_the_categories(tables: tuple[Splits, Splits]) -> None:
    codes, hot = tables
    assert codes.features == ("age", "city", "member")
    assert codes.categories == ((), ("Bern", "Lima", "Oslo"), ("False", "True"))
    assert codes.category_sizes == (0, 4, 3)
    assert (hot.categories, hot.category_sizes) == ((), ())
    for name in ("train", "validation", "test"):
        x, indicators = getattr(codes, name)["x"], getattr(hot, name)["x"]
        assert torch.equal(x[:, 0], indicators[:, 0])
        none = 1 - indicators[:, 1:4].sum(1, keepdim=True)
        assert torch.equal(x[:, 1], torch.cat([none, indicators[:, 1:4]], 1).argmax(1).float())
    assert (codes.test["x"][:, 1] == 0).sum() == 2
    told = codes.describe(codes.test["x"])
    assert sum("city = unknown" in line for line in told) == 2
    assert sum("city = Oslo" in line for line in told) == int((codes.test["x"][:, 1] == 3).sum())


def embedding_the_indicators(model: TableMLP) -> None:
    """Each category's vector is its indicator, the unknown one's is 0."""
    for table in model.embeddings:
        size = table.num_embeddings - 1
        table.weight.data = torch.cat([torch.zeros(1, size), torch.eye(size)])


def test_with_indicators_for_vectors_it_is_the_linear_map_of_one_hot_columns(tables: tuple[Splits, Splits]) -> None:
    codes, hot = tables
    for sizes, width in (((0, 4, 0), 3), ((0, 0, 3), 2)):
        model = TableMLP((3,), 2, sizes, hidden=(), width=width)
        embedding_the_indicators(model)
        plain = linear((2 + width,), 2)
        plain[1].load_state_dict(model.perceptron[0].state_dict())
        chosen, other = ([1, 2, 3], codes.test["x"][:, 2:]) if width == 3 else ([4, 5], codes.test["x"][:, 1:2])
        x = torch.cat([hot.test["x"][:, :1], other, hot.test["x"][:, chosen]], 1)
        torch.testing.assert_close(model(codes.test["x"]), plain(x))


def test_a_step_moves_the_vectors_as_one_hot_weights_move(tables: tuple[Splits, Splits]) -> None:
    """A linear map of one number and an embedding as wide as the classes: its gradient is the one-hot weights'."""
    codes, hot = tables
    model = TableMLP((3,), 2, (0, 4, 3), hidden=(), width=2)
    model.perceptron[0].weight.data[:, 1:3] = torch.eye(2)
    x, y = codes.train["x"], codes.train["y"]
    torch.nn.functional.cross_entropy(model(x), y).backward()
    weights = torch.zeros(2, 6, requires_grad=True)
    logits = model(x).detach() + hot.train["x"] @ weights.T
    torch.nn.functional.cross_entropy(logits, y).backward()
    torch.testing.assert_close(model.embeddings[0].weight.grad[1:], weights.grad[:, 1:4].T)
    assert not model.embeddings[0].weight.grad[0].any()  # no training row is unknown


def test_metagradients_through_the_embeddings_are_the_differences(tables: tuple[Splits, Splits]) -> None:
    codes, _ = tables
    torch.manual_seed(0)
    learner = mg.Classifier(
        TableMLP((3,), 2, codes.category_sizes, hidden=(4,)), mg.SGD(momentum=0.9), learning_rate=0.2
    )
    learner = learner.double()
    batches = mg.Batches(codes.train, mg.epoch_plan(30, batch_size=10, epochs=4, seed=0))
    weights, objective = mg.DataWeights(torch.ones(30, dtype=torch.float64)), mg.mean_loss(codes.validation)
    found = mg.metagradient(learner, batches, weights, objective)
    rows = mg.finite_differences(learner, batches, weights, objective, found, coordinates=6)
    assert len(rows) == 6
    assert all(row.relative_error < 1e-6 for row in rows)


def test_tables_that_do_not_fit_are_told() -> None:
    with pytest.raises(ValueError, match=r"reads tables .* set model=mlp"):
        TableMLP((1, 8, 8), 2)
    with pytest.raises(ValueError, match="sizes of 2 columns, and there are 3"):
        TableMLP((3,), 2, (0, 4))

"""Rows from somebody's data set: the same run as from tensors in memory, transforms a function of the step."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

import metagradient as mg
from metagradient.attribution import Dropout, Influence, KernelInfluence
from metagradient.attribution.scoring.scorers import scores
from metagradient.errors import UserError

N = 24


def data() -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(0)
    return {"x": torch.randn(N, 4, generator=g), "y": torch.arange(N) % 3}


class Dicts(Dataset):
    def __len__(self) -> int:
        return N

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {"x": data()["x"][row].numpy(), "y": int(data()["y"][row]), "name": f"row {row}"}


class Random(Dataset):
    """Transforms that draw from every global generator there is."""

    def __len__(self) -> int:
        return N

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        noise = random.random() + np.random.rand() + torch.rand(4)  # noqa: NPY002
        return data()["x"][row] + 0.1 * noise, int(data()["y"][row])


class Counting(Random):
    calls = 0

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        self.calls += 1
        return torch.full((4,), float(self.calls)), 0


def plan() -> Tensor:
    return mg.epoch_plan(N, 7, 2, seed=0)


def learner() -> mg.Classifier:
    torch.manual_seed(0)
    return mg.Classifier(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), mg.SGD(0.9), 0.3)


def memory_map(folder: Path) -> Any:
    np.save(folder / "x.npy", data()["x"].numpy())
    mapped = np.load(folder / "x.npy", mmap_mode="r")

    class Mapped(Dataset):
        def __len__(self) -> int:
            return N

        def __getitem__(self, row: int) -> tuple[Tensor, int]:
            return torch.from_numpy(mapped[row].copy()), int(data()["y"][row])

    return Mapped()


def arrow(folder: Path) -> Any:
    import datasets

    held = datasets.Dataset.from_dict({"x": data()["x"].tolist(), "y": data()["y"].tolist()})
    held.save_to_disk(str(folder / "arrow"))
    return datasets.load_from_disk(str(folder / "arrow")).with_format("torch")


SOURCES: dict[str, Any] = {
    "tensors": lambda folder: TensorDataset(data()["x"], data()["y"]),
    "dictionaries": lambda folder: mg.Source(Dicts(), fields=("x", "y"), collate=without_names),
    "memory map": memory_map,
    "arrow": arrow,
}


def without_names(items: list[dict[str, Any]]) -> dict[str, Tensor]:
    return {
        "x": torch.from_numpy(np.stack([item["x"] for item in items])),
        "y": torch.tensor([item["y"] for item in items]),
    }


@pytest.mark.parametrize("kind", SOURCES)
def test_a_run_from_a_data_set_is_bitwise_that_from_tensors(kind: str, tmp_path: Path) -> None:
    batches = mg.Batches(SOURCES[kind](tmp_path), plan(), seed=5)
    held = mg.Batches(data(), plan(), seed=5)
    assert torch.equal(mg.train(learner(), batches).params, mg.train(learner(), held).params)
    found, expected = (
        mg.metagradient(learner(), b, mg.DataWeights(torch.ones(N)), mg.mean_loss(data()), checkpoints="binomial(2)")
        for b in (batches, held)
    )
    assert torch.equal(found["weights"], expected["weights"])


def test_influence_functions_read_a_data_set() -> None:
    run, batches = learner(), mg.Batches(TensorDataset(data()["x"], data()["y"]), plan())
    state = mg.train(run, batches)
    queries = {name: field[:3] for name, field in data().items()}
    for kind in (Influence(Dropout(20)), KernelInfluence()):
        lazily = scores(kind.fit(run, state, batches.examples), queries, damping=1.0)
        held = scores(kind.fit(run, state, data()), queries, damping=1.0)
        torch.testing.assert_close(lazily, held)


def test_random_transforms_are_functions_of_seed_step_and_row() -> None:
    batches = mg.Batches(Random(), plan(), seed=1)
    random.seed(3)
    state = random.getstate(), torch.get_rng_state()
    first = batches(2)["x"]
    batches(0)
    assert torch.equal(batches(2)["x"], first)
    assert not torch.equal(batches(2)["x"], mg.Batches(Random(), plan(), seed=2)(2)["x"])
    row = int(batches(0).index[0])
    again = next(t for t in range(4, 8) if row in batches(t).index.tolist())
    place = batches(again).index.tolist().index(row)
    assert not torch.equal(batches(0)["x"][0], batches(again)["x"][place])  # a new draw at another step
    assert random.getstate() == state[0]
    assert torch.equal(torch.get_rng_state(), state[1])
    tape, replayed = (
        mg.metagradient(learner(), batches, mg.DataWeights(torch.ones(N)), mg.mean_loss(data()), checkpoints=c)[
            "weights"
        ]
        for c in ("tape", "binomial(2)")
    )
    torch.testing.assert_close(tape, replayed, rtol=1e-4, atol=1e-6)


def test_what_needs_tensors_says_so() -> None:
    from metagradient.evaluation import run_digest
    from metagradient.unlearning import record

    batches = mg.Batches(TensorDataset(data()["x"], data()["y"]), plan())
    with pytest.raises(UserError, match="needs the examples as tensors"):
        record(learner(), batches)
    with pytest.raises(UserError, match="needs the examples as tensors"):
        run_digest(learner(), batches, data())


def test_data_sets_that_cannot_be_replayed_are_refused() -> None:
    with pytest.raises(UserError, match="another one when it is read again"):
        mg.Batches(Counting(), plan())
    with pytest.raises(UserError, match="fields name of the data set are no tensors"):
        mg.Batches(Dicts(), plan())
    with pytest.raises(UserError, match="generator has not: give a map-style"):
        mg.Batches((i for i in range(3)), plan())
    with pytest.raises(UserError, match="3 parts and fields"):
        mg.Batches(TensorDataset(data()["x"], data()["y"], data()["y"]), plan())
    with pytest.raises(UserError, match="no rows"):
        mg.Batches([], plan())

"""Rows from somebody's data set: the same run as from tensors in memory, transforms a function of the step."""

import json
import os
import random
import signal
import subprocess
import sys
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
from metagradient.files import digest_of, named_tensors
from metagradient.training.sources import examples_of, in_parts, join, take

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


class Texts(Dataset):
    """Rows of different length."""

    def __len__(self) -> int:
        return N

    def __getitem__(self, row: int) -> dict[str, Any]:
        tokens = [1 + (row + i) % 9 for i in range(2 + row % 5)]
        return {"tokens": tokens, "target": np.array(tokens, dtype=np.float32), "y": row % 3, "text": "said"}


class Pooled(mg.Learner):
    """The mean of embeddings under the mask."""

    def __init__(self) -> None:
        super().__init__(mg.SGD(0.9), 0.3)
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(10, 4), nn.Linear(4, 3)

    def losses(self, batch: mg.Batch) -> Tensor:
        mask = batch["mask"].unsqueeze(-1)
        mean = (self.embed(batch["tokens"]) * mask).sum(1) / mask.sum(1)
        return torch.nn.functional.cross_entropy(self.head(mean), batch.y, reduction="none")


def of(batches: mg.Batches, run: mg.Learner, checkpoints: str = "binomial(2)") -> Tensor:
    z, queries = mg.DataWeights(torch.ones(N)), {name: x[:5] for name, x in batches.examples.items()}
    return mg.metagradient(run, batches, z, mg.mean_loss(queries), checkpoints=checkpoints)["weights"]


@pytest.mark.parametrize("plan", ["tape", "binomial(2)", "every(3)", "sqrt"])
def test_rows_that_processes_read_ahead_give_the_same_bits(plan: str) -> None:
    here, there = (mg.Batches(Random(), batch_size=5, epochs=2, workers=workers) for workers in (0, 2))
    for t in (7, 0, 3):
        assert torch.equal(here(t)["x"], there(t)["x"])
    assert torch.equal(of(here, learner(), plan), of(there, learner(), plan))
    assert torch.equal(mg.train(learner(), here).params, mg.train(learner(), there).params)
    others = (mg.Batches(mg.Source(Random(), workers=workers), here.plan, seed=3) for workers in (0, 2))
    one, two = (mg.train(learner(), batches).params for batches in others)  # the run's seed, not the source's
    assert torch.equal(one, two)


def test_a_replay_reads_ahead_what_it_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the batch that measures memory, no step is read in this process."""
    batches = mg.Batches(Random(), plan(), workers=1)
    inner, read = mg.Source.fetch, list[int]()

    def counting(self: mg.Source, rows: Any, t: int, seed: int | None = None) -> dict[str, Tensor]:
        read.append(t)
        return inner(self, rows, t, seed)

    mg.train(learner(), batches)  # the processes are there, with a fetch of their own
    monkeypatch.setattr(mg.Source, "fetch", counting)
    z = mg.DataWeights(torch.ones(N))
    mg.metagradient(learner(), batches, z, mg.mean_loss(data()), checkpoints="binomial(2)")
    assert len([t for t in read if t > 0]) <= 1


def test_steps_asked_for_in_another_order_are_read_all_the_same() -> None:
    batches = mg.Batches(Random(), plan(), workers=1)
    alone = [batches(t)["x"] for t in range(8)]
    with batches.ahead([2, 3, 4, 5]):
        for t in (2, 0, 3, 7, 5, 4):
            assert torch.equal(batches(t)["x"], alone[t])
    with batches.ahead(range(8)):  # left in the middle
        batches(0)
    with batches.ahead(range(8)):
        assert all(torch.equal(batches(t)["x"], alone[t]) for t in range(8))


def test_a_batch_without_rows_is_read_ahead() -> None:
    batches = mg.Batches(Random(), mg.given_plan([[0, 1], [], [2]]), workers=1)
    with batches.ahead(range(3)):
        assert [len(batches(t)["x"]) for t in range(3)] == [2, 0, 1]


def test_the_trainer_reads_ahead(tmp_path: Path) -> None:
    import lightning

    batches, run = mg.Batches(Random(), plan(), workers=1), learner()
    trainer = lightning.Trainer(
        max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False
    )
    trainer.fit(run, batches)
    assert run.train_state is not None
    assert torch.equal(run.train_state.params, mg.train(learner(), batches).params)


def test_padding_never_changes_a_loss_or_a_score() -> None:
    """Batches of different widths, against one row at a time."""
    collate = mg.Padding({"tokens": 0, "target": -1.0})
    found = of(mg.Batches(Texts(), plan(), fields=("tokens", "target", "y"), collate=collate), Pooled().double())
    wider = mg.Padding({"tokens": 7}, multiple=16)
    other = of(mg.Batches(Texts(), plan(), fields=("tokens", "y"), collate=wider), Pooled().double())
    torch.testing.assert_close(found, other, rtol=1e-12, atol=1e-14)
    batch = mg.Batches(Texts(), mg.given_plan([[0, 3]]), fields=("tokens", "target", "y"), collate=collate)(0)
    assert batch["tokens"].tolist() == [[1, 2, 0, 0, 0], [4, 5, 6, 7, 8]]
    assert batch["target"].tolist() == [[1, 2, -1, -1, -1], [4, 5, 6, 7, 8]]
    assert batch["mask"].sum(1).tolist() == [2, 5]


def test_a_transform_is_given_a_generator_of_step_and_row() -> None:
    def noisy(fields: dict[str, Any], g: torch.Generator) -> dict[str, Any]:
        return {"x": fields["x"] + torch.randn(4, generator=g), "y": fields["y"]}

    dataset = TensorDataset(data()["x"], data()["y"])
    batches = mg.Batches(dataset, plan(), seed=1, transform=noisy)
    assert torch.equal(batches(3)["x"], batches(3)["x"])
    assert not torch.equal(batches(3)["x"], mg.Batches(dataset, plan(), seed=2, transform=noisy)(3)["x"])
    shorter = mg.Batches(dataset, plan()[3:4, 2:4].repeat(4, 1), seed=1, transform=noisy)
    assert torch.equal(shorter(3)["x"], batches(3)["x"][2:4])  # a row's draws do not depend on the others


def test_tensors_of_a_tensor_data_set_are_taken_as_they_are() -> None:
    batches = mg.Batches(TensorDataset(data()["x"], data()["y"]), plan())
    assert batches.source is None
    assert isinstance(batches.examples["x"], Tensor)


def test_rows_taken_and_joined_stay_rows_that_are_read() -> None:
    examples = mg.Batches(Dicts(), plan(), fields=("x", "y")).examples
    mask = torch.arange(N) % 2 == 0
    some = take(examples, mask)
    both = join(some, take(examples, slice(0, 3)))
    assert not isinstance(both["x"], Tensor)
    assert torch.equal(both["x"][:], torch.cat([data()["x"][mask], data()["x"][:3]]))
    nobody = take(examples, torch.zeros(N, dtype=torch.bool))
    assert nobody["x"].shape == (0, 4)
    assert nobody["x"][:].shape == (0, 4)
    grid = torch.tensor([[0, 3], [2, 1], [14, 0]])
    assert torch.equal(both["x"][grid], both["x"][:][grid])
    assert torch.equal(both["x"][-1], both["x"][:][-1])
    assert torch.equal(both["y"][:], torch.cat([data()["y"][mask], data()["y"][:3]]))


def test_rows_that_are_held_and_rows_that_are_read_have_one_digest() -> None:
    read = mg.Batches(Dicts(), plan(), fields=("x", "y")).examples
    held, other = data(), data()
    other["x"][N - 1, 3] += 1e-6
    first, second, third = (digest_of(named_tensors(in_parts(e, rows=7))) for e in (read, held, other))
    assert first == second != third


@pytest.mark.slow
def test_retrainings_of_rows_that_are_read_are_those_of_tensors(tmp_path: Path) -> None:
    """In this process and in a pool's, whose processes may have none of their own; kept under a digest of the rows."""
    from metagradient.evaluation import GroundTruth

    weights = torch.ones(3, N)
    weights[0, :4] = weights[1, 5] = 0
    queries = {name: x[:5] for name, x in data().items()}
    held = GroundTruth(learner(), mg.Batches(data(), plan()), queries, at_once=1).losses(weights)
    for workers, folder in ((1, None), (2, None), (1, tmp_path), (1, tmp_path)):
        batches = mg.Batches(Dicts(), plan(), fields=("x", "y"), workers=1)
        truth = GroundTruth(learner(), batches, queries, folder=folder, at_once=1, workers=workers)
        assert torch.equal(truth.losses(weights), held)
    assert truth.found == 3
    other = mg.Batches(Random(), plan())
    assert GroundTruth(learner(), other, queries, folder=tmp_path, at_once=1).losses(weights).isfinite().all()
    assert len(list(tmp_path.glob("*.safetensors"))) == 2


def test_rows_are_forgotten_from_a_run_that_read_them(tmp_path: Path) -> None:
    from metagradient.unlearning import Request, Retrain, load, record, save

    batches, held = mg.Batches(Dicts(), plan(), fields=("x", "y")), mg.Batches(data(), plan())
    request = Request("delete", torch.tensor([1, 4]))
    first, second = (Retrain()(record(learner(), b), request).state.params for b in (batches, held))
    assert torch.equal(first, second)
    save(record(learner(), batches), tmp_path)
    load(tmp_path, learner(), mg.Batches(Dicts(), plan(), fields=("x", "y")))
    with pytest.raises(UserError, match="data rows that are read"):
        load(tmp_path, learner(), mg.Batches(Random(), plan()))


class Listed(Dataset):
    """Items as they are given."""

    def __init__(self, *items: Any) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, row: int) -> Any:
        return self.items[row]


def test_draws_belong_to_the_run_and_to_the_row_whichever_rows_stand_beside_it() -> None:
    examples = examples_of(mg.Source(Random()))
    routine = mg.Routine(lambda schedule: learner(), batch_size=N, epochs=1)
    first, second = (routine.batches(examples, seed)(0) for seed in (1, 2))
    assert not torch.equal(first["x"][first.index.argsort()], second["x"][second.index.argsort()])
    rows = torch.tensor([20, 3, 7])
    some, all_ = (
        mg.Batches(e, mg.full_batch_plan(n, 2), seed=1) for e, n in ((take(examples, rows), 3), (examples, N))
    )
    assert torch.equal(some(1)["x"], all_(1)["x"][rows])
    twice = mg.Batches(join(examples, examples), mg.full_batch_plan(2 * N, 1), seed=1)(0)["x"]
    assert torch.equal(twice[:N], all_(0)["x"])
    assert not torch.equal(twice[N:], twice[:N])


def test_a_field_that_changes_its_type_is_refused_and_not_cut() -> None:
    targets = mg.Batches(Listed(*[{"x": [0.5], "y": y} for y in (0, 1.5, 2.5)]), mg.given_plan([[0], [1, 2]]))
    with pytest.raises(UserError, match="field y of the data set is int64 in its first row and float32 in others"):
        targets(1)
    wide = mg.Batches(Listed({"y": np.int64(1)}, {"y": np.int32(7)}), mg.given_plan([[1]]))
    assert wide(0)["y"].tolist() == [7]


def test_items_that_do_not_fit_together_are_told() -> None:
    odd = mg.Batches(Listed({"x": 1.0, "z": 2}, {"x": 1.0}, {"x": 1.0, "z": 2}), mg.given_plan([[0, 1]]))
    with pytest.raises(UserError, match=r"rows 0, 1 of the data set cannot be put together \(KeyError: 'z'\)"):
        odd(0)
    with pytest.raises(UserError, match="transform= gave a NoneType of row 0"):
        mg.Batches(Random(), plan(), transform=lambda fields, g: None)
    with pytest.raises(UserError, match="collate= gave a list"):
        mg.Batches(Random(), plan(), collate=list)
    with pytest.raises(UserError, match="transform, workers: a Source has its own"):
        mg.Batches(mg.Source(Random()), plan(), transform=lambda fields, g: fields, workers=2)


def test_padding_that_cannot_be_is_refused() -> None:
    bytes_ = Listed(
        {"tokens": torch.tensor([1, 2], dtype=torch.uint8)}, {"tokens": torch.tensor([3], dtype=torch.uint8)}
    )
    with pytest.raises(UserError, match="cannot put -100 into field tokens, which is uint8"):
        mg.Batches(bytes_, batch_size=2, collate=mg.Padding({"tokens": -100}))
    with pytest.raises(UserError, match="has a field mask already"):
        mg.Batches(Listed({"tokens": [1], "mask": [1]}), batch_size=1, collate=mg.Padding({"tokens": 0}))
    empty = mg.Batches(
        Listed({"tokens": [4, 5]}, {"tokens": []}), mg.given_plan([[0, 1]]), collate=mg.Padding({"tokens": 0})
    )
    assert empty(0)["tokens"].tolist() == [[4, 5], [0, 0]]
    assert empty(0)["tokens"].dtype == torch.int64
    assert empty(0)["mask"].tolist() == [[True, True], [False, False]]


def test_generators_are_left_alone_and_other_sources_are_not_joined() -> None:
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    examples = examples_of(mg.Source(Random()))
    assert np.array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    with pytest.raises(UserError, match="other transform cannot be read as one"):
        join(examples, examples_of(mg.Source(Random(), transform=lambda fields, g: fields)))


class Broken(Random):
    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        if row == 5:
            raise OSError("cannot decode")
        return data()["x"][row], 0


class ByProcess(Random):
    """Another row in another process."""

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return torch.full((4,), float(os.getpid())), 0


class Deadly(Random):
    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        if row == 5 and torch.utils.data.get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return data()["x"][row], 0


@pytest.mark.parametrize("workers", [0, 1])
def test_a_row_that_cannot_be_read_is_named(workers: int) -> None:
    with pytest.raises(UserError, match=r"^row 5 of the data set cannot be read \(OSError: cannot decode\)"):
        mg.train(learner(), mg.Batches(Broken(), plan(), workers=workers))


def test_a_process_that_is_killed_ends_the_run() -> None:
    with pytest.raises(UserError, match=r"a process that reads the data ended .*workers=0"):
        mg.train(learner(), mg.Batches(Deadly(), plan(), workers=1))


def test_data_sets_that_cannot_be_replayed_are_refused() -> None:
    tensors = TensorDataset(data()["x"], data()["y"])
    with pytest.raises(UserError, match="another one when it is read again"):
        mg.Batches(Counting(), plan())
    with pytest.raises(UserError, match="another one when another process reads it"):
        mg.train(learner(), mg.Batches(ByProcess(), plan(), workers=1))
    with pytest.raises(UserError, match="field name of the data set is no tensor and no number, but a str"):
        mg.Batches(Dicts(), plan())
    with pytest.raises(UserError, match="no fields z; it has x, y, name"):
        mg.Batches(Dicts(), plan(), fields=("x", "z"))
    with pytest.raises(UserError, match=r"shapes \[2\], \[3\].*Padding"):
        mg.Batches(Texts(), plan(), fields=("tokens",))(0)
    with pytest.raises(UserError, match="Padding"):
        mg.Batches(Texts(), plan(), fields=("tokens",), collate=mg.Padding({"words": 0}))
    with pytest.raises(UserError, match="generator has not: give a map-style"):
        mg.Batches((i for i in range(3)), plan())
    with pytest.raises(UserError, match="3 parts and fields"):
        mg.Batches(TensorDataset(data()["x"], data()["y"], data()["y"]), plan())
    with pytest.raises(UserError, match="no rows"):
        mg.Batches([], plan())
    with pytest.raises(UserError, match="one of the two"):
        mg.Batches(tensors)
    with pytest.raises(UserError, match="batch_size must be at least 1, not 0"):
        mg.Batches(tensors, batch_size=0)
    with pytest.raises(UserError, match="epochs=2 stands beside a plan"):
        mg.Batches(tensors, plan(), epochs=2)
    with pytest.raises(UserError, match="workers must be"):
        mg.Batches(Random(), plan(), workers=-1)
    with pytest.raises(UserError, match="only for data sets"):
        mg.Batches(data(), plan(), workers=1)


@pytest.mark.slow
def test_a_run_over_rows_on_disk_holds_a_fraction_of_them_and_has_the_same_bits() -> None:
    script = Path(__file__).parents[2] / "benchmarks" / "larger_than_memory.py"
    words = [sys.executable, str(script), "--gib", "0.5", "--workers", "1"]
    said = subprocess.run(words, check=True, capture_output=True, text=True).stdout.splitlines()
    disk, tensors = json.loads(said[0]), json.loads(said[1])
    assert disk["bits"] == tensors["bits"]
    assert disk["peak_mib"] - disk["begin_mib"] < 256 < 512 < tensors["peak_mib"] - tensors["begin_mib"]

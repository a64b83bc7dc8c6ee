"""`metagradient selection`, end to end on a small budget, and what it says to bad input."""

import csv
import json
import re
from pathlib import Path

import pytest
import torch
from by_hand import accuracy, task_of
from console import Done, run_in

import metagradient as mg
from metagradient.training.random import fold_in

SMALL = [
    "data.train=120",
    "data.validation=60",
    "data.test=60",
    "learner.steps=6",
    "retrainings=1",
    "method.metasteps=2",
    "filter_fractions=[0.3]",
    "logger.mode=disabled",
]
LEARNS = [*SMALL, "learner.steps=12", "learner.learning_rate=0.2"]
"""Long enough that the chosen metastep is not the start, where all weights are 1."""


def run(directory: Path, *overrides: str) -> Done:
    return run_in(directory, "selection", *overrides)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("selection")
    done = run(directory, *LEARNS, "refit=true", "replay.check=fd")
    assert done.status == 0, done.err
    assert "central differences" in done.out
    return next((directory / "outputs" / "selection").iterdir())


def test_each_metagradient_says_how_far_it_reaches(tmp_path: Path) -> None:
    done = run(tmp_path, *SMALL, "method.metasteps=2", "replay.check=line")
    assert done.status == 0, done.err
    assert (
        len(
            re.findall(
                r"down the gradient: -\S+ predicted, -?\S+ found; .* off by a tenth at about \S+ of",
                done.out + done.err,
            )
        )
        == 2
    )


def test_a_run_leaves_what_it_promises(finished: Path) -> None:
    metrics = json.loads((finished / "metrics.json").read_text())
    keys = ("test_accuracy", "test_accuracy_all_data", "test_accuracy_oracle", "f1_clean", "test_accuracy_loss_filter")
    assert all(0 <= metrics[f"result/{key}"] <= 1 for key in keys)
    assert metrics["cost/training_runs"] > 10
    assert metrics["status"] == "finished"
    for name in ("config.yaml", "run.log", "curves.csv", "artifacts/selection.csv", "figures/weights.png"):
        assert (finished / name).stat().st_size > 0, name
    assert {path.stem for path in (finished / "figures").iterdir()} == {"weights", "metasteps", "most_down_weighted"}
    assert len((finished / "artifacts" / "selection.csv").read_text().splitlines()) == 121
    left = {path.name for path in finished.iterdir() if not path.name.startswith(".")}
    assert left == {
        "artifacts",
        "config.yaml",
        "curves.csv",
        "environment.json",
        "figures",
        "metrics.json",
        "SHA256SUMS",
        "run.log",
    }  # no save of the descent


def test_weights_are_lower_on_wrong_labels_and_models_trained_with_them_are_as_accurate_as_told(finished: Path) -> None:
    cfg, splits, routine = task_of(finished)
    metrics = json.loads((finished / "metrics.json").read_text())
    rows = list(csv.DictReader((finished / "artifacts" / "selection.csv").open()))
    assert [int(row["index"]) for row in rows] == list(range(120))
    weights, wrong = torch.tensor([float(row["weight"]) for row in rows]), splits.truth.wrong
    assert weights[wrong].mean() < weights[~wrong].mean()
    assert [row["label"] for row in rows] == [str(y) for y in splits.train["y"].tolist()]
    assert [row["label"] != row["truth"] for row in rows] == wrong.tolist()
    seed = fold_in(cfg.seed, 3, 0)
    for key, w in (("", weights), ("_all_data", None)):
        told = metrics[f"result/test_accuracy{key}"]
        assert told == pytest.approx(accuracy(routine.train(splits.train, seed, w), splits.test), abs=1e-6)
    saved, (learner, state) = mg.load(finished).learner(), routine.train(splits.train, seed, weights)
    with torch.no_grad(), learner.evaluating(state):
        assert torch.equal(saved(splits.test["x"]), learner(splits.test["x"]))


def test_the_same_seed_gives_the_same_numbers(finished: Path, tmp_path: Path) -> None:
    assert run(tmp_path, *LEARNS, "refit=true").status == 0
    again = next((tmp_path / "outputs" / "selection").iterdir())
    assert (again / "artifacts" / "selection.csv").read_bytes() == (
        finished / "artifacts" / "selection.csv"
    ).read_bytes()


def test_counts_are_told_as_counts(tmp_path: Path) -> None:
    done = run(tmp_path, *SMALL, "method=counts", "method.metasteps=2")
    assert done.status == 0, done.err
    assert "learned counts" in done.out
    table = next((tmp_path / "outputs" / "selection").glob("*/artifacts/selection.csv")).read_text().splitlines()
    assert table[0] == "index,label,truth,count,kept"
    assert all(float(row.split(",")[3]).is_integer() for row in table[1:])


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["data=mnist", "data.path=/no/such/folder"], "/no/such/folder"),
        (["learner.learning_rate=1e6", "learner.optimizer.weight_decay=1", *SMALL], "step "),
        (["replay.memory=1KiB", *SMALL], "smallest that works is replay.memory="),
        (["replay.checkpoints=tape", "replay.memory=1MiB"], "replay.memory="),
        (["replay.checkpoints=often"], "binomial(slots)"),
        (["data.noise.fraction=2"], "fraction"),
        (["learner.epochs=10"], "learner.steps"),
        (["model.activation=gelo"], "gelu"),
        (["held_out=1.5"], "held_out"),
        (["trainer.precision=16-mixed"], "32-true"),
        (["replay.check=maybe"], "replay.check"),
        (["retrainings=0"], "retrainings"),
        (["data.validation=1"], "data.validation"),
        (["trainer.accelerator=tpux"], "trainer.accelerator"),
        (["method.update.clip=-1"], "method.update.clip"),
        (["method=counts", "method.swap=0"], "method.swap"),
        (["filter_fractions=[1.5]", *SMALL[:-2]], "filter_fractions"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_bad_input_is_one_clear_line(tmp_path: Path, overrides: list[str], says: str) -> None:
    done = run(tmp_path, *overrides, "logger.mode=disabled")
    assert done.status != 0
    lines = [line for line in done.err.splitlines() if line.startswith("metagradient selection:")]
    assert len(lines) == 1, done.err
    assert says in lines[0]
    assert "Traceback" not in done.err

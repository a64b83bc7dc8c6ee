"""`metagradient poisoning`, end to end on a small budget, and what it says to bad input."""

import csv
import json
import shutil
import statistics
from pathlib import Path

import pytest
import torch
from by_hand import accuracy, task_of
from console import Done, run_in, scratch_stays  # noqa: F401
from omegaconf import OmegaConf
from safetensors.torch import load_file
from torchmetrics.functional.classification import binary_auroc

import metagradient as mg
from metagradient.descent.state import DescentState
from metagradient.studies import poisoning
from metagradient.training.random import fold_in

SMALL = [
    "data.train=100",
    "data.validation=50",
    "data.test=60",
    "learner.epochs=10",
    "method.metasteps=2",
    "method.update.step=0.3",
    "shares=[0.1,0.05]",
    "filter_fractions=[0.0,0.1]",
    "defender.metasteps=1",
    "victims=2",
    "+peers.gradient_cancelling.steps=3",
    "+peers.gradient_cancelling_unclipped.steps=3",
    "logger.mode=disabled",
]


def run(directory: Path, *overrides: str) -> Done:
    return run_in(directory, "poisoning", *overrides)


@pytest.mark.slow
@pytest.mark.usefixtures("scratch_stays")
def test_a_run_leaves_what_it_promises_and_goes_on(tmp_path: Path) -> None:
    done = run(tmp_path, *SMALL, "hydra.run.dir=first")
    assert done.status == 0, done.err
    first = tmp_path / "first"
    metrics = json.loads((first / "metrics.json").read_text())
    drop = metrics["result/clean_accuracy"] - metrics["result/poisoned_accuracy"]
    assert metrics["result/drop"] == pytest.approx(drop, abs=1e-6)
    assert metrics["result/poisoned_accuracy_peak"] >= metrics["result/poisoned_accuracy"]
    assert -1 <= metrics["result/metasmoothness"] <= 1
    poisons = load_file(first / "artifacts" / "poisons.safetensors")
    assert poisons["images"].shape == (10, 1, 8, 8)
    assert float(poisons["images"].min()) >= 0
    assert float(poisons["images"].max()) <= 1
    index = list(csv.DictReader((first / "artifacts" / "poison_index.csv").open()))
    assert [int(row["index"]) for row in index] == poisons["index"].tolist()
    cfg, splits, routine = task_of(first)
    assert [int(row["label"]) for row in index] == splits.train["y"][poisons["index"]].tolist()
    assert metrics["result/poisoned_accuracy"] < metrics["result/clean_accuracy"]  # else nothing would be checked
    replaced = {**splits.train, "x": splits.train["x"].clone()}
    replaced["x"][poisons["index"]] = poisons["images"]
    for key, examples in (("clean", splits.train), ("poisoned", replaced)):
        trained = [routine.train(examples, fold_in(cfg.seed, 3, i) % 2**31) for i in range(2)]
        by_hand = statistics.fmean(accuracy(victim, splits.test) for victim in trained)
        assert metrics[f"result/{key}_accuracy"] == pytest.approx(by_hand, abs=1e-6)
    rows = list(csv.DictReader((first / "artifacts" / "victims.csv").open()))
    assert len(rows) == 2 * 4 * 2  # shares, attacks, routines
    assert {path.stem for path in (first / "figures").iterdir()} >= {"before_after", "metasteps", "drops"}
    assert len(list(csv.DictReader((first / "artifacts" / "defences.csv").open()))) == 9

    # a run that goes on takes over the poisons of the first share, and makes those of the second again
    shutil.copytree(first, tmp_path / "again")
    (tmp_path / "again" / "metrics.json").unlink()
    for left in (tmp_path / "again" / "artifacts").glob("poisons*.safetensors"):
        left.unlink()
    shutil.rmtree(tmp_path / "again" / "artifacts" / "descent_0.05")
    saved = tmp_path / "again" / "artifacts" / "descent_0.1" / "descent.safetensors"
    state = DescentState.load(saved)
    state.history[0]["test_accuracy"] = 7.0  # nobody would measure that again
    state.save(saved)
    done = run(tmp_path, *SMALL, "resume=again")
    assert done.status == 0, done.err
    for name in ("poisons", "poisons_0.05"):
        again = load_file(tmp_path / "again" / "artifacts" / f"{name}.safetensors")
        assert torch.equal(again["images"], load_file(first / "artifacts" / f"{name}.safetensors")["images"])
    assert json.loads((tmp_path / "again" / "metrics.json").read_text())["result/drop"] == metrics["result/drop"]
    curves = list(csv.DictReader((tmp_path / "again" / "curves.csv").open()))
    assert [row["test_accuracy"] == "7.0" for row in curves] == [True, False, False]


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["shares=[2.0]"], "shares=[0.03]"),
        (["method.harm=pain"], "soft_error"),
        (["data.standardize=true"], "data.standardize=false"),
        (["held_out=0.0"], "held_out"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_bad_input_is_one_clear_line(tmp_path: Path, overrides: list[str], says: str) -> None:
    done = run(tmp_path, *overrides, "logger.mode=disabled")
    assert done.status == 2
    lines = [line for line in done.err.splitlines() if line.startswith("metagradient poisoning:")]
    assert len(lines) == 1
    assert says in lines[0]


@pytest.mark.parametrize("k", [1000, 8], ids=["uncompressed", "compressed"])
def test_the_influence_filter_suspects_what_harms(k: int) -> None:
    """A fifth of the labels flipped: their removal would lower the loss of clean rows."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(300, 5, generator=rng)
    y = x[:, :3].argmax(1)
    wrong = torch.rand(200, generator=rng) < 0.2
    train = {"x": x[:200], "y": torch.where(wrong, (y[:200] + 1) % 3, y[:200])}
    learner = mg.Classifier(torch.nn.Linear(5, 3), mg.SGD(), 0.5)
    state = mg.train(learner, mg.Batches(train, mg.full_batch_plan(200, 100)))
    settings = OmegaConf.create({"k": k, "damping": 1.0})
    harm = poisoning._harm(learner, state, train, {"x": x[200:], "y": y[200:]}, settings)
    assert float(binary_auroc(harm.argsort().argsort().float() / 200, wrong.int())) > 0.9

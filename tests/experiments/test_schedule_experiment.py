"""`metagradient schedule`, end to end on a small budget, and what it says to bad input."""

import csv
import dataclasses
import json
import math
import statistics
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from by_hand import losses, task_of
from console import Done, run_in, scratch_stays  # noqa: F401

import metagradient as mg
from metagradient.descent.state import DescentState
from metagradient.studies.schedule import Judge
from metagradient.training.random import fold_in

SMALL = [
    "model=linear",
    "data.train=100",
    "data.validation=50",
    "data.test=60",
    "learner.epochs=4",
    "method.metasteps=3",
    "grid.peaks=2",
    "grid.warmups=[0.0,0.3]",
    "finalist_seeds=1",
    "retrainings=2",
    "logger.mode=disabled",
]


def run(directory: Path, *overrides: str) -> Done:
    return run_in(directory, "schedule", *overrides)


@pytest.mark.usefixtures("scratch_stays")
def test_a_run_leaves_what_it_promises_and_goes_on(tmp_path: Path) -> None:
    done = run(tmp_path, *SMALL, "hydra.run.dir=first")
    assert done.status == 0, done.err
    metrics = json.loads((tmp_path / "first" / "metrics.json").read_text())
    for key in ("test_loss", "test_loss_grid_best", "test_loss_flat", "test_loss_random"):
        assert 0 < metrics[f"result/{key}"] < 10
        assert metrics[f"result/{key}_sd"] >= 0
    assert 0 <= metrics["result/test_accuracy"] <= 1
    extras = sum(f"result/test_loss_{name}" in metrics for name in ("tpe", "schedule_free"))
    # smoothness 3, ours 3 x 3 + 1, grid 8, random search (and the extras) as many as ours, finalists, tests, the longer runs
    searchers = 3 + extras
    expected = 3 + 10 + 8 + 10 * (searchers - 2) + 3 * searchers + 2 * (searchers + 1) + 2 * 2 * 2
    assert metrics["cost/training_runs"] == expected
    rows = list(csv.DictReader((tmp_path / "first" / "artifacts" / "schedule.csv").open()))
    assert [int(row["step"]) for row in rows] == [0, 1, 2, 3]
    assert all(float(row["learning_rate"]) > 0 for row in rows)
    rates = torch.tensor([float(row["learning_rate"]) for row in rows])
    cfg, splits, routine = task_of(tmp_path / "first")
    fixed = dataclasses.replace(routine, schedule=lambda steps: mg.Knots(rates.tolist(), steps))
    seeds = [fold_in(cfg.seed, 32, i) % 2**31 for i in range(2)]
    by_hand = [float(losses(fixed.train(splits.train, seed), splits.test).mean()) for seed in seeds]
    assert metrics["result/test_loss"] == pytest.approx(statistics.fmean(by_hand), rel=1e-5)
    figures = {path.stem for path in (tmp_path / "first" / "figures").iterdir()}
    assert figures == {"schedule_by_metastep", "found_against_grid", "test_loss_against_compute"}

    # what was found already is taken over, and judged to the same numbers
    (tmp_path / "first" / "metrics.json").unlink()
    state = DescentState.load(saved := tmp_path / "first" / "descent.safetensors")
    state.history[0]["test_loss"] = 7.0  # nobody would measure that again
    state.save(saved)
    done = run(tmp_path, *SMALL, "resume=first")
    assert done.status == 0, done.err
    again = json.loads((tmp_path / "first" / "metrics.json").read_text())
    assert math.isclose(again["result/test_loss"], metrics["result/test_loss"], rel_tol=0, abs_tol=0)
    curves = list(csv.DictReader((tmp_path / "first" / "curves.csv").open()))
    assert [row["test_loss"] == "7.0" for row in curves] == [True, False, False, False]


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["method.space.knots=0"], "method.space.knots"),
        (["method.start=-1"], "method.start=0.02"),
        (["grid.low=0"], "grid.low=0.02"),
        (["family.peak=[1,0.1]"], "family.peak"),
        (["method.space.momentum=true", "learner.optimizer.momentum=0"], "learner.optimizer.momentum"),
        (["stretch=0"], "stretch"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_bad_input_is_one_clear_line(tmp_path: Path, overrides: list[str], says: str) -> None:
    done = run(tmp_path, *SMALL, *overrides)
    assert done.status == 2
    lines = [line for line in done.err.splitlines() if line.startswith("metagradient schedule:")]
    assert len(lines) == 1
    assert says in lines[0]


class Fixed:
    """A recipe whose training always ends in a model that is sure of one class."""

    def __init__(self, sure_of: int) -> None:
        self.sure_of = sure_of

    def train(self, problem: object, seed: int) -> tuple[mg.Learner, mg.TrainState]:
        model = torch.nn.Linear(1, 2)
        with torch.no_grad():
            model.weight.zero_()
            model.bias.copy_(torch.tensor([3.0, 0.0] if self.sure_of == 0 else [0.0, 3.0]))
        learner = mg.Classifier(model, mg.SGD(), 0.1)
        return learner, mg.initial_state(learner)


def test_recipes_are_chosen_on_validation_rows_and_told_on_test_rows() -> None:
    """The validation rows are all of class 0, the test rows of class 1."""
    rows = {name: {"x": torch.zeros(4, 1), "y": torch.full((4,), y)} for name, y in (("validation", 0), ("test", 1))}
    judge = Judge(None, SimpleNamespace(**rows, task="classes"), seed=0)  # type: ignore[arg-type]
    first, second = Fixed(1), Fixed(0)
    chosen = judge.choose([first, second], seeds=2)  # type: ignore[list-item]
    assert chosen is second
    right, wrong = math.log1p(math.exp(-3)), 3 + math.log1p(math.exp(-3))
    assert judge.losses(second, 0) == pytest.approx((right, wrong, 0.0))  # type: ignore[arg-type]
    losses, accuracies = judge.test(second, 3)  # type: ignore[arg-type]
    assert (losses, accuracies) == (pytest.approx([wrong] * 3), [0.0] * 3)
    assert judge.spent == [2 * 2 + 1 + 3]

"""`metagradient smoothness`, end to end on a small budget."""

import csv
import json
import math
from pathlib import Path

import pytest
from console import Done, run_in

SMALL = [
    "experiment=digits_mlp",
    "model=linear",
    "data.train=80",
    "data.validation=40",
    "data.test=60",
    "learner.epochs=1",
    "directions=2",
    "~variants",
    "+variants={fast:{learner.learning_rate:0.2},full:{learner.batch_size:80}}",
    "logger.mode=disabled",
]


def run(directory: Path, *overrides: str) -> Done:
    return run_in(directory, "smoothness", *overrides)


def test_a_run_leaves_its_table(tmp_path: Path) -> None:
    done = run(tmp_path, *SMALL)
    assert done.status == 0, done.err
    folder = next((tmp_path / "outputs" / "smoothness").iterdir())
    metrics = json.loads((folder / "metrics.json").read_text())
    assert -1 <= metrics["result/metasmoothness"] <= 1
    assert 0 <= metrics["result/test_accuracy"] <= 1
    # three metaparameters of three routines: six trainings and a replay on tape (3) each
    assert metrics["cost/training_runs"] == 9 * (6 + 3)
    rows = list(csv.DictReader((folder / "artifacts" / "metasmoothness.csv").open()))
    assert [row["variant"] for row in rows] == ["as configured"] * 3 + ["fast"] * 3 + ["full"] * 3
    # one full-batch step responds linearly to data weights and to the learning rate's direction
    full = {row["of"]: float(row["metasmoothness"]) for row in rows if row["variant"] == "full"}
    assert full["weights"] == pytest.approx(1, abs=1e-3)
    assert full["schedule"] == pytest.approx(1, abs=1e-3)
    assert all(math.isfinite(float(row["gradient norm"])) for row in rows)
    # each is compared with the first, read in the same directions
    base = {row["of"]: float(row["metasmoothness"]) for row in rows if row["variant"] == "as configured"}
    for row in rows[3:]:
        gain = float(row["metasmoothness"]) - base[row["of"]]
        assert float(row["against the first"]) == pytest.approx(gain, abs=1e-4)
        assert float(row["from"]) <= gain <= float(row["to"])
    assert (folder / "figures" / "smoothness_against_accuracy.png").stat().st_size > 0


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("h=0", "h must be a number > 0"),
        ("+variants.wide={modle.width:3}", "modle"),
        ("+variants.fast={learner.lerning_rate:3}", "learning_rate"),
        ("+variants.more={data.train:3}", "data.train"),
    ],
)
def test_bad_input_is_one_clear_line(tmp_path: Path, override: str, says: str) -> None:
    done = run(tmp_path, "experiment=digits_mlp", override, "logger.mode=disabled")
    assert done.status == 2
    lines = done.err.splitlines()
    assert says in next(line for line in lines if line.startswith("metagradient smoothness:"))

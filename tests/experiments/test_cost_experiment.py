"""`metagradient cost`, on a few steps."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from metagradient.studies.cost import contenders, precision
from metagradient.training.compiled import can_compile


@pytest.mark.parametrize("name", ["mlp", *(pytest.param(name, marks=pytest.mark.slow) for name in ("resnet9", "gpt"))])
def test_contenders_compute_the_same_metagradient(name: str) -> None:
    case = contenders.make_case(name, 3)
    ours = contenders.ours(case, "sqrt")["weights"]
    naive = contenders.naive(case)
    assert float((ours - naive).norm() / naive.norm()) < 1e-3


@pytest.mark.parametrize("package", ["higher", "torchopt"])
def test_other_packages_agree_where_installed(package: str) -> None:
    pytest.importorskip(package)
    case = contenders.make_case("mlp", 5)
    ours = contenders.ours(case, "tape")["weights"]
    theirs = contenders.gradient_of(contenders.make_contender(package, 0)(case))
    assert theirs is not None
    assert float((ours - theirs).norm() / ours.norm()) < 1e-4


@pytest.mark.slow  # half a minute of cold compilation
def test_a_compiled_contender_computes_the_same_metagradient() -> None:
    if not can_compile():
        pytest.skip("no C++ compiler on this machine")
    case = contenders.make_case("mlp", 5)
    ours = contenders.ours(case, "tape")["weights"]
    compiled = contenders.gradient_of(contenders.make_contender("tape, compiled", 0)(case))
    assert compiled is not None
    assert float((ours - compiled).norm() / ours.norm()) < 1e-4
    assert contenders.make_contender("plain, compiled", 0)(case) is None


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contenders, "can_compile", lambda: False)
    assert "g++" in str(contenders.missing("auto, compiled"))
    assert contenders.missing("auto") is None


def test_float32_is_near_float64_and_bfloat16_parameters_are_not() -> None:
    found = precision.compare("mlp", 40, 0, torch.device("cpu"), lambda names, _: names)
    (float32, one), (bf16, _) = found["float32"], found["bf16 parameters"]
    assert one == 1
    assert float32 is not None
    assert bf16 is not None
    assert 0 < float32 < 1e-5 < 0.005 < bf16
    without = precision.compare("mlp", 3, 0, torch.device("cpu"), lambda names, _: names, unrolled=False)
    assert list(without) == ["float32"]


@pytest.mark.slow
def test_a_run_leaves_its_table(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "metagradient",
        "cost",
        "steps=[4]",
        "repeats=1",
        "plans=[auto]",
        "precision_steps=40",
    ]
    done = subprocess.run(
        [*command, "logger.mode=disabled"], cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    folder = next((tmp_path / "outputs" / "cost").iterdir())
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["result/cost_ratio"] > 1
    assert metrics["result/peak_memory_ratio"] >= 0.9
    assert metrics["result/error_mlp_float32"] < 1e-5 < metrics["result/error_mlp_bf16_parameters"]
    rows = list(csv.DictReader((folder / "artifacts" / "cost.csv").open()))
    assert [row["plan"] for row in rows] == ["plain", "auto"]
    assert rows[0]["predicted_mib"] == ""
    assert float(rows[1]["predicted_time"]) > 1
    assert 0 < float(rows[1]["predicted_mib"]) < 100

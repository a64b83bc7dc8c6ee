"""`metagradient cost`, on a few steps."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from metagradient.studies.cost import contenders
from metagradient.training.compiled import can_compile


@pytest.mark.parametrize("name", ["mlp", *(pytest.param(name, marks=pytest.mark.slow) for name in ("resnet9", "gpt"))])
def test_contenders_compute_the_same_metagradient(name: str) -> None:
    case = contenders.make_case(name, 3)
    ours = contenders.ours(case, "sqrt")
    naive = contenders.naive(case)
    assert float((ours - naive).norm() / naive.norm()) < 1e-3


@pytest.mark.parametrize("package", ["higher", "torchopt"])
def test_other_packages_agree_where_installed(package: str) -> None:
    pytest.importorskip(package)
    case = contenders.make_case("mlp", 5)
    ours, theirs = contenders.ours(case, "tape"), contenders.make_contender(package, 0)(case)
    assert theirs is not None
    assert float((ours - theirs).norm() / ours.norm()) < 1e-4


@pytest.mark.slow  # half a minute of cold compilation
def test_a_compiled_contender_computes_the_same_metagradient() -> None:
    if not can_compile():
        pytest.skip("no C++ compiler on this machine")
    case = contenders.make_case("mlp", 5)
    ours, compiled = contenders.ours(case, "tape"), contenders.make_contender("tape, compiled", 0)(case)
    assert compiled is not None
    assert float((ours - compiled).norm() / ours.norm()) < 1e-4
    assert contenders.make_contender("plain, compiled", 0)(case) is None


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contenders, "can_compile", lambda: False)
    assert "g++" in str(contenders.missing("auto, compiled"))
    assert contenders.missing("auto") is None


@pytest.mark.slow
def test_a_run_leaves_its_table(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "metagradient", "cost", "steps=[4]", "repeats=1", "plans=[auto]"]
    done = subprocess.run(
        [*command, "logger.mode=disabled"], cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    folder = next((tmp_path / "outputs" / "cost").iterdir())
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["result/cost_ratio"] > 1
    assert metrics["result/peak_memory_ratio"] >= 0.9
    rows = list(csv.DictReader((folder / "artifacts" / "cost.csv").open()))
    assert [row["plan"] for row in rows] == ["plain", "auto"]

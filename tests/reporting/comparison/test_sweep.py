"""A sweep's comparison holds the means and intervals of its finished runs."""

import csv
import json
import math
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from metagradient.reporting.comparison.sweep import SweepComparison, mean_and_half_width, read_sweep


def _job(folder: Path, number: int, overrides: list[str], **results: float | str | None) -> None:
    status = results.pop("status", "finished")
    place = folder / str(number) / ".hydra"
    place.mkdir(parents=True)
    OmegaConf.save(OmegaConf.create({"hydra": {"overrides": {"task": overrides}}}), place / "hydra.yaml")
    metrics = {f"result/{key}": value for key, value in results.items()} | {"status": status}
    (folder / str(number) / "metrics.json").write_text(json.dumps(metrics))


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    _job(tmp_path, 0, ["experiment=a", "method=one", "seed=0"], ratio=1.0, speed=2.0)
    _job(tmp_path, 1, ["experiment=a", "method=one", "seed=1"], ratio=3.0, speed=4.0)
    _job(tmp_path, 2, ["experiment=a", "method=two", "seed=0"], ratio=7.0, speed=1.0)
    _job(tmp_path, 10, ["experiment=a", "method=two", "seed=1"], ratio=None, speed=1.5)
    _job(tmp_path, 11, ["experiment=a", "method=two", "seed=2"], ratio=99.0, speed=99.0, status="failed")
    return tmp_path


def test_runs_that_differ_in_the_seed_are_one_line(sweep: Path) -> None:
    one, two = read_sweep(sweep, ["ratio", "speed", "other"])
    assert (one.name, two.name) == ("one", "two")
    assert one.values == {"ratio": [1.0, 3.0], "speed": [2.0, 4.0], "other": []}
    assert two.values == {"ratio": [7.0], "speed": [1.0, 1.5], "other": []}


def test_the_callback_writes_table_and_figure(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = OmegaConf.create({"hydra": {"sweep": {"dir": str(sweep)}}})
    SweepComparison(["ratio", "speed", "other"], x="speed", y="ratio").on_multirun_end(config)
    rows = list(csv.reader((sweep / "comparison.csv").open()))
    assert rows[0] == ["run", "seeds", "ratio", "ratio ±", "speed", "speed ±"]
    assert rows[1][:3] == ["one", "2", "2.0"]
    assert float(rows[1][3]) == pytest.approx(12.706 * math.sqrt(2) / math.sqrt(2), rel=1e-4)
    assert rows[2][:4] == ["two", "2", "7.0", ""]
    assert (sweep / "comparison.png").stat().st_size > 0
    assert "comparison.csv" in capsys.readouterr().out


def test_the_interval_is_students() -> None:
    mean, half = mean_and_half_width([1.0, 2.0, 3.0])
    assert mean == 2
    assert half == pytest.approx(4.3027 / math.sqrt(3), rel=1e-4)
    assert mean_and_half_width([5.0]) == (5.0, None)
    assert mean_and_half_width([]) == (None, None)


def test_an_empty_sweep_is_no_error(tmp_path: Path) -> None:
    SweepComparison(["ratio"], x="speed", y="ratio").on_multirun_end(
        OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}})
    )

"""TensorBoard reads back what a record wrote; without the package one line says how to get it."""

from pathlib import Path

import pytest
from matplotlib.figure import Figure

from metagradient.errors import UserError
from metagradient.reporting import Record


def test_curves_results_and_figures_are_read_back(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is an extra")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = {"mode": "disabled", "tensorboard": True}
    with Record.open({"seed": 1, "logger": logger}, "selection", tmp_path / "run") as record:
        for step, loss in enumerate((3.0, 2.0, 1.5)):
            record.curve(step, {"loss": loss})
        record.result({"accuracy": 0.75})
        record.figure("empty", Figure(figsize=(1, 1)))
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("meta/loss")] == [(0, 3.0), (1, 2.0), (2, 1.5)]
    assert [e.value for e in events.Scalars("result/accuracy")] == [0.75]
    assert events.Tags()["images"] == ["figures/empty"]


def test_without_the_package_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    logger = {"mode": "disabled", "tensorboard": True}
    with (
        pytest.raises(UserError, match=r"metagradient\[tensorboard\]"),
        Record.open({"logger": logger}, "selection", tmp_path / "run"),
    ):
        pass

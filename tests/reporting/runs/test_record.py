"""A run's record, read back from the disk and from W&B's own files."""

import csv
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from omegaconf import OmegaConf

from metagradient.errors import UserError
from metagradient.reporting import Record
from metagradient.reporting.runs.context import RunContext

OFFLINE = {"mode": "offline", "project": "metagradient", "group": None, "name": None, "tags": ["nightly"]}
DISABLED = {"mode": "disabled"}


@pytest.fixture(autouse=True)
def _in_an_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("WANDB_MODE", "WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)


def inspect(run: Path, *flags: str) -> Any:
    """What W&B's own reader finds in an offline run."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", *flags, str(run)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return json.loads(lines) if "--summary" in flags else [json.loads(line) for line in lines.splitlines()]


def wandb_runs() -> list[Path]:
    """Folders of all offline runs, oldest first."""
    return sorted(Path("outputs/wandb").glob("offline-run-*"), key=lambda run: run.stat().st_ctime_ns)


def metrics_of(record: Record) -> dict[str, Any]:
    return json.loads((record.directory / "metrics.json").read_text())


def numbers(summary: dict[str, Any]) -> dict[str, Any]:
    """A W&B summary without its bookkeeping and its media."""
    return {k: v for k, v in summary.items() if not k.startswith(("_", "figures/", "tables/"))}


def test_everything_is_on_the_disk() -> None:
    with Record.open({"seed": 4, "a": {"b": 1}, "c": "${a.b}", "logger": DISABLED}, "selection") as record:
        for step in range(3):
            record.curve(step, {"objective": torch.tensor(1.0 / (step + 1))})
        record.curve(3, {"objective": np.float32(0.25), "accuracy": 0.5})
        record.result(
            {"test_accuracy": torch.tensor(0.75, dtype=torch.float64), "kept": np.int64(7), "lost": float("nan")}
        )
        record.cost(training_runs=3.5)
        record.cost(training_runs=1)
        record.csv("selection", ["index", "weight"], [(0, 0.5), (1, torch.tensor(2.0))])
        record.figure("weights", Figure())
    assert record.directory.parent == Path("outputs/selection").absolute()
    metrics = metrics_of(record)
    assert 0 < metrics.pop("cost/seconds") < 10
    assert metrics.pop("cost/peak_memory_mib") > 10
    assert metrics == {
        "meta/objective": 0.25,
        "meta/accuracy": 0.5,
        "result/test_accuracy": 0.75,
        "result/kept": 7,
        "result/lost": None,
        "cost/training_runs": 4.5,
        "meta/steps": 3,
        "seed": 4,
        "experiment": "selection",
        "status": "finished",
    }
    assert OmegaConf.load(record.directory / "config.yaml").c == 1
    rows = list(csv.DictReader((record.directory / "curves.csv").open()))
    assert [float(row["objective"]) for row in rows] == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4])
    assert [row["accuracy"] for row in rows] == ["", "", "", "0.5"]
    assert (record.directory / "artifacts" / "selection.csv").read_text().split() == ["index,weight", "0,0.5", "1,2.0"]
    assert (record.directory / "figures" / "weights.png").read_bytes().startswith(b"\x89PNG")


def test_wandb_reads_back_the_same_run() -> None:
    with Record.open({"seed": 1, "learner": {"lr": 0.1}, "logger": OFFLINE}, "selection") as record:
        for step in range(3):
            record.curve(step, {"objective": 1.0 / (step + 1)})
        record.result({"test_accuracy": 0.91})
        record.cost(training_runs=3.5)
        record.table("baselines", ["method", "test accuracy"], [("all data", 0.7), ("ours", 0.91)])
        record.figure("weights", Figure(figsize=(1, 1)))
    (run,) = wandb_runs()
    read = inspect(run, "--summary")
    assert (read["state"], read["name"], read["project"], read["tags"]) == (
        "finished",
        "default s1",
        "metagradient",
        ["nightly"],
    )
    assert read["config"] == {"seed": 1, "learner": {"lr": 0.1}, "logger": OFFLINE}
    assert numbers(read["summary"]) == metrics_of(record)
    assert {"figures/weights", "tables/baselines"} <= read["summary"].keys()
    records = inspect(run)
    (started,) = (line["run"] for line in records if line["type"] == "run")
    assert (started["run_group"], started["job_type"]) == ("selection", "selection")
    history = [line["history"]["item"] for line in records if line["type"] == "history"]
    curve = [(row["meta/step"], row["meta/objective"]) for row in history if "meta/step" in row]
    assert curve == [(0, 1.0), (1, 0.5), (2, pytest.approx(1 / 3))]
    axes = {line["metric"].get("glob_name"): line["metric"] for line in records if line["type"] == "metric"}
    assert axes["meta/*"]["step_metric"] == "meta/step"


def _fail(record: Record) -> None:
    with record:
        record.result({"only_first": 1.0})
        logging.getLogger("metagradient.test").info("said in the first")
        np.ones(2**25)  # 256 MiB
        1 / 0  # noqa: B018


def test_a_failed_run_is_marked_and_the_next_one_starts_clean(capsys: pytest.CaptureFixture[str]) -> None:
    first = Record.open({"seed": 1, "logger": OFFLINE}, "selection")
    with pytest.raises(ZeroDivisionError):
        _fail(first)
    with Record.open({"seed": 2, "logger": OFFLINE}, "selection") as second:
        second.result({"only_second": 2.0})
    states = {run["summary"]["seed"]: run for run in (inspect(path, "--summary") for path in wandb_runs())}
    assert (states[1]["state"], states[1]["exit_code"]) == ("failed", 1)
    assert (states[2]["state"], states[2]["exit_code"]) == ("finished", 0)
    for record, read in ((first, states[1]), (second, states[2])):
        assert numbers(read["summary"]) == metrics_of(record)
    assert "result/only_first" in metrics_of(first).keys() - metrics_of(second).keys()
    assert (metrics_of(first)["status"], metrics_of(second)["status"]) == ("failed", "finished")
    log = (first.directory / "run.log").read_text()
    assert "said in the first" in log
    assert "ZeroDivisionError: division by zero" in log
    assert "first" not in (second.directory / "run.log").read_text()
    assert "Traceback" not in capsys.readouterr().err
    if sys.platform == "linux":
        assert metrics_of(first)["cost/peak_memory_mib"] - metrics_of(second)["cost/peak_memory_mib"] > 200


def _interrupt(record: Record) -> None:
    with record:
        record.curve(0, {"objective": 2.0})
        raise KeyboardInterrupt


def test_a_resumed_run_is_one_run_to_wandb() -> None:
    """Its two parts, as two offline folders, carry one id, under which W&B puts them together."""
    place = Path("outputs/selection/one").absolute()
    with pytest.raises(KeyboardInterrupt):
        _interrupt(Record.open({"seed": 1, "logger": OFFLINE}, "selection", place))
    with Record.open({"seed": 1, "logger": OFFLINE, "resume": str(place)}, "selection", place) as record:
        record.curve(1, {"objective": 1.0})
    with Record.open({"seed": 1, "logger": OFFLINE}, "selection", place) as record:
        record.curve(0, {"objective": 2.0})
    parts = [next(line["run"] for line in inspect(run) if line["type"] == "run") for run in wandb_runs()]
    first, second, anew = (part["run_id"] for part in parts)
    assert first == second
    assert anew != first
    assert not (place / ".wandb_id").exists()  # a finished run is not gone on with


@pytest.mark.parametrize("left", ["", "../../x", "\x00", "a b"])
def test_a_damaged_id_is_not_taken_for_one(left: str) -> None:
    place = Path("outputs/selection/one").absolute()
    place.mkdir(parents=True)
    (place / ".wandb_id").write_text(left)
    with Record.open({"seed": 1, "logger": OFFLINE, "resume": str(place)}, "selection", place):
        pass
    assert len(wandb_runs()) == 1


def test_a_wandb_that_fails_does_not_stop_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    def broken(**_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(wandb, "init", broken)
    with Record.open({"logger": OFFLINE}, "selection") as record:
        record.curve(0, {"objective": 1.0})
    assert "no W&B run: no space left; the run goes on" in (record.directory / "run.log").read_text()
    assert metrics_of(record)["status"] == "finished"


def test_wandb_that_breaks_on_the_way_is_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    with Record.open({"logger": OFFLINE}, "selection") as record:
        import wandb

        def broken(*_: Any, **__: Any) -> None:
            raise OSError("disk full")

        monkeypatch.setattr(wandb.run, "log", broken)
        for step in range(5):
            record.curve(step, {"objective": 1.0})
    assert (record.directory / "run.log").read_text().count("disk full") == 1
    assert metrics_of(record)["meta/steps"] == 4


@pytest.mark.parametrize("mode", ["auto", "online"])
def test_logged_in_but_no_network_means_offline(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    def unreachable(**_: Any) -> bool:
        raise wandb.errors.AuthenticationError("no answer")

    monkeypatch.setattr(wandb, "login", unreachable)
    with Record.open({"logger": {"mode": mode}}, "selection") as record:
        pass
    assert "W&B is offline: no answer" in (record.directory / "run.log").read_text()
    assert len(wandb_runs()) == 1


def test_disabled_never_imports_wandb() -> None:
    code = (
        "import sys; from metagradient.reporting import Record\n"
        "with Record.open({'logger': {'mode': 'disabled'}}, 'selection') as r: r.curve(0, {'objective': 1.0})\n"
        "print([m for m in ('wandb', 'torch', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_process_wide_settings_are_as_before() -> None:
    root, environment = logging.getLogger(), dict(os.environ)
    before = (root.level, list(root.handlers))
    with Record.open({"logger": OFFLINE}, "selection"):
        pass
    assert (root.level, list(root.handlers)) == before
    assert {k: v for k, v in os.environ.items() if k.startswith("WANDB_") and k not in environment} == {}


def test_bad_settings_are_user_errors() -> None:
    with pytest.raises(UserError, match=r"no value for data.root; give one: data.root=..."):
        Record.open({"data": {"root": "???"}}, "selection")
    with (
        pytest.raises(UserError, match="expected one of auto, online, offline, disabled"),
        Record.open({"logger": {"mode": "of"}}, "selection"),
    ):
        pass


def test_two_runs_do_not_write_one_directory(tmp_path: Path) -> None:
    """The second touches nothing; after the first, the directory is free again."""
    with Record.open({"seed": 0, "logger": DISABLED}, "selection", tmp_path) as first:
        with pytest.raises(UserError, match=r"another process .* hydra\.run\.dir"):
            Record.open({"seed": 1, "logger": DISABLED}, "selection", tmp_path).__enter__()
        first.result({"accuracy": 0.5})
    assert OmegaConf.load(tmp_path / "config.yaml").seed == 0
    assert metrics_of(first)["result/accuracy"] == 0.5
    with Record.open({"seed": 1, "logger": DISABLED}, "selection", tmp_path):
        assert not (tmp_path / "metrics.json").exists()


def test_a_result_that_is_no_number_is_refused() -> None:
    with Record.open({"logger": DISABLED}, "selection") as record, pytest.raises(TypeError, match="list"):
        record.result({"accuracies": [1, 2]})


@pytest.mark.parametrize(
    ("context", "group", "name", "tags"),
    [
        ({}, "selection", "default s0", ()),
        ({"overrides": ("learner.lr=.5", "seed=0", "logger.mode=offline")}, "selection", "learner.lr=.5 s0", ()),
        (
            {"choices": {"experiment": "mnist", "data": "mnist"}, "overrides": ("experiment=mnist",)},
            "mnist",
            "mnist s0",
            ("mnist",),
        ),
        (
            {"sweep": "monday_sweep", "choices": {"model": "mlp", "experiment": "None"}},
            "monday_sweep",
            "default s0",
            ("mlp",),
        ),
        ({"sweep": "monday_sweep", "choices": {"grid": "noise"}}, "noise", "default s0", ()),
    ],
)
def test_the_identity_follows_from_the_circumstances(
    context: dict[str, Any], group: str, name: str, tags: tuple[str, ...]
) -> None:
    identity = RunContext(Path("outputs/x"), "selection", **context).identity("selection", {}, seed=0)
    assert (identity.group, identity.job_type, identity.name, identity.tags) == (group, "selection", name, tags)


def test_curves_go_on_only_from_what_is_whole(tmp_path: Path) -> None:
    """Half of a run's columns are known to its first part alone."""
    settings = {"seed": 0, "logger": DISABLED, "resume": str(tmp_path)}
    record = Record.open(settings, "selection", tmp_path)
    record.__enter__()
    record.curve(0, {"objective": 0.1, "said": "=1+1"})
    record.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    kept = (tmp_path / ".curves.json").read_text()
    for damaged in (kept.replace("0.1", "0.2"), kept[:-5], ""):
        (tmp_path / ".curves.json").write_text(damaged)
        with pytest.raises(UserError, match=r"\.curves\.json is damaged .*: remove it"):
            Record.open(settings, "selection", tmp_path).__enter__()
        assert metrics_of(record)["status"] == "interrupted"  # nothing was touched
    (tmp_path / ".curves.json").write_text(kept)
    with Record.open(settings, "selection", tmp_path) as record:
        record.curve(0, {"accuracy": 0.5})
    assert (tmp_path / "curves.csv").read_text().split() == ["step,objective,said,accuracy", "0,0.1,'=1+1,0.5"]
    assert not (tmp_path / ".curves.json").exists()  # a finished run needs none

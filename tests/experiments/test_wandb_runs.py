"""The runs of small grids of three experiments, read back from the W&B folder that they share."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from console import run_in
from wandb.util import get_core_path

DIGITS = ["data.train=80", "data.validation=40", "data.test=40", "learner.epochs=null", "learner.steps=5"]
GRIDS = {  # experiment: settings, and what is varied: the second value of each fails
    "selection": (
        ["method.metasteps=1", "retrainings=1", "filter_fractions=[0.4]", "refit=false", "smoothness=null"],
        "learner.learning_rate=0.05,1e30",
    ),
    "schedule": (
        [
            "method.metasteps=1",
            "grid.peaks=1",
            "grid.warmups=[0.1]",
            "finalists=1",
            "finalist_seeds=1",
            "retrainings=1",
            "stretch=1",
            "smoothness=null",
        ],
        "method.start=0.05,-1",
    ),
    "smoothness": (
        ["experiment=digits_mlp", "directions=1", "gradient=false", "~variants", "+variants={}"],
        "h=0.05,0",
    ),
}


def inspect(run: Path, *flags: str) -> Any:
    """What `wandb leet inspect --json` says, without waiting for Python to import wandb."""
    (file,) = run.glob("*.wandb")
    command = [get_core_path(), "leet", "inspect", "--no-observability", "--json", *flags, "--run-file", str(file)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return json.loads(text) if flags else [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("grids")
    for experiment, (settings, varied) in GRIDS.items():
        done = run_in(place, experiment, "-m", *DIGITS, *settings, varied, "seed=3", "logger.mode=offline")
        assert done.status == 1
        assert "2 jobs, 1 finished" in done.out
    return place / "outputs"


@pytest.mark.slow
def test_every_run_of_every_grid_is_there_as_it_was(outputs: Path) -> None:
    read = {}
    for run in (outputs / "wandb").glob("offline-run-*"):
        (started,) = (line["run"] for line in inspect(run) if line["type"] == "run")
        found = inspect(run, "--summary")
        read[started["job_type"], found["name"]] = started, found
    kept = [path.parent for path in outputs.glob("*/*_sweep/*/metrics.json")]
    assert len(read) == len(kept) == 6
    for directory in kept:
        metrics = json.loads((directory / "metrics.json").read_text())
        config = yaml.safe_load((directory / "config.yaml").read_text())
        varied = next(
            item
            for item in yaml.safe_load((directory / ".hydra" / "overrides.yaml").read_text())
            if item.partition("=")[0] == GRIDS[metrics["experiment"]][1].partition("=")[0]
        )
        (name,) = (name for experiment, name in read if experiment == metrics["experiment"] and f" {varied} " in name)
        started, found = read[metrics["experiment"], name]
        preset = yaml.safe_load((directory / ".hydra" / "hydra.yaml").read_text())["hydra"]["runtime"]["choices"]
        assert started["run_group"] == preset["experiment"]
        assert name.startswith(f"{preset['experiment']} {varied} ")  # and the name ends where W&B would cut it
        assert name.endswith(" s3")
        assert {k: v for k, v in found["config"].items() if k != "_wandb"} == {
            k: v for k, v in config.items() if v != {}
        }
        summary = {k: v for k, v in found["summary"].items() if not k.startswith(("_", "figures/", "tables/"))}
        assert summary == {k: v for k, v in metrics.items() if v is not None}
        assert (found["state"] == "failed") == (metrics["status"] == "failed") == (directory.name == "1")
        assert (directory.name == "0") == any(k.startswith("figures/") for k in found["summary"])

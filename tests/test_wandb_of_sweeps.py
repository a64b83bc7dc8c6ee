"""The runs of a sweep, read back from W&B's offline files."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from test_cli import run_directory, tiny


def inspect(run: Path, *flags: str) -> Any:
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", *flags, str(run)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return json.loads(text) if flags else [json.loads(line) for line in text.splitlines()]


def test_every_job_is_a_run_with_its_own_numbers_and_state(tmp_path: Path) -> None:
    tiny(tmp_path, "-m", "seed=0,1", "end=well,bug", "logger.mode=offline")
    sweep = run_directory(tmp_path)
    kept = [json.loads(path.read_text()) for path in sorted(sweep.glob("*/metrics.json"))]
    read = []
    for run in (tmp_path / "outputs" / "wandb").glob("offline-run-*"):
        (started,) = (line["run"] for line in inspect(run) if line["type"] == "run")
        assert (started["run_group"], started["job_type"]) == (sweep.name, "tiny")
        found = inspect(run, "--summary")
        summary = {k: v for k, v in found["summary"].items() if not k.startswith(("_", "figures/", "tables/"))}
        assert found["config"]["seed"] == summary["seed"]
        assert found["name"] == f"end={found['config']['end']} s{summary['seed']}"
        assert (found["state"] == "failed") == (summary["status"] == "failed") == (found["config"]["end"] == "bug")
        read.append(summary)
    order = sorted(kept, key=lambda m: (m["seed"], m["status"]))
    assert sorted(read, key=lambda m: (m["seed"], m["status"])) == order
    assert len(read) == 4

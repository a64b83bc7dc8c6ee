"""Ctrl-C at random moments of every kind of run: status 130, one line, and a record that says interrupted."""

import json
import random
import signal
from pathlib import Path

import pytest
from killing import Kill, start, whole
from runs import RUNS, TWO

TRIES = 8
KINDS = {name: (name, overrides) for name, overrides in RUNS.items()}
KINDS["processes"] = ("selection", [*RUNS["selection"], TWO])


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", KINDS)
def test_ctrl_c_ends_a_run_wherever_it_comes(name: str, tmp_path: Path) -> None:
    experiment, overrides = KINDS[name]
    uninterrupted = whole(tmp_path / "whole", experiment, overrides)
    rng, wrong, hits = random.Random(name), [], 0
    for i in range(TRIES):
        place, moment = tmp_path / str(i), rng.uniform(0.0, 0.9) * uninterrupted.cpu
        process = start(place, experiment, overrides, Kill(cpu=moment, by=signal.SIGINT))
        process.join()
        if not (place / "hit").exists():  # it had ended before
            continue
        hits += 1
        said = (place / "terminal").read_text().strip().splitlines()
        runs = (place / "outputs" / experiment).glob("*/metrics.json")  # none where nothing had been run yet
        statuses = [json.loads(run.read_text())["status"] for run in runs]
        told = process.exitcode == 130 and "interrupted; " in said[-1] and not any("Traceback" in line for line in said)
        if not told or set(statuses) - {"interrupted"}:
            wrong.append((moment, process.exitcode, statuses, said[-3:]))
    assert wrong == []
    assert hits > TRIES // 2

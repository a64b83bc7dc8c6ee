"""Sweeps that are cut short: what never began is told, a search goes on, and nobody else writes meanwhile."""

import json
import re
import subprocess
from pathlib import Path

import pytest
from test_command import run_directory, tiny

from metagradient.reporting.runs.writer import only_writer

SEARCH = [
    "-m", "hydra/sweeper=optuna", "learner.learning_rate=interval(0.01,1)", "end=rate", "hydra.sweeper.sampler.seed=0",
]  # fmt: skip


def rates(sweep: Path) -> list[float]:
    """The learning rate that each finished job tried."""
    found = {int(file.parent.name): json.loads(file.read_text()) for file in sweep.glob("*/metrics.json")}
    return [found[job]["objective"] for job in sorted(found) if found[job]["status"] == "finished"]


def search(place: Path, trials: int, *more: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return tiny(place, *SEARCH, f"hydra.sweeper.n_trials={trials}", *more, **environment)


@pytest.mark.slow
def test_a_search_goes_on_with_its_trials(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    killed = search(tmp_path, 4, DIE_IN="2")
    if "cannot keep trials" in killed.stderr:
        pytest.skip("Optuna 2 keeps trials with SQLAlchemy below 2 and alembic below 1.16")
    sweep = run_directory(tmp_path)
    before, (asked,) = rates(sweep), re.findall(r"learning_rate: (\S+)", (sweep / "2" / "config.yaml").read_text())
    assert len(before) == 2
    again = search(tmp_path, 4, "resume=true", DIE_IN="3")  # and killed once more
    assert f"going on in {sweep.relative_to(tmp_path)}" in again.stderr
    assert rates(sweep) == [*before, float(asked)]
    done = search(tmp_path, 4, "resume=true")
    assert done.stderr.count("is finished already, nothing to do") == 3
    assert "4 jobs, 4 finished" in done.stdout
    whole = rates(sweep)
    assert whole[:3] == [*before, float(asked)]
    assert len(set(whole)) == 4
    further = search(tmp_path, 5, "resume=true")
    assert further.stderr.count("is finished already, nothing to do") == 4
    assert rates(sweep)[:4] == whole
    assert f"best_value: {max(rates(sweep))}" in (sweep / "optimization_results.yaml").read_text()
    assert run_directory(tmp_path) == sweep


def test_jobs_that_never_began_are_told(tmp_path: Path) -> None:
    stopped = tiny(tmp_path, "-m", "end=well,terminated,bug", "seed=0,1", COLUMNS="200")
    assert stopped.returncode == 130
    assert "6 jobs, 2 finished" in stopped.stdout
    rows = [line for line in stopped.stdout.splitlines() if "never began" in line]
    assert len(rows) == 3
    assert all("end=" in row and "seed=" in row for row in rows)


def test_two_processes_do_not_write_one_sweep(tmp_path: Path) -> None:
    (sweep := tmp_path / "here").mkdir()
    with only_writer(sweep, "hydra.sweep.dir"):
        for more in ([], ["resume=here"]):
            second = tiny(tmp_path, "-m", "end=well,bug", "hydra.sweep.dir=here", *more)
            assert second.returncode == 2
            assert "another process is writing" in second.stderr
            assert "hydra.sweep.dir=" in second.stderr
            assert second.stderr.count("\n") == 1
    assert [file.name for file in sweep.iterdir()] == [".lock"]
    assert tiny(tmp_path, "-m", "end=well", "hydra.sweep.dir=here").returncode == 0

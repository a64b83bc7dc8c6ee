"""Commands over several processes: the results of one process, one run directory, and no process that is left behind."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil
import pytest
from console import run_in
from killing import directory_of, left_by, resumed, start
from runs import BRIEF, RUNS, TWO

DOUBLE = "trainer.precision=64-true"


def run(place: Path, experiment: str, overrides: list[str]) -> dict[str, Any]:
    """What a run leaves."""
    process = start(place, experiment, overrides)
    process.join()
    assert process.exitcode == 0, (place / "terminal").read_text()
    return left_by(directory_of(place, experiment))


def alike(one: dict[str, Any], other: dict[str, Any], tolerance: float) -> None:
    """metrics.json up to rounding, and the same files."""
    assert one.keys() == other.keys()
    for name, value in one.items():
        if isinstance(value, float):
            assert other[name] == pytest.approx(value, rel=tolerance, abs=tolerance), name
        elif isinstance(value, int | str | None):
            assert other[name] == value, name


def followers(process: BaseProcess) -> list[psutil.Process]:
    """The processes that a command started to follow it."""
    children = psutil.Process(process.pid).children() if process.is_alive() else []
    return [child for child in children if "metagradient.cli.follower" in child.cmdline()]


def until(there: Callable[[], Any], process: BaseProcess) -> Any:
    while process.is_alive():
        if found := there():
            return found
        time.sleep(0.01)
    raise AssertionError("the run came to its end")


def saved(place: Path, experiment: str) -> bool:
    return any((place / "outputs").glob(f"{experiment}/*/descent.safetensors"))


@pytest.mark.parametrize(
    "name",
    [
        "selection",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("poisoning", "schedule", "smoothness", "attribution")),
    ],
)
def test_two_processes_find_what_one_finds(tmp_path: Path, name: str) -> None:
    experiment, overrides = BRIEF[name]
    one, two = (run(tmp_path / n, experiment, [*overrides, DOUBLE, n]) for n in ("trainer.devices=1", TWO))
    alike(one, two, 1e-10)
    assert len(list((tmp_path / TWO / "outputs" / experiment).iterdir())) == 1


@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_command_and_another_number_goes_on(tmp_path: Path) -> None:
    overrides = [*BRIEF["selection"][1], "method.metasteps=8", DOUBLE]
    whole = run(tmp_path / "whole", "selection", overrides)
    place = tmp_path / "killed"
    process = start(place, "selection", [*overrides, TWO])
    until(lambda: saved(place, "selection"), process)
    (follower,) = followers(process)
    follower.kill()
    process.join(60)
    assert process.exitcode == 1
    line = "process 1 was killed by SIGKILL (too little memory?)"
    assert f"metagradient selection: {line}; partial results lie in" in (place / "terminal").read_text()
    metrics = json.loads((directory_of(place, "selection") / "metrics.json").read_text())
    assert (metrics["status"], metrics["error"]) == ("failed", f"ProcessLost: {line}")
    left, said = resumed(place, "selection", overrides)
    assert "number of processes: 2 before, 1 from here on; the same run up to rounding" in said
    assert "going on after metastep" in said
    alike(whole, left, 1e-10)


@pytest.mark.slow
def test_those_that_follow_end_with_the_one_that_leads(tmp_path: Path) -> None:
    process = start(tmp_path, "selection", [*RUNS["selection"], TWO])
    until(lambda: saved(tmp_path, "selection"), process)
    (follower,) = followers(process)
    process.kill()
    follower.wait(60)


@pytest.mark.slow
def test_sigterm_ends_the_one_that_leads_and_those_that_follow(tmp_path: Path) -> None:
    process = start(tmp_path, "selection", [*RUNS["selection"], TWO])
    until(lambda: saved(tmp_path, "selection"), process)
    (follower,) = followers(process)
    time.sleep(0.2)  # a moment within a training
    process.terminate()
    process.join(60)
    assert process.exitcode == 130
    assert "interrupted; partial results lie in" in (tmp_path / "terminal").read_text()
    follower.wait(60)


BROKEN = """
import metagradient as mg

class Broken(mg.Classifier):
    def losses(self, batch):
        if self.group.rank == 1 and batch.t == 2:
            raise RuntimeError("no memory left")
        return super().losses(batch)
"""


def test_a_process_that_fails_says_why_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(BROKEN)
    process = start(tmp_path, "selection", [*BRIEF["selection"][1], TWO, "learner._target_=broken.Broken"])
    process.join(120)
    assert process.exitcode == 1
    directory = directory_of(tmp_path, "selection")
    said = [
        line for line in (tmp_path / "terminal").read_text().splitlines() if line.startswith("metagradient selection:")
    ]
    assert [line.partition(";")[0] for line in said] == ["metagradient selection: process 1 ended: no memory left"]
    assert "ProcessLost: process 1 ended: no memory left" in (directory / "metrics.json").read_text()
    assert 'RuntimeError("no memory left")' in (directory / "process-1.log").read_text()


@pytest.mark.slow
def test_torchrun_starts_a_command(tmp_path: Path) -> None:
    experiment, overrides = BRIEF["selection"]
    one = run(tmp_path, experiment, overrides)
    place = tmp_path / "torchrun"
    place.mkdir()
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "-m",
        "metagradient",
    ]

    def command(*more: str) -> subprocess.CompletedProcess[str]:
        line = [*torchrun, experiment, *overrides, *more]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            line, cwd=place, env=environment, capture_output=True, text=True, check=False, timeout=200
        )

    refused = command()
    assert "2 processes were started, but trainer.devices * trainer.num_nodes is 1" in refused.stderr
    done = command(TWO)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("run directory:") == 1
    *_, directory = sorted((place / "outputs" / experiment).iterdir())
    alike(one, left_by(directory), 1e-4)


def test_what_runs_in_one_process_is_refused(tmp_path: Path) -> None:
    done = run_in(tmp_path, "cost", TWO)
    assert (done.status, done.err.count("\n")) == (2, 1)
    assert "cost runs on one device so far: set trainer.devices=1" in done.err
    assert not list(tmp_path.glob("outputs/cost/*/config.yaml"))

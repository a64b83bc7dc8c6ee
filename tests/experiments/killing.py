"""Experiments in processes of their own, which are killed at a moment of our choice and resumed.

The processes are forked from one that has imported everything, so a run costs what it computes.
"""

import csv
import json
import multiprocessing
import os
import random
import re
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil
from safetensors import safe_open

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [f"metagradient.experiments.{name}" for name in ("selection", "poisoning", "schedule", "attribution", "unlearning")]
)
WALL_CLOCK = re.compile(
    r"seconds|second$|speedup|memory|of_time|share_of_a_loop|compress|predicted_saving|retrain_instead"
)


@dataclass(frozen=True)
class Whole:
    """An uninterrupted run: what it left, the processor time it took, and how often it saved."""

    left: dict[str, Any]
    cpu: float
    saves: int


def whole(place: Path, experiment: str, overrides: list[str]) -> Whole:
    """Run it to its end."""
    process = start(place, experiment, overrides)
    cpu = 0.0
    while process.is_alive():
        cpu = max(cpu, processor_time(process))
        time.sleep(0.02)
    assert process.exitcode == 0, (place / "terminal").read_text()
    return Whole(left_by(directory_of(place, experiment)), cpu, int((place / "saves").read_text()))


def killed_after(place: Path, experiment: str, overrides: list[str], cpu: float) -> Path:
    """A run that SIGKILL ends once it has had so much processor time; its directory."""
    process = start(place, experiment, overrides)
    while process.is_alive() and processor_time(process) < cpu:
        time.sleep(0.002)
    process.kill()
    return _ended_by_kill(process, place, experiment)


def killed_in_save(place: Path, experiment: str, overrides: list[str], save: int, behind: bool) -> Path:
    """A run that SIGKILL ends at a rename of its n-th save (n from 0), just before or just behind it."""
    return _ended_by_kill(start(place, experiment, overrides, save, behind), place, experiment)


def resumed(place: Path, experiment: str, overrides: list[str]) -> tuple[dict[str, Any], str]:
    """Go on with the one unfinished run at `place`: (what it left, what it added to its log)."""
    directory = directory_of(place, experiment)
    before = len((directory / "run.log").read_bytes())
    process = start(place, experiment, [*overrides, "resume=true"])
    process.join()
    assert process.exitcode == 0, (place / "terminal").read_text()
    directory = directory_of(place, experiment)
    return left_by(directory), (directory / "run.log").read_bytes()[before:].decode()


def moments(experiment: str, run: Whole) -> list[Callable[[Path, list[str]], Path]]:
    """Two kills at random moments of the run, early and late, and two within random saves."""
    rng = random.Random(experiment)
    times = [rng.uniform(low, high) * run.cpu for low, high in ((0.1, 0.5), (0.5, 0.9))]
    saves = [(rng.randrange(1, run.saves), behind) for behind in (False, True)]
    return [
        *(lambda place, o, t=t: killed_after(place, experiment, o, t) for t in times),
        *(lambda place, o, s=s, b=b: killed_in_save(place, experiment, o, s, b) for s, b in saves),
    ]


def left_by(directory: Path) -> dict[str, Any]:
    """metrics.json, curves.csv and the artifacts, without what a clock says."""
    metrics = json.loads((directory / "metrics.json").read_text())
    left: dict[str, Any] = {k: v for k, v in metrics.items() if not WALL_CLOCK.search(k)}
    for path in sorted([*(directory / "artifacts").rglob("*"), directory / "curves.csv"]):
        if path.is_file():
            left[str(path.relative_to(directory))] = _content(path)
    return left


def _content(path: Path) -> Any:
    if path.suffix == ".csv":
        rows = list(csv.DictReader(path.open(newline="")))
        return [{k: v for k, v in row.items() if not WALL_CLOCK.search(f"{k} {row.get('')}")} for row in rows]
    if path.suffix == ".safetensors" or path.name == "descent.before":  # the order of the metadata is left open
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name).numpy().tobytes() for name in file.keys()}  # noqa: SIM118
            return tensors, file.metadata()
    return path.read_bytes()


def directory_of(place: Path, experiment: str) -> Path:
    (directory,) = (place / "outputs" / experiment).iterdir()
    return directory


def processor_time(process: BaseProcess) -> float:
    """Seconds, user and system; a busy machine does not move the moment of a kill."""
    try:
        used = psutil.Process(process.pid).cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return used.user + used.system


def start(
    place: Path, experiment: str, overrides: list[str], kill_at: int | None = None, behind: bool = False
) -> BaseProcess:
    """`metagradient EXPERIMENT OVERRIDES` in the folder `place`, which is made; see `killed_in_save`."""
    place.mkdir(parents=True, exist_ok=True)
    process = CONTEXT.Process(target=_run, args=(place, experiment, overrides, kill_at, behind))
    process.start()
    return process


def _ended_by_kill(process: BaseProcess, place: Path, experiment: str) -> Path:
    process.join()
    assert process.exitcode == -signal.SIGKILL, (place / "terminal").read_text()
    directory = directory_of(place, experiment)
    assert not (directory / "metrics.json").exists()
    return directory


def _run(place: Path, experiment: str, overrides: list[str], kill_at: int | None, behind: bool) -> None:
    from metagradient.cli import main

    os.chdir(place)
    os.environ["METAGRADIENT_CACHE"] = str(place / "cache")
    terminal = os.open("terminal", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(terminal, 1)
    os.dup2(terminal, 2)
    saves, rename = [0], os.replace

    def counted(source: Any, target: Any, **kwargs: Any) -> None:
        save = re.search(r"descent\.|\.progress$|retrainings|stream|requests|answers", str(target)) is not None
        fatal = save and saves[0] == kill_at
        saves[0] += save
        if fatal and not behind:
            os.kill(os.getpid(), signal.SIGKILL)
        rename(source, target, **kwargs)
        if fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = counted
    try:
        main([experiment, *overrides])
    finally:
        sys.stdout.flush()
        Path("saves").write_text(str(saves[0]))

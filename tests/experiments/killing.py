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
import threading
import time
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from safetensors import safe_open

EXPERIMENTS = ("selection", "poisoning", "schedule", "attribution", "unlearning", "smoothness", "cost")
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([f"metagradient.experiments.{name}" for name in EXPERIMENTS])
WALL_CLOCK = re.compile(
    r"seconds|second$|speedup|memory|of_time|share_of_a_loop|compress|predicted_saving|retrain_instead"
)


@dataclass(frozen=True)
class Kill:
    """What happens to a run, and when.

    Attributes:
        cpu: it is killed after so many seconds of processor time.
        save: it is killed at the rename of the n-th save (from 0), before it or `behind` it.
        by: the signal.
    """

    cpu: float | None = None
    save: int | None = None
    behind: bool = False
    by: signal.Signals = signal.SIGKILL


@dataclass(frozen=True)
class Whole:
    """An uninterrupted run: what it left, the processor time until its directory was there and to its end, and how often
    it saved."""

    left: dict[str, Any]
    begun: float
    cpu: float
    saves: int


def whole(place: Path, experiment: str, overrides: list[str]) -> Whole:
    """Run it to its end."""
    process = start(place, experiment, overrides)
    process.join()
    assert process.exitcode == 0, (place / "terminal").read_text()
    used = json.loads((place / "used.json").read_text())
    return Whole(left_by(directory_of(place, experiment)), used["begun"], used["cpu"], used["saves"])


def killed(place: Path, experiment: str, overrides: list[str], when: Kill) -> Path:
    """A run that SIGKILL ends; its directory."""
    process = start(place, experiment, overrides, when)
    process.join()
    assert process.exitcode == -signal.SIGKILL, (place / "terminal").read_text()
    directory = directory_of(place, experiment)
    assert not (directory / "metrics.json").exists()
    return directory


def resumed(place: Path, experiment: str, overrides: list[str]) -> tuple[dict[str, Any], str]:
    """Go on with the one unfinished run at `place`: (what it left, what it added to its log)."""
    directory = directory_of(place, experiment)
    before = len((directory / "run.log").read_bytes())
    process = start(place, experiment, [*overrides, "resume=true"])
    process.join()
    assert process.exitcode == 0, (place / "terminal").read_text()
    directory = directory_of(place, experiment)
    return left_by(directory), (directory / "run.log").read_bytes()[before:].decode()


def moments(experiment: str, run: Whole) -> list[Kill]:
    """Two random moments of the run, early and late, and two within random saves."""
    rng = random.Random(experiment)
    times = [run.begun + rng.uniform(low, high) * (run.cpu - run.begun) for low, high in ((0.1, 0.5), (0.5, 0.9))]
    saves = [(rng.randrange(1, run.saves), behind) for behind in (False, True)] if run.saves > 1 else []
    return [*(Kill(cpu=cpu) for cpu in times), *(Kill(save=save, behind=behind) for save, behind in saves)]


def used_by(place: Path) -> float:
    """The processor time of the run at `place` that came to its end."""
    return float(json.loads((place / "used.json").read_text())["cpu"])


def left_by(directory: Path) -> dict[str, Any]:
    """metrics.json, curves.csv and the artifacts, without what a clock says."""
    metrics = json.loads((directory / "metrics.json").read_text())
    left: dict[str, Any] = {k: v for k, v in metrics.items() if not WALL_CLOCK.search(k) and k != "answer"}
    if metrics["experiment"] == "cost":  # a clock says all of it
        return dict.fromkeys(left | {path.name: None for path in (directory / "artifacts").iterdir()})
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


def start(place: Path, experiment: str, overrides: list[str], when: Kill | None = None) -> BaseProcess:
    """`metagradient EXPERIMENT OVERRIDES` in the folder `place`, which is made."""
    place.mkdir(parents=True, exist_ok=True)
    process = CONTEXT.Process(target=_run, args=(place, experiment, overrides, when or Kill()))
    process.start()
    return process


def _run(place: Path, experiment: str, overrides: list[str], when: Kill) -> None:
    from metagradient.cli.command import main

    os.chdir(place)
    os.environ["METAGRADIENT_CACHE"] = str(place / "cache")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
    terminal = os.open("terminal", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(terminal, 1)
    os.dup2(terminal, 2)
    saves, there, rename = [0], [0.0], os.replace

    def die() -> None:
        Path("hit").touch()
        os.kill(os.getpid(), when.by)

    def counted(source: Any, target: Any, **kwargs: Any) -> None:
        save = re.search(r"descent\.|\.progress$|retrainings|judged", str(target)) is not None
        fatal = save and saves[0] == when.save
        saves[0] += save
        if fatal and not when.behind:
            die()
        rename(source, target, **kwargs)
        if Path(target).name == "config.yaml":
            there[0] = time.process_time() - begun
        if fatal:
            die()

    def watch(cpu: float) -> None:  # in here, for a stopped or starved process must not be told late
        while time.process_time() - begun < cpu:
            time.sleep(0.001)
        die()

    os.replace, begun = counted, time.process_time()
    if when.cpu is not None:
        threading.Thread(target=watch, args=(when.cpu,), daemon=True).start()
    try:
        main([experiment, *overrides])
    finally:
        sys.stdout.flush()
        pool = getattr(sys.modules.get("joblib.externals.loky.reusable_executor"), "_executor", None)
        if pool is not None:  # whose processes wait for more work, and a forked process for them
            pool.shutdown(kill_workers=True)
        used = {"begun": there[0], "cpu": time.process_time() - begun, "saves": saves[0]}
        Path("used.json").write_text(json.dumps(used))

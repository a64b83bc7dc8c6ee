"""SIGKILL at random moments of every kind of run, of a pool's worker and of a sweep's job: resumed, the same artifacts.

A few of each kind; METAGRADIENT_KILLS=200 makes 200 in all.
"""

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil
import pytest
from killing import Kill, left_by, start, used_by
from runs import BRIEF, FEW, RUNS

KILLS = int(os.environ.get("METAGRADIENT_KILLS", "20"))
AGAIN = 0.3
"""Share of the runs that are killed once more when they go on."""


def workers(process: BaseProcess) -> list[psutil.Process]:
    """A pool's: forked by a server of the run's own, or by that which the run itself was forked from."""
    run = psutil.Process(process.pid)
    server = run.parent()
    beside = [] if server is None else [child for child in server.children() if child.pid != run.pid]
    return beside + [child for child in run.children(recursive=True) if child.ppid() != run.pid]


def jobs(process: BaseProcess) -> list[psutil.Process]:
    """Joblib's."""
    children = psutil.Process(process.pid).children(recursive=True)
    return [child for child in children if "LokyProcess" in " ".join(child.cmdline())]


@dataclass(frozen=True)
class Kind:
    """A run; who of it is killed, where it is not the run itself; the packages it needs."""

    experiment: str
    overrides: list[str]
    victims: Callable[[BaseProcess], list[psutil.Process]] | None = None
    needs: str = "metagradient"


KINDS = {name: Kind(*run) for name, run in BRIEF.items() if name != "cost"}
KINDS["replay"] = Kind(
    "selection",
    [*RUNS["selection"], *FEW, "method.metasteps=1", "learner.steps=60", "refit=false", "replay.storage=disk",
     "replay.checkpoints='binomial(3)'", "replay.folder=states"],
)  # fmt: skip
KINDS["worker"] = Kind(
    "attribution", [*BRIEF["attribution"][1], "methods=[dropout:64]", "at_once=1", "workers=2", "retrainings=40"], workers
)  # fmt: skip
KINDS["job"] = Kind(
    "selection",
    ["-m", "seed=0,1", *BRIEF["selection"][1], "method.metasteps=6", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
    jobs,
    "hydra_plugins.hydra_joblib_launcher",
)  # fmt: skip


def left(place: Path, experiment: str) -> list[dict[str, Any]]:
    """What each of the newest runs left, of a sweep's every job."""
    newest = max((place / "outputs" / experiment).iterdir())
    runs = sorted(newest.glob("[0-9]*/config.yaml")) or [newest / "config.yaml"]
    return [left_by(run.parent) for run in runs]


def kill_one(process: BaseProcess, victims: Callable[[BaseProcess], list[psutil.Process]], after: float) -> bool:
    """SIGKILL to the first victim that has computed so many seconds; whether there was one."""
    while process.is_alive():
        try:
            for victim in victims(process):
                if sum(victim.cpu_times()[:2]) > after:
                    victim.send_signal(signal.SIGKILL)
                    return True
        except psutil.NoSuchProcess:
            continue
        time.sleep(0.02)
    return False


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(6 * 3600)
@pytest.mark.parametrize("name", KINDS)
def test_killed_anywhere_and_resumed(name: str, tmp_path: Path) -> None:
    kind = KINDS[name]
    pytest.importorskip(kind.needs)
    process = start(tmp_path / "whole", kind.experiment, kind.overrides)
    process.join()
    assert process.exitcode == 0, (tmp_path / "whole" / "terminal").read_text()
    expected, cpu = left(tmp_path / "whole", kind.experiment), used_by(tmp_path / "whole")
    rng, wrong, counts = random.Random(name), list[Any](), Counter[str]()
    for i in range(-(-KILLS // len(KINDS))):
        place, overrides = tmp_path / str(i), kind.overrides
        for _ in range(1 + (rng.random() < AGAIN)):
            if kind.victims is None:
                process = start(place, kind.experiment, overrides, Kill(cpu=rng.uniform(0.05, 0.95) * cpu))
                process.join()
                killed = process.exitcode == -signal.SIGKILL
            else:
                process = start(place, kind.experiment, overrides)
                killed = kill_one(process, kind.victims, rng.uniform(0.0, 4.0 if name == "job" else 0.3))
                process.join()
                said = (place / "terminal").read_text()
                killed = killed and process.exitcode != 0  # else it was done
                if killed and (process.exitcode not in (0, 1, 2) or "Traceback" in said):
                    wrong.append((i, process.exitcode, said[-800:]))
            counts["killed" if killed else "had ended"] += 1
            if not killed:
                break
            overrides = [*kind.overrides, "resume=true"]
        else:
            process = start(place, kind.experiment, overrides)
            process.join()
        if process.exitcode != 0:
            wrong.append((i, process.exitcode, (place / "terminal").read_text()[-800:]))
        elif left(place, kind.experiment) != expected:
            wrong.append((i, "other artifacts"))
    print(f"\n{name}: {dict(counts)}")
    assert wrong == []

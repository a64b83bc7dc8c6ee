"""A command over several processes: one leads and is the run that is seen, the others follow.

Those that follow run the same experiment with the same settings, unheard and in a scratch directory that goes with them, so
that nothing in an experiment depends on which process it is. What the processes share is the learner's group.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from time import sleep
from typing import IO, Any

import torch.distributed as dist
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import setup_globals
from hydra.types import RunMode
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from omegaconf import DictConfig, OmegaConf, open_dict
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from metagradient.distributed import SOLO, Group, ProcessLost, current, watched, world
from metagradient.errors import UserError
from metagradient.reporting import Record
from metagradient.reporting.runs.foreign import settings_of
from metagradient.studies import trainer

__all__ = ["ProcessLost", "Team", "follow", "joined", "leading", "meet", "started"]

log = logging.getLogger(__name__)

_DAYS = 7 * 24 * 60.0  # minutes: whoever waits for one that is still at work waits; one that has ended is noticed
_BREAK = 10.0  # seconds that an interrupted process has to tidy up
_HERE = "metagradient/here"


@dataclass(frozen=True)
class _Job:
    """What those that follow are told."""

    experiment: str
    cfg: DictConfig
    hydra: Any
    directory: str


@dataclass(frozen=True)
class Team:
    """The processes of a command.

    Attributes:
        ended: a line about one that has ended without a word.
        note: what the run's log should say first.
    """

    group: Group = SOLO
    ended: Callable[[], str | None] = lambda: None
    note: str = ""

    @contextmanager
    def together(self) -> Iterator[None]:
        """The time in which all of them are at work; all leave together.

        Raises:
            ProcessLost: one of the others has ended.
        """
        with watched(self.group, self.ended):
            if self.note:
                log.info("%s", self.note)
            yield
            self.group.wait()


def started() -> int:
    """How many processes torchrun or srun started for this command; 1 where it was started by itself."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return int(os.environ.get("WORLD_SIZE", "1"))
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))


def joined() -> Group:
    """The group of those that torchrun or srun started."""
    if started() > 1 and "TORCHELASTIC_RUN_ID" not in os.environ:
        slurm = SLURMEnvironment()
        own = {"RANK": slurm.global_rank(), "LOCAL_RANK": slurm.local_rank(), "NODE_RANK": slurm.node_rank()}
        where = {"MASTER_ADDR": slurm.main_address, "MASTER_PORT": slurm.main_port, "WORLD_SIZE": started()}
        os.environ |= {name: str(value) for name, value in (own | where).items()}
    return world(_DAYS)


@contextmanager
def leading(cfg: DictConfig, experiment: str, directory: Path) -> Iterator[Team]:
    """The processes of a run of `cfg` are there inside, and have been told of it.

    Raises:
        UserError: the experiment runs in one process; torchrun or srun started another number than were asked for.
    """
    size = trainer.processes(cfg, experiment)
    # Tasks of srun may be commands of their own.
    there = started() if size > 1 or "TORCHELASTIC_RUN_ID" in os.environ else 1
    note = _note(cfg, size)
    if size == 1 and there == 1:
        yield Team(note=note)
        return
    if there not in (1, size):
        raise UserError(
            f"{there} processes were started, but trainer.devices * trainer.num_nodes is {size}: set trainer.devices to those "
            "of a machine and trainer.num_nodes to the machines"
        )
    if there > 1 and HydraConfig.get().mode == RunMode.MULTIRUN:
        raise UserError(
            "each job of a sweep starts its own processes: leave torchrun or srun out, or start single runs"
        )
    if there == 1 and cfg.trainer.get("num_nodes", 1) > 1:
        raise UserError(
            f"trainer.num_nodes={cfg.trainer.num_nodes}: start the command on each machine by torchrun or srun"
        )
    with ExitStack() as stack:
        followers = None if there > 1 else stack.enter_context(_Followers.started(size))
        group = joined() if followers is None else stack.enter_context(followers.met())
        group.told(_Job(experiment, cfg, HydraConfig.instance().cfg, str(directory.absolute())))
        group.wait()  # they have taken what there is to go on from
        yield Team(group, (lambda: None) if followers is None else followers.ended, note)
        if followers is not None:
            followers.leave()


def follow(run: Callable[[str, DictConfig, Record], object]) -> int:
    """Run what the leading process tells, by `run(experiment, settings, record)`; the exit status."""
    group = current()
    try:
        job: _Job = group.told(None)[0]
    except ProcessLost:
        return 1
    setup_globals()
    HydraConfig.instance().set_config(job.hydra)
    with tempfile.TemporaryDirectory(prefix="metagradient-") as scratch:
        with open_dict(job.cfg):
            job.cfg.logger = {"mode": "disabled"}
            if job.cfg.get("resume") is not None:
                passed_over = shutil.ignore_patterns(".lock", "*.log", "figures", "tensorboard")
                shutil.copytree(
                    job.directory, scratch, dirs_exist_ok=True, ignore=passed_over, ignore_dangling_symlinks=True
                )  # what is wrong in there is told by the one that leads
                job.cfg.resume = scratch
        try:
            group.wait()
            with Team(group).together(), Record.open(job.cfg, job.experiment, scratch) as record:
                run(job.experiment, job.cfg, record)
        except (ProcessLost, KeyboardInterrupt):
            return 1
        except Exception:
            with suppress(OSError):  # the leader is told in a line anyhow
                shutil.copy(Path(scratch, "run.log"), Path(job.directory, f"process-{group.rank}.log"))
            return 1
    return 0


def meet() -> Group:
    """Join the process that started this one."""
    store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    store.set(f"{_HERE}/{os.environ['RANK']}", "")
    return world(_DAYS, store)


@dataclass
class _Followers:
    """Processes 1 .. W - 1 of this machine, which this process started."""

    store: Any
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    terminals: list[IO[bytes]] = field(default_factory=list)

    @classmethod
    @contextmanager
    def started(cls, size: int) -> Iterator[_Followers]:
        """They run inside, and none is left behind."""
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(minutes=_DAYS))
        followers = cls(store)
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store.port, "WORLD_SIZE": size, "NODE_RANK": 0}
        with tempfile.TemporaryDirectory(prefix="metagradient-") as scratch, ExitStack() as files:
            try:
                for rank in range(1, size):
                    own = meeting | {"RANK": rank, "LOCAL_RANK": rank, "TMPDIR": scratch}
                    terminal = files.enter_context(tempfile.TemporaryFile())
                    followers.terminals.append(terminal)
                    followers.processes.append(
                        subprocess.Popen(
                            [sys.executable, "-m", "metagradient.cli.follower"],
                            env=os.environ | {name: str(value) for name, value in own.items()},
                            stdin=subprocess.DEVNULL,
                            stdout=subprocess.DEVNULL,
                            stderr=terminal,
                            start_new_session=True,  # Ctrl-C is for the one that leads
                        )
                    )
                with _environment(meeting | {"RANK": 0, "LOCAL_RANK": 0}):
                    yield followers
            finally:
                followers.stop()

    @contextmanager
    def met(self) -> Iterator[Group]:
        """The group of all, once all have come.

        Raises:
            ProcessLost: one has ended before.
        """
        size = len(self.processes) + 1
        while not self.store.check([f"{_HERE}/{rank}" for rank in range(1, size)]):
            if line := self.ended():
                raise ProcessLost(line)
            sleep(0.05)
        try:
            yield world(_DAYS, self.store)
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()

    def ended(self) -> str | None:
        """A line about one that has ended before its time."""
        for rank, (process, terminal) in enumerate(zip(self.processes, self.terminals, strict=True), 1):
            status = process.poll()
            if status is None or status == 0:
                continue
            if status < 0:
                hint = " (too little memory?)" if status == -signal.SIGKILL else ""
                return f"process {rank} was killed by {signal.Signals(-status).name}{hint}"
            terminal.seek(0)
            said = terminal.read().decode(errors="replace").strip().splitlines()
            return f"process {rank} ended with status {status}{f': {said[-1]}' if said else ''}"
        return None

    def leave(self) -> None:
        """Wait for those that are done."""
        for process in self.processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(_BREAK)

    def stop(self) -> None:
        """End those that are not."""
        for process in self.processes:
            process.terminate()
        self.leave()
        for process in self.processes:
            process.kill()
            process.wait()


@contextmanager
def _environment(variables: Mapping[str, Any]) -> Iterator[None]:
    """Where Lightning reads that its processes are there already, and which this is."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ |= {name: str(value) for name, value in variables.items()}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _note(cfg: DictConfig, size: int) -> str:
    """What is to be said of a run that goes on in another number of processes."""
    if cfg.get("resume") is None:
        return ""
    kept = OmegaConf.create(settings_of(Path(cfg.resume) / "config.yaml"))
    before = trainer.asked_for(kept) if "trainer" in kept else size
    if before == size:
        return ""
    return f"number of processes: {before} before, {size} from here on; the same run up to rounding"

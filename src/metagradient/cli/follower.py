"""A process that follows the leading one of its command: one that torchrun or srun started, or the command itself.

The command starts it as `python -m metagradient.cli.follower`, with its place in the environment.
"""

import importlib
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from metagradient.cli.interrupts import interruptible

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from metagradient.reporting import Record


def run_experiment(name: str, cfg: "DictConfig", record: "Record") -> Any:
    """`metagradient.experiments.<name>.run(cfg, record)`."""
    return importlib.import_module(f"metagradient.experiments.{name}").run(cfg, record)


def following(arguments: Sequence[str]) -> bool:
    """Whether this process is one of several that share the command, and not the first; all of them then know each other.

    Tasks of srun share it where `trainer.devices` or `trainer.num_nodes` says so: they may also be commands of their own.
    """
    told = any(item.lstrip("+").startswith(("trainer.devices=", "trainer.num_nodes=")) for item in arguments)
    if "TORCHELASTIC_RUN_ID" not in os.environ and not (told and "SLURM_STEP_NUM_TASKS" in os.environ):
        return False
    from metagradient.studies import processes

    return processes.started() > 1 and processes.joined().rank > 0


def follow() -> int:
    """Do what the leading process tells, unheard; the exit status."""
    from metagradient.studies import processes

    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.dup2(nowhere, sys.stderr.fileno())
    return _follow_on(processes)


def main() -> int:
    """Join the command that started this process, and follow; the exit status."""
    from metagradient.studies import processes

    processes.meet()
    return _follow_on(processes)


def _follow_on(processes: Any) -> int:
    from metagradient.schema import register

    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # a user's own package, as for the command
    register()
    with interruptible():
        return int(processes.follow(run_experiment))


if __name__ == "__main__":
    sys.exit(main())

"""Finished and unfinished runs, read back from their directories."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from metagradient.errors import UserError
from metagradient.reporting.runs.foreign import LARGEST, MOST, metrics_of, opened, overrides_of, part, settings_of
from metagradient.reporting.runs.sums import check_sums

Config = dict[str, Any]
"""A configuration as one flat mapping from dotted keys to values."""

INCIDENTAL = ("logger", "resume", "hydra", "trainer.devices", "trainer.num_nodes")
"""Settings that say where a run is told of and how it was started, not what it computes."""

_LONGEST = 1000  # characters of an error


@dataclass(frozen=True)
class Run:
    """One run directory.

    Attributes:
        config: the resolved settings, flat, without the incidental ones.
        choices: the option chosen in each config group.
        overrides: the keys that were set on the command line.
        damage: why the directory cannot be read, in one line; empty where it can.
        metrics: metrics.json; {} while there is none.
    """

    directory: Path
    experiment: str
    config: Config
    metrics: dict[str, Any] = field(default_factory=dict)
    choices: Mapping[str, str] = field(default_factory=dict)
    overrides: tuple[str, ...] = ()
    damage: str = ""

    @property
    def status(self) -> str:
        """finished | failed | interrupted | unreadable | unfinished: one that was killed or is still running."""
        return "unreadable" if self.damage else str(self.metrics.get("status", "unfinished"))

    @property
    def seed(self) -> Any:
        return self.config.get("seed")

    @property
    def why(self) -> str:
        """The error of a run without results, in one line; empty for a finished run."""
        if self.status == "finished":
            return ""
        return self.damage or str(self.metrics.get("error") or _last_error(self.directory))

    @property
    def title(self) -> str:
        """Its overrides as they were typed."""
        return " ".join(self.overrides) or "default"


def find(paths: Iterable[str | Path]) -> list[Run]:
    """The runs at `paths`, each a run directory or a folder (of a sweep, of many runs), in the order of their names.

    One that cannot be read is among them: its `damage` says why, and it has neither settings nor results.

    Raises:
        UserError: a path does not exist, or holds no run.
    """
    found: dict[Path, Run] = {}
    for path in map(Path, paths):
        if not path.is_dir():
            raise UserError(
                f"no such folder: {path}; give run directories or folders of them, such as outputs/selection"
            )
        directories = sorted(_run_directories(path), key=_natural)
        if not directories:
            raise UserError(f"no run in {path}: a run directory has a config.yaml, and metrics.json once it has ended")
        found |= {directory.resolve(): _read_or_damaged(directory) for directory in directories}
    return list(found.values())


def _read_or_damaged(directory: Path) -> Run:
    try:
        return read(directory)
    except UserError as error:
        return Run(directory, directory.absolute().parent.name, {}, damage=str(error))


def read(directory: Path) -> Run:
    """The run in a directory that has a config.yaml, of whoever made it; nothing that it holds is executed.

    Raises:
        UserError: one of its files is damaged, or not what the run left.
    """
    file = directory / ".hydra" / "hydra.yaml"
    check_sums(directory, ("config.yaml", "metrics.json"))
    kept = settings_of(file)
    hydra = part(file, kept, "hydra")
    metrics = metrics_of(directory / "metrics.json")
    config = settings(settings_of(directory / "config.yaml"))
    if len(config) > MOST:
        raise UserError(f"{directory / 'config.yaml'} holds {len(config)} settings, far more than a run has")
    if isinstance(config.get("seed"), list | dict):
        raise UserError(f"{directory / 'config.yaml'}: seed must be one value, not several")
    choices, job = part(file, hydra, "runtime", "choices"), part(file, hydra, "job")
    return Run(
        directory,
        str(metrics.get("experiment") or job.get("config_name") or directory.absolute().parent.name),
        config,
        metrics,
        {group: str(option) for group, option in choices.items() if not group.startswith("hydra")},
        overrides_of(file, kept),
    )


def settings(config: Mapping[str, Any]) -> Config:
    """The settings of a nested configuration that decide what a run computes, flat."""
    kept = {key: value for key, value in config.items() if key not in INCIDENTAL}
    return {key: value for key, value in _flat(kept) if key not in INCIDENTAL}


def differences(kept: Config, given: Config) -> list[str]:
    """`key: there -> here` for every setting in which two configurations differ; null and absent are the same."""
    keys = [key for key in {**kept, **given} if kept.get(key) != given.get(key)]
    return [f"{key}: {_show(kept, key)} -> {_show(given, key)}" for key in keys]


def _show(config: Config, key: str) -> str:
    return "absent" if config.get(key) is None else str(config[key])


def _run_directories(folder: Path) -> Iterator[Path]:
    """`folder` if it is a run's, else those below it; what lies inside a run is not searched.

    A folder that cannot be looked into may be a run's.
    """
    todo, seen = [folder], set[tuple[int, int]]()
    while todo:
        place = todo.pop()
        with suppress(OSError):
            about = place.stat()
            if (about.st_dev, about.st_ino) in seen:  # a link led back here
                continue
            seen.add((about.st_dev, about.st_ino))
        if os.path.lexists(place / "config.yaml"):
            yield place
            continue
        try:
            children = list(place.iterdir())
        except OSError:
            yield place
            continue
        todo += [c for c in children if os.path.isdir(c) and not c.name.startswith(".") and c.name != "wandb"]


def _natural(path: Path) -> list[Any]:
    """Sorts job 10 after job 9."""
    return [(1, int(word), "") if word.isdecimal() else (0, 0, word) for word in re.split(r"(\d+)", str(path))]


def _flat(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _last_error(directory: Path) -> str:
    """The last line of the last traceback in run.log, else what its absence means."""
    try:
        with opened(directory / "run.log") as log:
            log.seek(max(0, os.fstat(log.fileno()).st_size - LARGEST))
            lines = log.read(LARGEST).decode("utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return "it was never started"
    except UserError as error:
        return str(error)
    errors = [line for line in lines if re.match(r"[A-Za-z_.]+(Error|Exception|Interrupt|Exit)\b", line)]
    return errors[-1][:_LONGEST] if errors else "killed, or still running"

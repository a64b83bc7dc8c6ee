"""Finished and unfinished runs, read back from their directories."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from metagradient.errors import UserError

Config = dict[str, Any]
"""A configuration as one flat mapping from dotted keys to values."""

INCIDENTAL = ("logger", "resume", "hydra")
"""Settings that say where a run is told of and how it was started, not what it computes."""

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class Run:
    """One run directory.

    Attributes:
        config: the resolved settings, flat, without the incidental ones.
        choices: the option chosen in each config group.
        overrides: the keys that were set on the command line.
        metrics: metrics.json; {} while there is none.
    """

    directory: Path
    experiment: str
    config: Config
    metrics: dict[str, Any] = field(default_factory=dict)
    choices: Mapping[str, str] = field(default_factory=dict)
    overrides: tuple[str, ...] = ()

    @property
    def status(self) -> str:
        """finished | failed | interrupted | unfinished: one that was killed or is still running."""
        return str(self.metrics.get("status", "unfinished"))

    @property
    def seed(self) -> Any:
        return self.config.get("seed")

    @property
    def why(self) -> str:
        """The error of a run without results, in one line; empty for a finished run."""
        return "" if self.status == "finished" else str(self.metrics.get("error") or _last_error(self.directory))

    @property
    def title(self) -> str:
        """Its overrides as they were typed."""
        return " ".join(self.overrides) or "default"


def find(paths: Iterable[str | Path]) -> list[Run]:
    """The runs at `paths`, each a run directory or a folder (of a sweep, of many runs), in the order of their names.

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
        found |= {directory.resolve(): read(directory) for directory in directories}
    return list(found.values())


def read(directory: Path) -> Run:
    """The run in a directory that has a config.yaml."""
    hydra = _yaml(directory / ".hydra" / "hydra.yaml").get("hydra", {})
    metrics: dict[str, Any] = {}
    if (directory / "metrics.json").exists():
        try:
            metrics = json.loads((directory / "metrics.json").read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(
                f"{directory / 'metrics.json'} cannot be read ({error}): remove that run directory"
            ) from error
    choices = hydra.get("runtime", {}).get("choices", {})
    return Run(
        directory,
        str(metrics.get("experiment") or hydra.get("job", {}).get("config_name") or directory.absolute().parent.name),
        settings(_yaml(directory / "config.yaml")),
        metrics,
        {group: str(option) for group, option in choices.items() if not group.startswith("hydra")},
        tuple(map(str, hydra.get("overrides", {}).get("task", ()))),
    )


def settings(config: Mapping[str, Any]) -> Config:
    """The settings of a nested configuration that decide what a run computes, flat."""
    return dict(_flat({key: value for key, value in config.items() if key not in INCIDENTAL}))


def differences(kept: Config, given: Config) -> list[str]:
    """`key: there -> here` for every setting in which two configurations differ; null and absent are the same."""
    keys = [key for key in {**kept, **given} if kept.get(key) != given.get(key)]
    return [f"{key}: {_show(kept, key)} -> {_show(given, key)}" for key in keys]


def _show(config: Config, key: str) -> str:
    return "absent" if config.get(key) is None else str(config[key])


def _run_directories(folder: Path) -> Iterator[Path]:
    """`folder` if it is a run's, else those below it; what lies inside a run is not searched."""
    if (folder / "config.yaml").exists():
        yield folder
        return
    for child in folder.iterdir():
        if child.is_dir() and not child.name.startswith(".") and child.name != "wandb":
            yield from _run_directories(child)


def _natural(path: Path) -> list[Any]:
    """Sorts job 10 after job 9."""
    return [(1, int(part), "") if part.isdigit() else (0, 0, part) for part in re.split(r"(\d+)", str(path))]


def _yaml(path: Path) -> dict[str, Any]:
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader) or {}
    except FileNotFoundError:
        return {}
    except yaml.YAMLError as error:
        raise UserError(f"{path} cannot be read ({' '.join(str(error).split())}): remove that run directory") from error


def _flat(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _last_error(directory: Path) -> str:
    """The last line of the last traceback in run.log, else what its absence means."""
    log = directory / "run.log"
    if not log.exists():
        return "it was never started"
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    errors = [line for line in lines if re.match(r"[A-Za-z_.]+(Error|Exception|Interrupt|Exit)\b", line)]
    return errors[-1] if errors else "killed, or still running"

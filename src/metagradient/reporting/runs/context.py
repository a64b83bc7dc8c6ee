"""Where a run stands: its directory, and what Hydra knows of it (overrides, chosen options, sweep)."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import OmegaConf

from metagradient.reporting.runs.foreign import overrides_of
from metagradient.reporting.runs.tracking import Identity

_TAGGED = ("data", "model", "method")  # the config groups whose choice becomes a tag
_UNNAMED = ("seed", "experiment", "+experiment", "+grid")  # overrides that the name, group or tags show otherwise
_NAME_LENGTH = 120  # W&B takes 128 characters


@dataclass(frozen=True)
class RunContext:
    """A run's directory and the circumstances it was started under."""

    directory: Path
    experiment: str
    overrides: tuple[str, ...] = ()  # in a sweep, those in which its jobs differ come first
    choices: Mapping[str, str] | None = None
    sweep: str | None = None

    @property
    def outputs(self) -> Path:
        """The folder that all runs share: the one called outputs above the run directory, else ./outputs."""
        above = (folder for folder in self.directory.parents if folder.name == "outputs")
        return next(above, Path.cwd() / "outputs")

    @property
    def title(self) -> str:
        """The preset, or the overrides, or `default`."""
        named = [item for item in self.overrides if item.partition("=")[0] not in _UNNAMED and _tells(item)]
        return " ".join([*filter(None, [self._choice("experiment")]), *named]) or "default"

    def identity(self, experiment: str, logger: Mapping[str, Any], seed: Any) -> Identity:
        """How W&B files the run; what `logger` gives is taken, the rest follows from the circumstances.

        group = preset, or grid, or name of the sweep, or experiment; name = overrides and `s<seed>`; tags = options
        chosen for data, model and method.
        """
        group = self._choice("experiment") or self._choice("grid") or self.sweep or experiment
        name = self.title[:_NAME_LENGTH] + ("" if seed is None else f" s{seed}")
        tags = [tag for tag in map(self._choice, _TAGGED) if tag]
        return Identity(
            project=str(logger.get("project") or "metagradient"),
            group=str(logger.get("group") or group),
            job_type=experiment,
            name=str(logger.get("name") or name),
            tags=tuple(dict.fromkeys([*tags, *map(str, logger.get("tags") or ())])),
        )

    def _choice(self, group: str) -> str | None:
        choice = (self.choices or {}).get(group)
        return None if choice in (None, "null", "None") else str(choice)


def identify(experiment: str, directory: Any = None) -> RunContext:
    """The context of the run that is being started; a given `directory` wins over Hydra's."""
    if not HydraConfig.initialized():
        folder = Path(directory or Path("outputs") / experiment / f"{datetime.now():%Y-%m-%d_%H-%M-%S-%f}")
        return RunContext(folder.absolute(), experiment)
    cfg = HydraConfig.get()
    overrides = tuple(map(str, cfg.overrides.task))
    if cfg.mode == RunMode.MULTIRUN:
        common = _common(Path(cfg.sweep.dir) / "multirun.yaml")
        overrides = tuple(sorted(overrides, key=lambda item: item.partition("=")[0] in common))
    return RunContext(
        directory=Path(directory or cfg.runtime.output_dir).absolute(),
        experiment=experiment,
        overrides=overrides,
        choices={str(key): str(value) for key, value in OmegaConf.to_container(cfg.runtime.choices).items()},  # type: ignore[union-attr]
        sweep=Path(cfg.sweep.dir).name if cfg.mode == RunMode.MULTIRUN else None,
    )


def _common(kept: Path) -> set[str]:
    """The keys that a sweep was given one value for; those of a grid or a sweeper are not among them."""
    parsed = OverridesParser.create().parse_overrides(list(overrides_of(kept)))
    return {str(o.input_line).partition("=")[0] for o in parsed if not o.is_sweep_override()}


def _tells(override: str) -> bool:
    return not override.lstrip("+~").startswith(("logger", "hydra", "resume"))

"""Where runs lie and what they go on from: `resume=true`, `resume=DIR`, and the jobs of a sweep.

`resume` picks a directory. What lies in it then decides: a finished run with the same settings is not repeated, an
unfinished one goes on from what it saved, one with other settings is refused.
"""

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metagradient.cli.help import composer, given_of, key_of, parser
from metagradient.errors import UserError
from metagradient.escapes import visible

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from metagradient.reporting.runs.reading import Run

_NEW = (None, "", "null", "false", "False")


@dataclass(frozen=True)
class Placed:
    """A command line whose output directory is settled; sweep: the folder of its jobs, None for a single run."""

    arguments: list[str]
    sweep: Path | None


def place(name: str, arguments: Sequence[str]) -> Placed:
    """Settle where the run of experiment `name`, or the jobs of its sweep, will lie.

    Raises:
        UserError: nothing to go on from in `resume=DIR`, or a run with other settings.
        HydraException: an override is wrong.
    """
    from hydra.types import RunMode

    args, _ = parser().parse_known_args(list(arguments))
    given = given_of(args.overrides)
    resume, sweep = given.get("resume"), is_sweep(arguments)
    if (resume in _NEW and not sweep) or args.cfg or args.info or args.hydra_help or args.shell_completion:
        return Placed(list(arguments), None)
    plain = [item for item in arguments if key_of(item) != "resume"]
    overrides = [item for item in args.overrides if key_of(item) != "resume"]
    with composer(args.config_dir) as hydra:
        cfg = hydra.compose_config(args.config_name or name, overrides, RunMode.MULTIRUN if sweep else RunMode.RUN)
        own = Path(str(cfg.hydra.sweep.dir if sweep else cfg.hydra.run.dir))
        params = dict(cfg.hydra.sweeper.get("params") or {}) if sweep else {}
        job = None if sweep else _job_settings(hydra.get_sanitized_cfg(cfg, "job"))
    if given.keys() & params.keys():  # the command line beats the grid, where Hydra would run both
        rest = [f"{key}={value}" for key, value in params.items() if key not in given]
        plain += [*rest, "hydra.sweeper.params=null"]
        overrides += rest
    if resume in _NEW:
        folder = own
    elif resume in ("true", "True"):
        folder = (_newest_sweep(own.parent, overrides, cfg) if sweep else _newest_run(own.parent, job or {})) or own
        said = "going on in" if folder != own else "nothing unfinished with these settings, so a new run:"
        print(visible(f"resume: {said} {folder}"), file=sys.stderr)
    else:
        folder = Path(str(resume))
        if not folder.is_dir():
            raise UserError(
                f"resume={resume} is no folder: give a run directory (or sweep), or resume=true for the newest"
            )
        if job is not None:
            _same_settings(folder, job)
    if sweep and "-m" not in plain and "--multirun" not in plain:
        plain.insert(0, "-m")  # a flag amid the overrides would end them
    where = f"hydra.{'sweep' if sweep else 'run'}.dir={_quoted(folder)}"
    return Placed([*plain, where, *([] if resume in _NEW else ["resume=true"])], folder if sweep else None)


def is_sweep(arguments: Sequence[str]) -> bool:
    """Whether these arguments start several jobs: by `-m`, by a grid, or by Hydra's own setting."""
    args, _ = parser().parse_known_args(list(arguments))
    given = given_of(args.overrides)
    a_grid = any(item.startswith("+grid=") for item in args.overrides)
    return bool(args.multirun) or a_grid or given.get("hydra.mode") == "MULTIRUN"


def resumed(cfg: "DictConfig", directory: Path) -> "Run | None":
    """Look at what lies in a run's directory: the finished run, if nothing is left to do; else `cfg.resume` is settled.

    It becomes the directory where there is an unfinished run to go on from, and None where there is none.

    Raises:
        UserError: the run there has other settings, or is finished and a file is not what it left.
    """
    from omegaconf import open_dict

    from metagradient.reporting.runs.sums import check_sums

    if not cfg.get("resume") or str(cfg.resume) not in ("true", "True"):
        return None
    with open_dict(cfg):
        cfg.resume = str(directory) if (directory / "config.yaml").exists() else None
    if cfg.resume is None:
        return None
    found = _same_settings(directory, _job_settings(cfg))
    if found.status != "finished":
        return None
    try:
        check_sums(directory)
    except UserError as error:
        raise UserError(f"{error}; remove {directory / 'metrics.json'}, and resuming computes it again") from error
    return found


def tell_of_jobs(sweep: Path) -> bool:
    """Print the table of a sweep's jobs: what each came to, and of those without a result why. Whether all have one."""
    from metagradient.reporting import print_table
    from metagradient.reporting.runs.reading import find

    if not sweep.is_dir() or not any(sweep.glob("*/config.yaml")):
        return True
    jobs, planned = find([sweep]), _planned(sweep)
    common = set.intersection(*(set(job.overrides) for job in jobs)) if len(jobs) > 1 else set()

    def varied(overrides: Sequence[str]) -> str:
        return " ".join(item for item in overrides if item not in common and key_of(item) != "resume") or "default"

    rows = [
        [
            job.directory.name,
            varied(job.overrides),
            job.status,
            job.metrics.get("objective"),
            job.metrics.get("cost/seconds"),
            job.why,
        ]
        for job in jobs
    ]
    if all(job.directory.name.isdecimal() for job in jobs):
        begun = {job.directory.name for job in jobs}
        waiting = [(str(i), overrides) for i, overrides in enumerate(planned) if str(i) not in begun]
        rows += [[i, varied(overrides), "never began", None, None, ""] for i, overrides in waiting]
    done = sum(job.status == "finished" for job in jobs)
    columns = ["job", "overrides", "status", "objective", "seconds", "why"]
    width = len(columns) if done < len(rows) else len(columns) - 1
    print_table(f"{len(rows)} jobs, {done} finished: {sweep}", columns[:width], [row[:width] for row in rows])
    return done == len(rows)


def _planned(sweep: Path) -> list[Sequence[str]]:
    """The overrides of each job that a sweep was to have, as far as they were known before it."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    from metagradient.reporting.runs.foreign import overrides_of, part, settings_of

    file = sweep / "multirun.yaml"
    try:
        settings = settings_of(file)
        sweeper = part(file, settings, "hydra", "sweeper")
        if str(sweeper.get("_target_")).endswith("BasicSweeper"):
            params = [f"{key}={value}" for key, value in part(file, sweeper, "params").items()]
            parsed = OverridesParser.create().parse_overrides([*params, *overrides_of(file, settings)])
            return list(BasicSweeper.split_arguments(parsed, None)[0])
        trials = sweeper.get("n_trials")
        return [()] * trials if isinstance(trials, int) else []
    except (UserError, HydraException) as error:
        print(visible(f"{file}: {error}"), file=sys.stderr)
        return []


def _newest_run(folder: Path, settings: Mapping[str, Any]) -> Path | None:
    """The newest unfinished single run with these settings."""
    from metagradient.reporting.runs.reading import differences, read

    for directory in sorted(folder.glob("*/"), reverse=True):
        if (directory / "config.yaml").exists():
            try:
                run = read(directory)
            except UserError as error:
                print(visible(f"resume: passed over {directory}: {error}"), file=sys.stderr)
                continue
            if run.status != "finished" and not differences(run.config, dict(settings)):
                return directory
    return None


def _newest_sweep(folder: Path, overrides: Sequence[str], cfg: "DictConfig") -> Path | None:
    """The newest sweep of the same sweeper that was started with these overrides, in this order: it numbers the jobs."""
    from metagradient.reporting.runs.foreign import overrides_of, part, settings_of

    for path in sorted(folder.glob("*/multirun.yaml"), reverse=True):
        try:
            settings = settings_of(path)
            kept, by = overrides_of(path, settings), part(path, settings, "hydra", "sweeper").get("_target_")
        except UserError as error:
            print(visible(f"resume: passed over {path.parent}: {error}"), file=sys.stderr)
            continue
        if by == cfg.hydra.sweeper._target_ and _comparable(kept) == _comparable(overrides):
            return path.parent
    return None


def _comparable(overrides: Sequence[str]) -> list[str]:
    incidental = ("logger", "hydra", "resume")
    return [str(item) for item in overrides if re.split(r"[./]", key_of(str(item)))[0] not in incidental]


def _same_settings(directory: Path, settings: Mapping[str, Any]) -> "Run":
    from metagradient.reporting.runs.reading import differences, read

    if not (directory / "config.yaml").exists():
        raise UserError(f"{directory} has no config.yaml: it is no run directory, so there is nothing to resume")
    try:
        run = read(directory)
    except UserError as error:
        raise UserError(f"{error}; remove that file, or leave resume out") from error
    differ = differences(run.config, dict(settings))
    if differ:
        raise UserError(f"{directory} has other settings ({'; '.join(differ)}): give those, or leave resume out")
    return run


def _job_settings(cfg: "DictConfig") -> dict[str, Any]:
    """The settings as they will be read back from config.yaml."""
    import yaml
    from omegaconf import OmegaConf

    from metagradient.reporting.runs.reading import settings

    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    return settings(yaml.safe_load(OmegaConf.to_yaml(OmegaConf.create(plain))))


def _quoted(path: Path) -> str:
    return "'" + str(path).replace("'", r"\'") + "'"

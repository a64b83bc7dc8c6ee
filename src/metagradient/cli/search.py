"""A search by Optuna keeps its trials in the sweep's folder, and goes on with them where it was cut short.

Hydra's sweeper counts its jobs from 0 each time, and knows nothing of trials that were cut short. So whoever resumes begins
a study anew in the same storage, whose first trials are those of the one before: their jobs fall into the directories
that are there, where what is finished is not repeated and what is not goes on.
"""

import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metagradient.cli.help import composer, given_of, parser
from metagradient.errors import UserError
from metagradient.escapes import visible

MINIMISED = ("schedule", "cost")
"""Experiments whose objective is better when lower; a search maximises that of the others."""
_STORAGE, _STUDY = "hydra.sweeper.storage", "hydra.sweeper.study_name"
_INSTALL = "Optuna cannot keep trials here ({error}): pip install 'metagradient[optuna]'"


def with_search(experiment: str, arguments: Sequence[str], folder: Path) -> list[str]:
    """The arguments of a sweep in `folder`; where it is a search, also its aim, and where its trials are kept.

    Raises:
        UserError: trials are to be gone on with, and cannot be read.
    """
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    args, _ = parser().parse_known_args(list(arguments))
    given, going_on = given_of(args.overrides), "resume=true" in arguments
    if "optuna" not in given.get("hydra/sweeper", ""):
        return list(arguments)
    with composer(args.config_dir) as hydra:  # Hydra's own sweeper leaves this file
        cfg = hydra.compose_config(args.config_name or experiment, args.overrides, RunMode.MULTIRUN)
    OmegaConf.save(cfg, folder / "multirun.yaml")
    # the sweeper's own defaults minimise, and stop at the first failed trial
    ours = {"direction": "minimize" if experiment in MINIMISED else "maximize", "max_failure_rate": "1.0"}
    found = [f"hydra.sweeper.{key}={value}" for key, value in ours.items() if f"hydra.sweeper.{key}" not in given]
    if _STUDY in given:
        return [*arguments, *found]
    storage = given.get(_STORAGE, f"sqlite:///{folder.absolute() / 'optuna.db'}")
    direction = given.get("hydra.sweeper.direction", ours["direction"])
    try:
        study = _study(storage.strip("'\""), folder.name, direction, going_on)
    except Exception as error:
        problem = _INSTALL.format(error=f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": "))
        if going_on:
            raise UserError(f"{problem}; or leave resume out") from error
        print(visible(f"{problem}; this search cannot be resumed"), file=sys.stderr)
        return [*arguments, *found]
    stored = [] if _STORAGE in given else [f"{_STORAGE}='{storage}'"]
    return [*arguments, *found, *stored, f"{_STUDY}='{study}'"]


def _study(storage: str, name: str, direction: str, going_on: bool) -> str:
    """The name of a study in the storage: a new one, or one that begins with the trials of the longest before it."""
    import optuna

    optuna.logging.set_verbosity(logging.WARNING)
    held = optuna.storages.get_storage(storage)
    names = [summary.study_name for summary in optuna.get_all_study_summaries(held)]
    ours = [kept for kept in names if kept == name or kept.startswith(f"{name}, resumed ")]
    if not going_on or not ours:
        for earlier in ours:  # of another search in the same folder
            optuna.delete_study(earlier, held)
        optuna.create_study(storage=held, study_name=name, direction=direction)
        return name
    begun = max((_asked(optuna.load_study(kept, held)) for kept in ours), key=len)
    study = optuna.create_study(storage=held, study_name=f"{name}, resumed {len(ours)}", direction=direction)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # enqueueing is called experimental
        for parameters in begun:
            study.enqueue_trial(parameters)
    return str(study.study_name)


def _asked(study: Any) -> list[dict[str, Any]]:
    """The parameters of its trials in turn, up to one that was cut short before it had any."""
    found = []
    for trial in study.get_trials(deepcopy=False):
        parameters = trial.params or trial.system_attrs.get("fixed_params", {})
        if not parameters:
            break
        found.append(parameters)
    return found

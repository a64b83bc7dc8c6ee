"""From a configuration to the objects an experiment works with."""

import copy
import difflib
import gc
import logging
import os
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from metagradient.data import PairSplits, Splits, TextSplits
from metagradient.distributed import SOLO, Group, current
from metagradient.errors import UserError
from metagradient.schema import check_settings
from metagradient.studies import trainer
from metagradient.training.sources import Column, Source

log = logging.getLogger(__name__)
_THREADS_OF_A_CORE = 4


def prepare(cfg: DictConfig, experiment: str) -> None:
    """Check the experiment's settings (`schema.experiments`); then threads, Lightning's log lines, and a garbage
    collector that need not walk through every import again."""
    if HydraConfig.initialized():
        hydra = HydraConfig.get()
        check_settings(cfg, experiment, list(hydra.overrides.task), sweep=hydra.mode == RunMode.MULTIRUN)
    else:
        check_settings(cfg, experiment)
    trainer.check(cfg)
    trainer.multiply(cfg)
    if not gc.get_freeze_count():  # once: a job of a sweep would freeze the garbage of those before it
        gc.freeze()
    cores = os.cpu_count() or 1
    threads = cfg.trainer.threads or threads_of_a_job(_launcher(), cores)
    if threads is None and trainer.asked_for(cfg) > 1:
        threads = max(1, cores // cfg.trainer.get("devices", 1))
    if threads is not None and threads > _THREADS_OF_A_CORE * cores:
        raise UserError(f"trainer.threads={threads} on {cores} cores would hardly move: set trainer.threads={cores}")
    if threads is not None:
        torch.set_num_threads(threads)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*GPU available but not used.*")


def threads_of_a_job(launcher: Mapping[str, Any], cores: int) -> int | None:
    """Torch threads of a job that shares its machine with others of its sweep; None: torch's own choice."""
    if "joblib" in str(launcher.get("_target_")):
        jobs = launcher.get("n_jobs") or 1
        return max(1, cores // (jobs if jobs > 0 else max(1, cores + 1 + jobs)))
    return launcher.get("cpus_per_task")  # submitit


def workers(cfg: DictConfig) -> int:
    """`cfg.workers`, or this job's share of the cores that this process may use, eight of them: each holds the data."""
    if cfg.workers is not None:
        if not isinstance(cfg.workers, int) or cfg.workers < 1:
            raise UserError(f"workers must be an integer >= 1, or null, not '{cfg.workers}': set workers=1")
        return cfg.workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = (threads_of_a_job(_launcher(), cores) or cores) // cfg.trainer.get("devices", 1)
    return max(1, min(share, 8))


def _launcher() -> Mapping[str, Any]:
    return HydraConfig.get().launcher if HydraConfig.initialized() else {}


def build(node: Any, *args: Any, **kwargs: Any) -> Any:
    """`instantiate`, with bad settings told in the words of whoever refused them."""
    try:
        return instantiate(node, *args, **kwargs)
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, ValueError | FileNotFoundError | ConnectionError | TypeError):
            raise UserError(str(cause)) from error
        raise


def without(node: DictConfig, left: Collection[str]) -> DictConfig:
    """Settings without some of them; what they take from elsewhere in the configuration is filled in."""
    kept: Any = OmegaConf.to_container(node, resolve=True)
    return OmegaConf.create({key: value for key, value in kept.items() if key not in left})


def data(cfg: DictConfig) -> Any:
    """The data set of `cfg.data`; inputs that are not held become columns, which are read when they are asked for."""
    splits = _first(lambda: build(cfg.data))
    if not isinstance(splits, Splits | PairSplits) or isinstance(splits.train["x"], Tensor):
        return splits
    tables = {
        name: {**table, "x": Column(Source(table["x"], ("x",), workers=table["x"].workers), "x")}
        for name in ("train", "validation", "test")
        if len((table := getattr(splits, name))["x"])
    }
    return replace(splits, **tables)


def group() -> Group:
    """The processes of this command; a program of one's own that reads a run back says itself what it shares."""
    return current() if HydraConfig.initialized() else SOLO


def _first(make: Callable[[], Any]) -> Any:
    """What `make` makes; of several processes the first one makes it before the others, which find its downloads."""
    together = group()
    if together.rank > 0:
        together.wait()
    made = make()
    if together.rank == 0:
        together.wait()
    return made


def classification(
    cfg: DictConfig,
    *,
    inputs: bool = False,
    classes: bool = False,
    splits: Splits | TextSplits | PairSplits | None = None,
) -> Splits:
    """The data set of `cfg.data`, which must have targets.

    Args:
        cfg: the configuration.
        splits: the data set, where it is built already.
        inputs: examples must be such that they can be moved a little.
        classes: targets must be classes.

    Raises:
        UserError: sequences without labels; pairs; words, where numbers are to be moved; numbers, where classes are needed.
    """
    splits = data(cfg) if splits is None else splits
    name = HydraConfig.get().runtime.choices.get("data", splits.name) if HydraConfig.initialized() else splits.name
    if isinstance(splits, PairSplits):
        raise UserError(
            f"data={name} has pairs of images and texts, which only selection asks about: choose a labelled set, data=digits"
        )
    if isinstance(splits, TextSplits):
        raise UserError(
            f"data={name} has texts without labels, which selection and attribution ask about: choose a labelled set, data=digits"
        )
    if inputs and splits.kind == "text":
        raise UserError(
            f"data={name} has words, which cannot be moved by small steps: choose images or tables, data=digits"
        )
    if classes and splits.task != "classes":
        raise UserError(
            f"data={name} has targets that are {splits.task}, and this asks about classes: choose a target of classes, or set "
            "data.task=classes"
        )
    if inputs and not isinstance(splits.train["x"], Tensor):
        raise UserError(
            "data.workers: images that are read when they are asked for cannot be moved; set data.workers=null"
        )
    if inputs and splits.categories:
        raise UserError("data.encode=codes: codes cannot be moved by small steps; set data.encode=onehot")
    return splits


def share(fraction: float, total: int, name: str) -> int:
    """A fraction of `total` rows; at least one row and at most all but one."""
    if total < 2:
        raise UserError(f"{total} rows cannot be split in two by {name}: give more, for example data.validation=100")
    if not isinstance(fraction, float) or not 0 < fraction < 1:
        raise UserError(f"{name} is a share of the rows in (0, 1), not {fraction}: set {name}=0.25")
    return min(max(round(fraction * total), 1), total - 1)


def variant(cfg: DictConfig, edits: Mapping[str, Any]) -> DictConfig:
    """The configuration with some settings changed: {"model.pooling": "avg", "learner.batch_size": 100}."""
    changed = copy.deepcopy(cfg)
    for key, value in edits.items():
        group, _, leaf = str(key).rpartition(".")
        parent = OmegaConf.select(changed, group) if group else changed
        if parent is None:
            raise UserError(f"a variant edits {key}, but there is no {group}: name settings as on the command line")
        if leaf not in parent and parent.get("_target_") is None:  # what is built refuses what it does not know
            close = ", ".join(difflib.get_close_matches(leaf, [str(k) for k in parent], n=3)) or "no such setting"
            raise UserError(f"a variant edits {key}, which does not exist; nearest: {close}")
        if str(key).partition(".")[0] == "data":
            raise UserError(f"a variant edits {key}, but all variants share their data: change it for the whole run")
        OmegaConf.update(changed, str(key), value, merge=False, force_add=True)
    return changed


def folder(path: str | None) -> Path | None:
    """The run directory that `resume=...` names."""
    if path is not None and not Path(path).is_dir():
        raise UserError(f"resume={path} is no folder: give the directory of the run that was cut short")
    return None if path is None else Path(path)

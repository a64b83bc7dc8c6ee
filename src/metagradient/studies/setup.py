"""From a configuration to the objects an experiment works with."""

import copy
import difflib
import functools
import gc
import logging
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

import metagradient as mg
from metagradient.data import Splits, TextSplits
from metagradient.errors import UserError
from metagradient.replay.metagradients import describe
from metagradient.reporting import Progress, print_table
from metagradient.schema import Decay, ScheduleName

log = logging.getLogger(__name__)


def prepare(cfg: DictConfig, **least: int) -> None:
    """Check the root settings (`least`: integers and their smallest values); then threads, Lightning's chatter, and
    a garbage collector that need not walk through every import again."""
    for name, smallest in {"seed": 0, **least}.items():
        if not isinstance(cfg[name], int) or cfg[name] < smallest:
            raise UserError(f"{name} must be an integer >= {smallest}, not '{cfg[name]}': set {name}={smallest}")
    if cfg.trainer.accelerator not in ("cpu", "gpu", "cuda", "auto"):
        raise UserError(f"trainer.accelerator must be cpu, gpu, cuda or auto, not '{cfg.trainer.accelerator}'")
    gc.freeze()
    threads = cfg.trainer.threads or threads_of_a_job(_launcher(), os.cpu_count() or 1)
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
    return min(threads_of_a_job(_launcher(), cores) or cores, 8)


def _launcher() -> Mapping[str, Any]:
    return HydraConfig.get().launcher if HydraConfig.initialized() else {}


def build(node: Any, **kwargs: Any) -> Any:
    """`instantiate`, with bad settings told in the words of whoever refused them."""
    try:
        return instantiate(node, **kwargs)
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, ValueError | FileNotFoundError | ConnectionError | TypeError):
            raise UserError(str(cause)) from error
        raise


def classification(cfg: DictConfig, *, inputs: bool = False) -> Splits:
    """The data set of `cfg.data`, which must have labels; with `inputs`, examples that can be moved a little.

    Raises:
        UserError: sequences without labels; words, where numbers are to be moved.
    """
    splits = build(cfg.data)
    name = HydraConfig.get().runtime.choices.get("data", splits.name) if HydraConfig.initialized() else splits.name
    if isinstance(splits, TextSplits):
        raise UserError(
            f"data={name} has texts without labels, which only attribution asks about: choose a labelled set, data=digits"
        )
    if inputs and splits.kind == "text":
        raise UserError(
            f"data={name} has words, which cannot be moved by small steps: choose images or tables, data=digits"
        )
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
        if leaf not in parent and "_target_" not in parent:  # what is built refuses what it does not know
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


def device(cfg: DictConfig) -> torch.device:
    """Where models are trained."""
    cuda = torch.cuda.is_available()
    if cfg.trainer.accelerator in ("gpu", "cuda") and not cuda:
        raise UserError(f"trainer.accelerator={cfg.trainer.accelerator} but torch sees no GPU: set trainer=cpu")
    return torch.device("cuda" if cuda and cfg.trainer.accelerator in ("gpu", "cuda", "auto") else "cpu")


def classifier_routine(cfg: DictConfig, splits: Splits) -> mg.Routine:
    """The routine of `cfg.learner` and `cfg.model` for a classification data set."""
    return _routine(cfg, mg.Classifier, input_shape=splits.input_shape, classes=len(splits.classes))


def language_routine(cfg: DictConfig, splits: TextSplits) -> mg.Routine:
    """The routine of `cfg.learner` and `cfg.model` for a language model of characters."""
    length = splits.train["tokens"].shape[1] - 1
    return _routine(cfg, mg.LanguageModel, vocab=len(splits.vocabulary), block=length)


def _routine(cfg: DictConfig, kind: type[mg.Classifier] | type[mg.LanguageModel], **sizes: Any) -> mg.Routine:
    settings, where = cfg.learner, device(cfg)
    optimizer = build(settings.optimizer, _convert_="all")
    matrices = settings.decay is Decay.matrices

    def make_learner(schedule: mg.Schedule) -> mg.Learner:
        model = build(cfg.model, **sizes)
        decay = _is_matrix if matrices else None
        learner = kind(
            model,
            optimizer,
            schedule,
            normalize=settings.normalize.value,
            decay=decay,
            compiled=settings.compiled,
        )
        return learner.to(device=where, dtype=torch.float64 if cfg.trainer.precision == "64-true" else torch.float32)

    return mg.Routine(
        make_learner,
        schedule=functools.partial(_schedule, settings),
        batch_size=settings.batch_size,
        epochs=settings.epochs,
        steps=settings.steps,
    )


def _is_matrix(_name: str, shape: torch.Size) -> bool:  # no lambda: learners go to other processes
    return len(shape) > 1


def _schedule(settings: Any, steps: int) -> mg.Schedule:
    rate = settings.learning_rate
    match settings.schedule:
        case ScheduleName.constant:
            return mg.Constant(rate)
        case ScheduleName.halved:
            return mg.Halved(rate, steps)
        case ScheduleName.cosine:
            return mg.Cosine(rate, steps)
        case ScheduleName.one_cycle:
            return mg.OneCycle(rate, steps, warmup=settings.warmup)
        case _:
            return mg.WarmupDecay(rate, steps, warmup=math.floor(settings.warmup * steps))


class TrainerFit:
    """Trains and replays with Lightning's Trainer and the Metagradient callback; says once which plan runs."""

    def __init__(self, cfg: DictConfig, progress: Progress) -> None:
        self.cfg, self.progress = cfg, progress
        self.told = False
        self.checked = cfg.replay.check is None
        if cfg.replay.check == "fd" and cfg.get("method", {}).get("replay_from"):
            raise UserError("replay.check=fd needs the exact metagradient: set method.replay_from=0")
        if cfg.replay.check not in (None, "fd"):
            raise UserError(f"replay.check must be fd or null, not '{cfg.replay.check}'")

    def __call__(
        self,
        learner: mg.Learner,
        batches: mg.Batches,
        metaparameters: Sequence[mg.Metaparameter],
        objective: mg.Objective,
    ) -> mg.Metagradients:
        replay = self.cfg.replay
        callback = mg.Metagradient(
            metaparameters,
            objective,
            checkpoints=replay.checkpoints,
            memory=replay.memory,
            storage=mg.make_storage(replay.storage, replay.folder),
            progress=self.progress.callback(),
        )
        initial = mg.initial_state(learner)
        trainer = lightning.Trainer(
            max_epochs=1,
            callbacks=[callback],
            accelerator="gpu" if device(self.cfg).type == "cuda" else "cpu",
            devices=1,
            precision=self.cfg.trainer.precision,
            deterministic=self.cfg.trainer.deterministic,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(learner, batches)
        assert callback.result is not None
        if not self.told:
            self.told = True
            log.info("%s", describe(callback.result.plan))
        learner.to(device(self.cfg))
        if not self.checked:
            self.checked = True
            self._check(learner, initial, batches, metaparameters, objective, callback.result)
        gc.collect()  # a Trainer is full of reference cycles, and the learner and its states hang on them
        return callback.result

    def _check(
        self,
        learner: mg.Learner,
        initial: mg.TrainState,
        batches: mg.Batches,
        metaparameters: Sequence[mg.Metaparameter],
        objective: mg.Objective,
        result: mg.Metagradients,
    ) -> None:
        """`replay.check=fd`: a few coordinates of this metagradient against central differences in float64."""
        learner.adopt(initial)
        rows = mg.finite_differences(
            learner, batches, metaparameters, objective, result, progress=self.progress.callback()
        )
        learner.adopt(result.state)
        print_table(
            "metagradient against central differences (float64)",
            ["metaparameter", "index", "replay", "replay float64", "central difference", "relative error"],
            [[r.name, r.index, r.replay, r.replay64, r.difference, f"{r.relative_error:.1e}"] for r in rows],
        )

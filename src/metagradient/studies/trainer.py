"""Lightning's Trainer as the experiments use it: one pass over a run's batches, and the replay after it."""

import gc
import logging
import signal
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning
import torch
from hydra.utils import instantiate
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from omegaconf import DictConfig

import metagradient as mg
from metagradient.errors import UserError
from metagradient.replay.metagradients import describe
from metagradient.replay.saving import folder_of
from metagradient.reporting import Progress, print_table
from metagradient.training.modules.products import PRODUCTS, set_products

log = logging.getLogger(__name__)


def device(cfg: DictConfig) -> torch.device:
    """Where models are trained."""
    cuda = torch.cuda.is_available()
    if cfg.trainer.accelerator in ("gpu", "cuda") and not cuda:
        raise UserError(f"trainer.accelerator={cfg.trainer.accelerator} but torch sees no GPU: set trainer=cpu")
    return torch.device("cuda" if cuda and cfg.trainer.accelerator in ("gpu", "cuda", "auto") else "cpu")


_DECIDED = {
    "max_epochs": "the plan holds the epochs: set learner.epochs or learner.steps",
    "max_steps": "the plan holds the steps: set learner.steps",
    "strategy": "several devices share the batches of a run: set trainer.devices",
    "callbacks": "the experiment has its own",
    "logger": "choose by the group logger: logger=wandb, tensorboard, csv or none",
    "enable_checkpointing": "runs are saved by the experiment: see resume",
    "enable_progress_bar": "the experiment shows its own",
    "enable_model_summary": "the experiment trains many models",
    "gradient_clip_val": "the optimizer is part of the differentiated step: set learner.clip_norm (or learner.clip_value)",
    "accumulate_grad_batches": "the optimizer is part of the differentiated step: set learner.batch_size, and learner.micro_batch",
    "limit_train_batches": "the plan holds the steps: set learner.steps",
    "overfit_batches": "the plan holds the steps: set learner.steps",
    "fast_dev_run": "use debug=fast",
}
"""Arguments of the Trainer that the run decides, and what to do instead."""


def make_trainer(cfg: DictConfig, *callbacks: lightning.Callback) -> lightning.Trainer:
    """Lightning's Trainer of `cfg.trainer`, for one pass over the batches of a run."""
    settings = {str(name): value for name, value in cfg.trainer.items() if name not in ("threads", "matmul")}
    settings["accelerator"] = "gpu" if device(cfg).type == "cuda" else "cpu"
    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    fixed: dict[str, Any] = dict.fromkeys(quiet, False) | {"max_epochs": 1}
    if asked_for(cfg) > 1:  # they are there already, which this says to Lightning
        fixed |= {"strategy": mg.SharedBatches(), "plugins": [LightningEnvironment()]}
        callbacks = (_Ended(), *callbacks)
    trainer: lightning.Trainer = instantiate(settings, callbacks=list(callbacks), **fixed)
    return trainer


class _Ended(lightning.Callback):
    """SIGTERM ends a process that shares a training as it ends any other.

    Lightning's own handler first tells the other processes by a collective call, for which they wait in vain where they are in
    another one, or have had no signal.
    """

    def __init__(self) -> None:
        self._handler = signal.getsignal(signal.SIGTERM)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if threading.current_thread() is threading.main_thread() and self._handler is not None:
            signal.signal(signal.SIGTERM, self._handler)


SHARED = ("selection", "poisoning", "schedule", "smoothness", "attribution")
"""Experiments that run in several processes."""


def asked_for(cfg: DictConfig) -> int:
    """The number of processes of `trainer.devices` and `trainer.num_nodes`.

    Raises:
        UserError: it is no number.
    """
    total = 1
    for name in ("devices", "num_nodes"):
        count = (cfg.get("trainer") or {}).get(name, 1)
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise UserError(f"trainer.{name} must be a whole number from 1, not '{count}': set trainer.{name}=1")
        total *= count
    return total


def processes(cfg: DictConfig, experiment: str) -> int:
    """`asked_for`, of an experiment that runs in so many.

    Raises:
        UserError: it does not; or there are fewer GPUs.
    """
    count = asked_for(cfg)
    if count > 1 and experiment not in SHARED:
        raise UserError(
            f"{experiment} runs on one device so far: set trainer.devices=1 (on several: {', '.join(SHARED)}; and each job of a "
            "sweep is a run of its own)"
        )
    if count == 1:
        return 1
    there, local = torch.cuda.device_count(), cfg.trainer.get("devices", 1)
    if device(cfg).type == "cuda" and local > there:
        raise UserError(f"trainer.devices={local}, but torch sees {there} GPUs: set trainer.devices={there}")
    return count


def check(cfg: DictConfig) -> None:
    """Refuse what the run decides by itself, and precisions in which gradients are wrong.

    Raises:
        UserError: names the setting, the reason, and what to do instead.
    """
    if cfg.trainer.accelerator not in ("cpu", "gpu", "cuda", "auto"):
        raise UserError(f"trainer.accelerator must be cpu, gpu, cuda or auto, not '{cfg.trainer.accelerator}'")
    for name, reason in _DECIDED.items():
        if name in cfg.trainer:
            raise UserError(f"trainer.{name}={cfg.trainer[name]} cannot be set: {reason}")
    if cfg.trainer.precision not in ("32-true", "64-true"):
        raise UserError(
            f"trainer.precision={cfg.trainer.precision} is refused: metagradients and gradients of examples in low precision "
            "are wrong without warning; use trainer.precision=32-true or 64-true"
        )
    matmul = cfg.trainer.get("matmul", "highest")
    if matmul not in PRODUCTS:
        raise UserError(
            f"trainer.matmul must be {', '.join(PRODUCTS[:-1])} or {PRODUCTS[-1]}, not '{matmul}': set trainer.matmul=highest"
        )


def multiply(cfg: DictConfig) -> None:
    """Products of float32 matrices as `trainer.matmul` says, for the process; it is told where that changes nothing."""
    matmul, on_cpu = cfg.trainer.get("matmul", "highest"), device(cfg).type == "cpu"
    if matmul != "highest" and (on_cpu or cfg.trainer.precision == "64-true"):
        where = "on the CPU, whose products stay float32" if on_cpu else "with trainer.precision=64-true"
        log.warning("trainer.matmul=%s changes nothing %s", matmul, where)
        matmul = "highest"
    set_products(matmul)


class TrainerFit:
    """Trains and replays with Lightning's Trainer and the Metagradient callback; says once which plan runs.

    Replays save their position in `folder`, each in a folder of its own, where `replay.save_every` says so.
    """

    def __init__(self, cfg: DictConfig, progress: Progress, folder: Path | None = None) -> None:
        self.cfg, self.progress = cfg, progress
        self.folder = None if cfg.replay.save_every is None else folder
        self.told = False
        self.check = cfg.replay.check
        if cfg.replay.check is not None and cfg.get("method", {}).get("replay_from"):
            raise UserError(f"replay.check={cfg.replay.check} needs the exact metagradient: set method.replay_from=0")
        if cfg.replay.check not in (None, "fd", "line"):
            raise UserError(f"replay.check must be fd, line or null, not '{cfg.replay.check}'")

    def __call__(
        self,
        learner: mg.Learner,
        batches: mg.Batches,
        metaparameters: Sequence[mg.Metaparameter],
        objective: mg.Objective,
    ) -> mg.Metagradients:
        replay = self.cfg.replay
        learner.configure_for(batches)
        save_to = None if self.folder is None else folder_of(self.folder, learner, batches, metaparameters, objective)
        callback = mg.Metagradient(
            metaparameters,
            objective,
            checkpoints=replay.checkpoints,
            memory=replay.memory,
            storage=mg.make_storage(replay.storage, replay.folder),
            save_to=save_to,
            save_every=replay.save_every or 0.0,
            progress=self.progress.callback(),
        )
        initial = mg.initial_state(learner)
        make_trainer(self.cfg, callback).fit(learner, batches)
        assert callback.result is not None
        if not self.told:
            self.told = True
            log.info("%s", describe(callback.result.plan))
        learner.to(device(self.cfg))
        if self.check is not None:
            learner.adopt(initial)
            checked = self._differences if self.check == "fd" else self._line
            result = checked(learner, batches, metaparameters, objective, callback.result)
            learner.adopt(result.state)
            callback.result = result
        gc.collect()  # a Trainer is full of reference cycles, and the learner and its states hang on them
        return callback.result

    def _differences(
        self,
        learner: mg.Learner,
        batches: mg.Batches,
        metaparameters: Sequence[mg.Metaparameter],
        objective: mg.Objective,
        result: mg.Metagradients,
    ) -> mg.Metagradients:
        """`replay.check=fd`: a few coordinates of the first metagradient against central differences in float64."""
        self.check = None
        rows = mg.finite_differences(
            learner, batches, metaparameters, objective, result, progress=self.progress.callback()
        )
        print_table(
            "metagradient against central differences (float64)",
            ["metaparameter", "index", "replay", "replay float64", "central difference", "relative error"],
            [[r.name, r.index, r.replay, r.replay64, r.difference, f"{r.relative_error:.1e}"] for r in rows],
        )
        return result

    def _line(
        self,
        learner: mg.Learner,
        batches: mg.Batches,
        metaparameters: Sequence[mg.Metaparameter],
        objective: mg.Objective,
        result: mg.Metagradients,
    ) -> mg.Metagradients:
        """`replay.check=line`: how far each metagradient can be trusted, by one more run along it, which it then has cost."""
        found = mg.linearity(learner, batches, metaparameters, objective, result, progress=self.progress.callback())
        if found.predicted == 0:
            log.warning("the metagradient is 0: nothing is predicted, and nothing to be trusted")
        else:
            log.info(
                "%.3g of |z| down the gradient: %.3g predicted, %.3g found; the linear prediction is off by a tenth at about %.2g of |z|",
                found.size, found.predicted, found.actual, found.reach,
            )  # fmt: skip
        return replace(result, cost=result.cost + 1)

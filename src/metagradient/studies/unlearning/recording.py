"""The run that is asked to forget: trained with every step kept, or found where it was kept."""

import logging
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import Tensor

import metagradient as mg
from metagradient.data import Splits
from metagradient.errors import UserError
from metagradient.replay.storage import Storage
from metagradient.reporting import Progress
from metagradient.streams import Unlearning
from metagradient.studies.trainer import device, make_trainer
from metagradient.training.random import fold_in
from metagradient.unlearning import RecordedRun, RecordRun, stored

log = logging.getLogger(__name__)

DTYPES = {None: None, "float32": torch.float32, "float64": torch.float64}


def storage(cfg: DictConfig) -> Storage:
    """A place for one history."""
    return mg.make_storage(cfg.history.storage, cfg.history.folder)


def recorded(cfg: DictConfig, routine: mg.Routine, splits: Splits, present: Tensor, progress: Progress) -> RecordedRun:
    """The run: trained with Lightning's Trainer, every step kept; or found in `run_folder`, where it is kept from then
    on."""
    if cfg.history.dtype not in DTYPES:
        raise UserError(f"history.dtype must be float32, float64 or null, not '{cfg.history.dtype}'")
    batches = routine.batches(splits.train, fold_in(cfg.seed, Unlearning.RUN))
    learner = routine.learner(fold_in(cfg.seed, Unlearning.RUN), len(batches))
    folder = None if cfg.run_folder is None else Path(cfg.run_folder) / "start"
    if folder is not None and stored.exists(folder):
        run, _, _ = stored.load(folder, learner, batches, storage(cfg))
        if not torch.equal(run.present, present):
            raise UserError(
                f"the run stored in {folder} was trained on other rows: give its add.* and seed, or another run_folder"
            )
        log.info("the run was found in %s", folder)
        return run
    callback = RecordRun(
        batches, present, storage=storage(cfg), dtype=DTYPES[cfg.history.dtype], progress=progress.callback("training")
    )
    make_trainer(cfg, callback).fit(learner, callback.batches)
    learner.to(device(cfg))
    assert callback.run is not None
    if folder is not None:
        stored.save(callback.run, folder)
    return callback.run

"""A finished run's task, built again from its config.yaml, to check its numbers by other means than the experiment's."""

from pathlib import Path
from typing import NamedTuple

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from torch.nn.functional import cross_entropy

import metagradient as mg
from metagradient.data import Splits
from metagradient.schema import LearnerConfig
from metagradient.studies import routines, setup


class Task(NamedTuple):
    cfg: DictConfig
    splits: Splits
    routine: mg.Routine


def task_of(run: Path) -> Task:
    cfg = OmegaConf.load(run / "config.yaml")
    assert isinstance(cfg, DictConfig)
    cfg.learner = OmegaConf.merge(OmegaConf.structured(LearnerConfig), cfg.learner)  # names become enums again
    splits = setup.build(cfg.data)
    return Task(cfg, splits, routines.classifier_routine(cfg, splits))


def logits(trained: tuple[mg.Learner, mg.TrainState], examples: dict[str, Tensor]) -> Tensor:
    learner, state = trained
    with torch.no_grad(), learner.evaluating(state):
        return learner(examples["x"])


def accuracy(trained: tuple[mg.Learner, mg.TrainState], examples: dict[str, Tensor]) -> float:
    return float((logits(trained, examples).argmax(1) == examples["y"]).double().mean())


def losses(trained: tuple[mg.Learner, mg.TrainState], examples: dict[str, Tensor]) -> Tensor:
    return cross_entropy(logits(trained, examples), examples["y"], reduction="none")

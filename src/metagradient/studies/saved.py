"""What a run left behind, read back: `mg.load(run directory)`."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file, save_file
from torch import Tensor

import metagradient as mg
from metagradient.data import TextSplits
from metagradient.errors import UserError
from metagradient.models import load_weights
from metagradient.reporting import Record
from metagradient.studies import routines, setup
from metagradient.training.state import TrainState

__all__ = ["Saved", "load"]

MODEL = "model.safetensors"


@dataclass(frozen=True)
class Saved:
    """A run directory.

    Attributes:
        directory: where it lies.
        config: the resolved configuration, from which `data()` and `learner()` are made anew.
        metrics: metrics.json; {} while there is none.
    """

    directory: Path
    config: DictConfig
    metrics: dict[str, Any]

    @property
    def artifacts(self) -> dict[str, Path]:
        """The run's artifacts by file name."""
        files = sorted((self.directory / "artifacts").glob("*"))
        return {file.name: file for file in files if file.is_file()}

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of a safetensors artifact: `tensors("scores.safetensors")["scores"]`."""
        if name not in self.artifacts or not name.endswith(".safetensors"):
            there = ", ".join(n for n in self.artifacts if n.endswith(".safetensors")) or "none"
            raise UserError(f"{self.directory} has no tensors '{name}'; there are: {there}")
        return load_file(self.artifacts[name])

    def data(self) -> Any:
        """The data of the run, split as the run had them."""
        return setup.build(self.config.data)

    def learner(self) -> mg.Learner:
        """The trained model of a run that saved one, in a learner of the run's settings and in evaluation mode."""
        if MODEL not in self.artifacts:
            raise UserError(
                f"{self.directory} saved no model: selection, attribution and unlearning save artifacts/{MODEL}"
            )
        splits = self.data()
        text = isinstance(splits, TextSplits)
        config = setup.variant(
            self.config, {"checkpoint": None}
        )  # its own weights take the place of what it began with
        routine = (routines.language_routine if text else routines.classifier_routine)(config, splits)
        learner = routine.learner(int(self.config.seed), len(routine.batches(splits.train, 0)))
        load_weights(learner, self.artifacts[MODEL])
        return learner.eval()


def load(directory: str | Path) -> Saved:
    """What a run left in its directory.

    Raises:
        UserError: no run directory.
    """
    directory = Path(directory).expanduser()
    if not (directory / "config.yaml").is_file():
        raise UserError(f"{directory} is no run directory: it has no config.yaml")
    config = OmegaConf.load(directory / "config.yaml")
    assert isinstance(config, DictConfig)
    metrics = directory / "metrics.json"
    return Saved(directory, config, json.loads(metrics.read_text(encoding="utf-8")) if metrics.is_file() else {})


def save_model(record: Record, learner: mg.Learner, state: TrainState) -> None:
    """model.safetensors: the model at a state, under the names of the learner's own state dict; the learner stays as it is."""
    model = copy.deepcopy(learner).adopt(state).state_dict()
    tensors = {name: x.detach().cpu().clone(memory_format=torch.contiguous_format) for name, x in model.items()}
    save_file(tensors, record.artifact_path(MODEL))  # clones: tied weights share memory, which the format refuses

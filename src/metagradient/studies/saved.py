"""What a run left behind, read back: `mg.load(run directory)`."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

import metagradient as mg
from metagradient import training
from metagradient.data import PairSplits, TextSplits
from metagradient.errors import UserError
from metagradient.models.weights import load_weights, read_weights, save_weights
from metagradient.reporting import Record
from metagradient.reporting.runs.foreign import metrics_of, settings_of
from metagradient.reporting.runs.sums import check_sums
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
        trust: whether classes and functions of others, which the configuration names, may be called.
    """

    directory: Path
    config: DictConfig
    metrics: dict[str, Any]
    trust: bool = False

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
        return read_weights(self.artifacts[name])

    def data(self) -> Any:
        """The data of the run, split as the run had them: what its configuration names is called.

        Raises:
            UserError: it names anything but ours, and the folder is not trusted.
        """
        self._check(self.config.data)
        return setup.data(self.config)

    def _check(self, node: Any) -> None:
        plain = OmegaConf.to_container(node, resolve=False) if OmegaConf.is_config(node) else node
        foreign = sorted({*_targets(plain)} - _ours() - {"None"})
        if foreign and not self.trust:
            raise UserError(
                f"the configuration of {self.directory} names {', '.join(foreign)}: if you trust it, mg.load(..., trust=True)"
            )

    def learner(self) -> mg.Learner:
        """The trained model of a run that saved one, in a learner of the run's settings and in evaluation mode.

        What the configuration names is called.

        Raises:
            UserError: no model was saved; the configuration names anything but ours, and the folder is not trusted.
        """
        self._check(self.config)
        if MODEL not in self.artifacts:
            raise UserError(
                f"{self.directory} saved no model: selection, attribution and unlearning save artifacts/{MODEL}"
            )
        splits = self.data()
        config = setup.variant(
            self.config, {"checkpoint": None}
        )  # its own weights take the place of what it began with
        kinds: dict[type, Any] = {TextSplits: routines.language_routine, PairSplits: routines.pairs_routine}
        routine = kinds.get(type(splits), routines.classifier_routine)(config, splits)
        learner = routine.learner(int(self.config.seed), len(routine.batches(splits.train, 0)))
        load_weights(learner, self.artifacts[MODEL])
        return learner.eval()


def load(directory: str | Path, *, trust: bool = False) -> Saved:
    """What a run left in its directory. Loading executes nothing; `data()` and `learner()` call what the configuration names.

    Args:
        directory: of the run.
        trust: also call classes and functions that our own configuration does not name: a model of one's own. With a folder
            from somebody else that is as much as running their program.

    Raises:
        UserError: no run directory, or a damaged one.
    """
    directory = Path(directory).expanduser()
    if not (directory / "config.yaml").is_file():
        raise UserError(f"{directory} is no run directory: it has no config.yaml")
    check_sums(directory, ("config.yaml", "metrics.json"))
    config = OmegaConf.create(settings_of(directory / "config.yaml"))
    return Saved(directory, config, metrics_of(directory / "metrics.json"), trust)


@cache
def _ours() -> frozenset[str]:
    """Every `_target_` that the configuration of this package names, and the classes of `training`, its optimizers and schedules.

    None of them runs a program or writes a file.
    """
    found = {f"metagradient.training.{name}" for name in training.__all__ if isinstance(getattr(training, name), type)}
    todo = [files("metagradient.conf")]
    while todo:
        place = todo.pop()
        if place.is_dir():
            todo += place.iterdir()
        elif place.name.endswith(".yaml"):
            found |= {*re.findall(r"\b_target_: *([\w.]+)", place.read_text(encoding="utf-8"))}
    return frozenset(name for name in found if name.startswith(("metagradient.", "lightning.")))


def _targets(node: Any) -> Iterator[str]:
    """What building `node` would call; text that is still to be worked out, which may become anything, counts as well."""
    if isinstance(node, str) and "${" in node:
        yield node
    elif isinstance(node, dict):
        if "_target_" in node:
            yield str(node["_target_"])
        for value in node.values():
            yield from _targets(value)
    elif isinstance(node, list):
        for value in node:
            yield from _targets(value)


def save_model(record: Record, learner: mg.Learner, state: TrainState) -> None:
    """model.safetensors: the model at a state, under the names of the learner's own state dict; the learner stays as it is."""
    model = copy.deepcopy(learner).adopt(state).state_dict()
    tensors = {name: x.detach().cpu().clone(memory_format=torch.contiguous_format) for name, x in model.items()}
    save_weights(tensors, record.artifact_path(MODEL))  # clones: tied weights share memory, which the format refuses

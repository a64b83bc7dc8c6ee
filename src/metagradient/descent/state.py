"""The whole state of a descent in one small object, saved atomically and with a checksum."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from metagradient.errors import UserError
from metagradient.files import digest, named_tensors, replacing

log = logging.getLogger(__name__)

_NUMBERS = (
    "metastep", "best_score", "best_metastep", "accepted_objective", "scale", "cost", "history", "identity", "averaged",
)  # fmt: skip


@dataclass
class DescentState:
    """The whole state of a descent between two metasteps.

    Attributes:
        x: what is moved.
        metastep: how many metasteps are done.
        memory: the update rule's.
        best_x: chosen so far on held-out data; best_score and best_metastep likewise.
        accepted_x: where a rejected metastep goes back to; accepted_memory likewise.
        mean_x: the mean of the `averaged` last accepted iterates.
        identity: the descent's settings; only the same may go on.
    """

    x: Tensor
    metastep: int = 0
    memory: dict[str, Tensor] = field(default_factory=dict)
    best_x: Tensor | None = None
    best_score: float = float("-inf")
    best_metastep: int = 0
    accepted_x: Tensor | None = None
    mean_x: Tensor | None = None
    averaged: int = 0
    accepted_objective: float = float("inf")
    accepted_memory: dict[str, Tensor] = field(default_factory=dict)
    scale: float = 1.0
    cost: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    identity: str = ""

    def offer(self, score: float) -> None:
        """Choose the current x if it scores higher on held-out data than any before."""
        if score > self.best_score:
            self.best_x, self.best_score, self.best_metastep = self.x.clone(), score, self.metastep

    def average(self) -> None:
        """Count the current x into the mean of the iterates."""
        self.averaged += 1
        self.mean_x = self.x.clone() if self.mean_x is None else self.mean_x + (self.x - self.mean_x) / self.averaged

    def save(self, path: Path) -> None:
        """Write to `path` with a checksum; the save before it is kept beside, for the case that this one is damaged.

        A reader, or a kill at any moment, finds the old state or the new one, never half of one.
        """
        tensors = {"x": self.x, **{f"memory.{k}": v for k, v in self.memory.items()}}
        tensors |= {f"accepted_memory.{k}": v for k, v in self.accepted_memory.items()}
        for name in ("best_x", "accepted_x", "mean_x"):
            if getattr(self, name) is not None:
                tensors[name] = getattr(self, name)
        tensors = {k: v.detach().cpu().clone().contiguous() for k, v in tensors.items()}
        rest = json.dumps({name: getattr(self, name) for name in _NUMBERS})
        with replacing(path, durable=True) as draft:
            save_file(tensors, draft, metadata={"state": rest, "sha256": _digest(tensors, rest)})
            if path.exists():
                os.replace(path, _before(path))

    @staticmethod
    def saved_at(path: Path) -> bool:
        """Whether there is a save to go on from."""
        return path.exists() or _before(path).exists()

    @staticmethod
    def load(path: Path) -> DescentState:
        """The state saved at `path`; where that file is damaged or missing, the one before it, with a warning."""
        try:
            return _read(path)
        except Exception as error:
            if not _before(path).exists():
                raise UserError(
                    f"the saved descent {path} cannot be read ({error}): start anew with resume=null"
                ) from error
            log.warning("%s cannot be read (%s): going on from the save before it", path, error)
        try:
            return _read(_before(path))
        except Exception as error:
            raise UserError(
                f"{path} and the save before it cannot be read ({error}): start anew with resume=null"
            ) from error


def _read(path: Path) -> DescentState:
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata() or {}
    if metadata.get("sha256") != _digest(tensors, metadata["state"]):
        raise ValueError("its checksum is wrong")
    rest = json.loads(metadata["state"])
    for name in ("memory", "accepted_memory"):
        rest[name] = {k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")}
    return DescentState(**{k: v for k, v in tensors.items() if "." not in k}, **rest)


def _digest(tensors: dict[str, Tensor], rest: str) -> str:
    return digest(rest, *named_tensors(sorted(tensors.items())))


def _before(path: Path) -> Path:
    return path.with_suffix(".before")

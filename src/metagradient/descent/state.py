"""The whole state of a descent in one small object that is saved atomically."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from metagradient.errors import UserError

_NUMBERS = (
    "metastep", "best_score", "best_metastep", "accepted_objective", "scale", "cost", "history", "identity", "averaged",
)  # fmt: skip


@dataclass
class DescentState:
    """metastep: how many metasteps are done. memory: the update rule's. best_*: chosen so far on held-out data;
    mean_x: of the `averaged` last accepted iterates; accepted_*: where a rejected metastep goes back to. identity: the descent's settings; only the same may go on."""

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
        """Write to `path`; a reader sees the old file or the new one, never half of it."""
        tensors = {"x": self.x, **{f"memory.{k}": v for k, v in self.memory.items()}}
        tensors |= {f"accepted_memory.{k}": v for k, v in self.accepted_memory.items()}
        for name in ("best_x", "accepted_x", "mean_x"):
            if getattr(self, name) is not None:
                tensors[name] = getattr(self, name)
        rest: dict[str, Any] = {name: getattr(self, name) for name in _NUMBERS}
        partial = path.with_suffix(".partial")
        save_file(
            {k: v.clone().contiguous() for k, v in tensors.items()}, partial, metadata={"state": json.dumps(rest)}
        )
        os.replace(partial, path)

    @staticmethod
    def load(path: Path) -> DescentState:
        """The state saved at `path`."""
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                rest = json.loads((file.metadata() or {})["state"])
        except Exception as error:
            raise UserError(f"the saved descent {path} cannot be read ({error})") from error
        for name in ("memory", "accepted_memory"):
            rest[name] = {k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")}
        return DescentState(**{k: v for k, v in tensors.items() if "." not in k}, **rest)

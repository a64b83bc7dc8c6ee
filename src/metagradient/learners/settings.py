"""What a learner is told about its step besides the optimizer and the learning rate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from metagradient.errors import UserError


@dataclass(frozen=True)
class StepSettings:
    """The keyword arguments of `Learner`, checked; see there."""

    normalize: Literal["batch", "kept"] = "batch"
    decay: Callable[[str, torch.Size], bool] | None = None
    clip_norm: float | None = None
    clip_value: float | None = None
    average: float | None = None
    micro_batch: int | None = None
    compiled: bool = False

    def __post_init__(self) -> None:
        if self.normalize not in ("batch", "kept"):
            raise UserError(f"normalize must be 'batch' or 'kept', not '{self.normalize}': set learner.normalize=batch")
        for name, bound in {"clip_norm": self.clip_norm, "clip_value": self.clip_value}.items():
            if bound is not None and not bound > 0:
                raise UserError(f"{name} must be > 0, or None for no clipping, not {bound}: set learner.{name}=1.0")
        if self.average is not None and not 0 <= self.average < 1:
            raise UserError(f"average is a decay in [0, 1), not {self.average}: set learner.average=0.99")
        if self.micro_batch is not None and self.micro_batch < 1:
            raise UserError(
                f"micro_batch must be an integer >= 1, or None, not {self.micro_batch}: set learner.micro_batch=null"
            )
        if self.compiled and self.micro_batch is not None:
            raise UserError("compiled steps run whole batches: set learner.compiled=false, or learner.micro_batch=null")

"""What a step and a plan of replay take: bytes and seconds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from metagradient.replay.plans import Plan

_FRESH = 256 * 2**20
"""Bytes of a taped step from which clearing as many fresh pages takes longer than running the step again, about."""

_WORKING_STATES = 3
"""States alive besides checkpoints and tape: the current one, the expected one, the cotangent."""

_ON_THE_WAY = 4
"""States on their way to or from a disk: those that wait to be written, the one that is written, the one that is read ahead."""


class Prediction(NamedTuple):
    """What a replay is to take, by one plain and one taped step.

    Attributes:
        peak: bytes on top of the model and the data.
        seconds: of training and replay together.

    An objective of one's own is left out, `mean_loss` is not; of several objectives it is what one takes.
    """

    peak: int
    seconds: float


@dataclass(frozen=True)
class Footprint:
    """Bytes of one state, and of one taped step on top; `processes` share what is stored of a state.

    Attributes:
        passing: bytes that come and go within a step or its pull, at the most, besides what stays.
        beside: bytes that kernels and the allocator take beside tensors, as the resident size of the process tells.
        plain_seconds: of one plain step.
        taped_seconds: of one taped step and its pull.
        once_seconds: of what is done once: in one step alone by some metaparameters, and by the objective.
    """

    state: int
    taped_step: int
    on_cpu: bool = True
    processes: int = 1
    passing: int = 0
    plain_seconds: float = 0.0
    taped_seconds: float = 0.0
    once_seconds: float = 0.0
    beside: int = 0

    @property
    def stored(self) -> int:
        """Bytes of a stored state in each process."""
        return -(-self.state // self.processes)

    @property
    def one_at_a_time(self) -> bool:
        """Whether steps are dearer taped together than run again: a tape grows by fresh pages, which the kernel must clear."""
        return self.on_cpu and self.taped_step > _FRESH

    def peak(self, plan: Plan, stored_in_memory: bool = True) -> int:
        """Peak of a plan in bytes of tensors, on top of the model and the data; `beside`, which is never twice the same, is not in it."""
        slots = plan.slots if stored_in_memory else 0
        return slots * self.stored + self.working(stored_in_memory) + plan.longest_segment * self.taped_step

    def working(self, stored_in_memory: bool = True) -> int:
        """Bytes that are alive besides checkpoints and tape."""
        on_the_way = _ON_THE_WAY * self.stored * (not stored_in_memory)
        return _WORKING_STATES * self.state + self.passing + on_the_way

    def seconds(self, plan: Plan, before: int = 0) -> float:
        """Predicted seconds of a replay whose plan follows `before` plain steps."""
        plain = before + plan.advanced_steps
        return plain * self.plain_seconds + plan.steps * self.taped_seconds + self.once_seconds

"""The forward run as the replay needs it: checkpoints, fingerprints, and the last segment on tape."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from metagradient.learners.learner import Learner
from metagradient.replay.plans import Plan
from metagradient.replay.storage import Storage
from metagradient.training.batches import Batches
from metagradient.training.metaparameters import Metaparameter
from metagradient.training.run import cast
from metagradient.training.state import TrainState
from metagradient.training.steps import step


def fingerprint(state: TrainState) -> Tensor:
    """One integer for each tensor of a state, equal for equal bits: the wrapping sum of its words."""
    words = {4: torch.int32, 8: torch.int64, 2: torch.int16}
    return torch.stack([x.detach().view(words[x.element_size()]).sum(dtype=torch.int64) for x in state.tensors()])


class ReplayMismatch(RuntimeError):
    """A recomputed state differs from the recorded one: the run is not a function of (state, batch, step)."""


class Recording:
    """A run of T steps being recorded under a plan.

    The plan covers steps `first .. T - 1`: what lies before the first step that reads a metaparameter is run plainly
    and never replayed. The driver (the bare loop or the Lightning callback) calls `enter(t, state)` before each step,
    runs the step with `z` and `taping`, and `finish(state)` after the last.
    """

    def __init__(
        self,
        learner: Learner,
        batches: Batches,
        z: Sequence[Metaparameter],
        plan: Plan,
        first: int,
        storage: Storage,
        like: Tensor,
    ) -> None:
        self.learner, self.batches, self.plan, self.first, self.storage = (
            learner,
            batches,
            plan,
            first,
            storage,
        )
        self.leaves = tuple(m.leaf(like) for m in z)
        self.plain = tuple(m.with_value(m.value.detach()) for m in self.leaves)
        self.taping = False
        self.fingerprints: dict[int, Tensor] = {}
        self._boundaries = {first + a for a, _ in plan.segments}
        self.tape_start: TrainState | None = None
        self.end: TrainState | None = None

    @property
    def z(self) -> Sequence[Metaparameter]:
        """The metaparameters for the next step: differentiable while taping."""
        return self.leaves if self.taping else self.plain

    def enter(self, t: int, state: TrainState) -> TrainState:
        """Before step t: checkpoint the state where the plan says so, and start the tape where it begins."""
        if t in self._boundaries:
            self.fingerprints[t] = fingerprint(state)
        if t - self.first in self.plan.saves_in_fit:
            self.storage.save(t, state)
        if t == self.first + self.plan.tape_from:
            self.taping = True
            self.tape_start = state = state.leaf()
        return state

    def finish(self, state: TrainState) -> None:
        """After the last step."""
        self.end, self.taping = state, False

    def drop_tape(self) -> None:
        """Let go of the graph of the last segment once it has been pulled."""
        if self.end is not None:
            self.end = self.end.detach()

    def advance(self, state: TrainState, start: int, stop: int) -> TrainState:
        """Recompute plain steps, comparing with the recorded bits at every segment boundary passed."""
        for t in range(start, stop):
            state, _, _ = step(self.learner, state, cast(self.batches(t), state), t, self.plain)
            recorded = self.fingerprints.get(t + 1)
            if recorded is not None:
                self._compare(state, recorded, start, t + 1)
        return state

    def tape(self, start_state: TrainState, start: int, stop: int) -> tuple[TrainState, TrainState]:
        """Run steps start .. stop - 1 with the graph kept; the segment's first state (leaves) and last state."""
        first = state = start_state.leaf()
        for t in range(start, stop):
            state, _, _ = step(self.learner, state, cast(self.batches(t), state), t, self.leaves, tape=True)
        return first, state

    def _compare(self, state: TrainState, recorded: Tensor, start: int, t: int) -> None:
        wrong = (fingerprint(state) != recorded).nonzero().flatten().tolist()
        if wrong:
            names = ", ".join(state.names()[i] for i in wrong)
            raise ReplayMismatch(
                f"replaying steps {start}..{t - 1} did not give the recorded state of step {t} ({names} differ): something in "
                "the step is not a function of (state, batch, step). Usual causes: randomness outside "
                "metagradient's seeded modules, a module that changes itself while it runs, non-deterministic kernels "
                "(set trainer.deterministic=true)."
            )

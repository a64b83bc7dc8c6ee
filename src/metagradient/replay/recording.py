"""The forward run as the replay needs it: checkpoints, fingerprints, and the last segment on tape."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from metagradient.learners.learner import Learner
from metagradient.replay.plans import Plan
from metagradient.replay.saving import Backward, Position, Saving
from metagradient.replay.storage import Storage
from metagradient.replay.trial import Prediction
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

    Attributes:
        start: the first step that is left to run: not 0 where a saved replay goes on, and T where its backward pass does.
        backward: the backward pass that goes on; None where there is none yet.
        predicted: what it is to take; None where nobody said.
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
        saving: Saving | None = None,
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
        self.predicted: Prediction | None = None
        self.saving, found = saving, None if saving is None else saving.found
        self.start = 0 if found is None else found.t
        self.backward = None if found is None else found.backward
        self.fingerprints: dict[int, Tensor] = {} if found is None else found.fingerprints
        self._boundaries = {first + a for a, _ in plan.segments}
        self.tape_start: TrainState | None = None
        self.end: TrainState | None = None

    @property
    def z(self) -> Sequence[Metaparameter]:
        """The metaparameters for the next step: differentiable while taping."""
        return self.leaves if self.taping else self.plain

    def enter(self, t: int, state: TrainState) -> TrainState:
        """Before step t: checkpoint the state where the plan says so, and start the tape where it begins."""
        if not self.taping:
            self.save_when_due(t, state)
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

    def save_when_due(self, t: int, state: TrainState, backward: Backward | None = None) -> None:
        """Save the position before step t, or in the backward pass, where it is to be saved and it is time."""
        if self.saving is not None:
            self.saving.when_due(lambda held: Position(self.plan.name, t, state, self.fingerprints, backward, held))

    def advance(
        self, state: TrainState, start: int, stop: int, after: Callable[[int, TrainState], None] | None = None
    ) -> TrainState:
        """Recompute plain steps, comparing with the recorded bits at every segment boundary passed; `after` each step."""
        for t in range(start, stop):
            state, _, _ = step(self.learner, state, cast(self.batches(t), state), t, self.plain)
            recorded = self.fingerprints.get(t + 1)
            if recorded is not None:
                self._compare(state, recorded, start, t + 1)
            if after is not None:
                after(t + 1, state)
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

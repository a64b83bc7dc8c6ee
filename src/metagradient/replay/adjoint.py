"""The adjoint of a training run: cotangents pulled back through it, segment by segment.

With A_T = d phi / d s_T, each step contributes  B_t = d(A_{t+1} . h_t(s_t, z)) / dz  and
A_t = d(A_{t+1} . h_t(s_t, z)) / ds_t;  the metagradient is sum_t B_t plus what enters through s_0
(arXiv 2503.13751). A segment of steps is recomputed once with its graph kept, and one call pulls through all of it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from metagradient.errors import UserError, few
from metagradient.learners.learner import Learner
from metagradient.replay import plans
from metagradient.replay.objectives import MeanLoss
from metagradient.replay.recording import Recording, ReplayMismatch
from metagradient.replay.saving import Backward
from metagradient.training.metaparameters import Metaparameter
from metagradient.training.run import Progress, initial_state, run_mode
from metagradient.training.state import TrainState

log = logging.getLogger(__name__)

Objective = Callable[[Learner], Tensor]
"""phi: the learner at the end of training, in evaluation mode -> a scalar, or [Q] objectives at once."""

TAPE_TOLERANCE = 1e-4
"""Largest relative difference between a taped and a plain recomputation of a segment (a few operations differ in the
last bits when their gradient is taped; see `step`)."""


class NonFiniteCotangent(UserError):
    """A cotangent became NaN or infinite on the way back: the settings make training too unstable."""


class Puller:
    """vector-Jacobian products for one cotangent, or for Q at once in one batched backward pass.

    Batching shares every kernel launch; where an operation has no batching rule, and for convolutions, where it gains
    nothing, the graph is walked Q times instead. A graph that fails after others worked (the one segment that holds
    `CandidateWeights`, say) is walked so alone.
    """

    def __init__(self, learner: Learner, queries: int | None) -> None:
        self.queries = queries
        conv = any(isinstance(m, nn.modules.conv._ConvNd) for m in learner.modules())
        self.batched: bool | None = False if queries in (None, 1) or conv else None  # None: not tried yet

    def __call__(
        self,
        outputs: Sequence[Tensor],
        inputs: Sequence[Tensor],
        cotangents: Sequence[Tensor],
        *,
        retain: bool = False,
    ) -> list[Tensor]:
        """Cotangents of the inputs; zeros where an input does not matter. [Q, ...] with `queries`."""
        live = [(o, c) for o, c in zip(outputs, cotangents, strict=True) if o.requires_grad]
        if not live:
            lead = () if self.queries is None else (self.queries,)
            return [x.new_zeros((*lead, *x.shape)) for x in inputs]
        outs, cots = [o for o, _ in live], [c for _, c in live]
        if self.queries is None:
            return self._fill(torch.autograd.grad(outs, inputs, cots, retain_graph=retain, allow_unused=True), inputs)
        if self.batched is not False:
            try:
                # The graph is retained for the walk below; at its peak it is whole either way.
                pulled = torch.func.vmap(
                    lambda *c: torch.autograd.grad(outs, inputs, c, retain_graph=True, materialize_grads=True)
                )(*cots)
                self.batched = True
                return self._fill(pulled, inputs)
            except RuntimeError as error:
                log.info(
                    "objectives are pulled one after the other (no batching rule: %s)",
                    str(error).split("\n")[0],
                )
                self.batched = self.batched or False
        rows = [
            torch.autograd.grad(
                outs,
                inputs,
                [c[q] for c in cots],
                retain_graph=retain or q + 1 < self.queries,
                allow_unused=True,
            )
            for q in range(self.queries)
        ]
        return [
            torch.stack(self._fill(column, [x] * self.queries, lead=False))
            for column, x in zip(zip(*rows, strict=True), inputs, strict=True)
        ]

    def _fill(self, pulled: Sequence[Tensor | None], inputs: Sequence[Tensor], lead: bool = True) -> list[Tensor]:
        shape = (self.queries,) if lead and self.queries is not None else ()
        return [x.new_zeros((*shape, *x.shape)) if g is None else g for g, x in zip(pulled, inputs, strict=True)]


def objective_cotangents(
    learner: Learner, state: TrainState, objective: Objective
) -> tuple[Tensor, list[Tensor], Puller]:
    """phi at a state, d phi / d state for each of its tensors ([Q, ...] for Q objectives), and the puller for Q."""
    leaf = state.leaf()
    with torch.enable_grad(), learner.evaluating(leaf):
        value = objective(learner)
    if value.dim() > 1 or not value.requires_grad:
        raise UserError(
            f"the objective must return a scalar or [Q] that depends on the learner's parameters, not a "
            f"{'constant' if not value.requires_grad else 'tensor'} of shape {list(value.shape)}: no torch.no_grad() or .item() inside"
        )
    if not bool(torch.isfinite(value).all()):
        with learner.evaluating(state):
            culprits = _culprits(learner, objective, value.detach())
        raise NonFiniteCotangent(f"the objective is not finite: {value.detach().flatten()[:5].tolist()}{culprits}")
    queries = None if value.dim() == 0 else len(value)
    seed = torch.ones_like(value) if queries is None else torch.eye(queries, dtype=value.dtype, device=value.device)
    cotangents = Puller(learner, queries)([value], leaf.tensors(), [seed])
    for name, c in zip(leaf.names(), cotangents, strict=True):
        if not bool(torch.isfinite(c).all()):
            raise NonFiniteCotangent(
                f"the objective is finite, but its gradient in {name} at the end of training is not"
            )
    # A puller of its own for the steps: what batches in evaluation mode may not in a taped step.
    return value.detach(), cotangents, Puller(learner, queries)


def _culprits(learner: Learner, objective: Objective, value: Tensor) -> str:
    """Which of Q objectives, or which examples of a mean, are not finite, in words."""
    if value.dim():
        return f", that is objectives {few((~value.isfinite()).nonzero().flatten().tolist())}"
    rows = objective.not_finite(learner) if isinstance(objective, MeanLoss) else []
    return f": examples {few(rows)} of those it is the mean of" if rows else ""


def replay(recording: Recording, backward: Backward, progress: Progress | None = None) -> dict[str, Tensor]:
    """Walk the recorded run backwards; the metagradient of every metaparameter by name ([Q, *shape] for Q objectives).

    `backward` is where the pass stands, and is kept up to date: before its first pull, or where a saved one was cut short.
    """
    r, back = recording, backward
    leaves = [m.value for m in r.leaves]
    puller = Puller(r.learner, back.queries)
    if back.expected is not None:
        puller.batched = back.batched
    total = r.plan.steps

    def pull(first: TrainState, last: TrainState, a: int, b: int) -> None:
        pulled = puller(last.tensors(), [*first.tensors(), *leaves], back.cotangents)
        width = len(first.tensors())
        if not _all_true([torch.isfinite(c).all() for c in pulled]):
            _explain_nonfinite(r, first.detach(), back.cotangents, puller, a, b)
        back.cotangents, back.batched = pulled[:width], puller.batched
        for sum_, part in zip(back.totals, pulled[width:], strict=True):
            sum_ += part
        back.expected = back.state = first.detach()
        back.t = a
        if progress is not None:
            progress("replay", total - (a - r.first), total)

    def passed(t: int, state: TrainState) -> None:
        back.t, back.state = t, state
        r.save_when_due(len(r.batches), back.final, back)

    def expect(done: int) -> None:
        t = r.plan.next_restored[done]
        if t is not None:
            r.storage.expect(r.first + t)

    with run_mode(r.learner, r.batches):
        if back.expected is None:
            expect(0)
            if progress is not None:
                progress("replay", 0, total)
            assert r.tape_start is not None
            assert r.end is not None
            pull(r.tape_start, r.end, r.first + r.plan.tape_from, r.first + r.plan.steps)
            r.drop_tape()
            r.save_when_due(len(r.batches), back.final, back)
        with r.batches.ahead(_steps(r, back)):
            for done in range(back.done, len(r.plan.reverse_actions)):
                assert back.state is not None
                assert back.expected is not None
                match r.plan.reverse_actions[done]:
                    case plans.Restore(t):
                        back.t, back.state = r.first + t, r.storage.load(r.first + t)
                    case plans.Free(t):
                        r.storage.free(r.first + t)
                    case plans.Save(t):
                        r.storage.save(r.first + t, back.state)
                    case plans.Advance(_, b):
                        expect(done)
                        r.advance(back.state, back.t, r.first + b, passed)
                    case plans.Reverse(a, b):
                        expect(done)
                        start, end = r.tape(back.state, r.first + a, r.first + b)
                        _check_taped(end, back.expected, r.first + a, r.first + b)
                        pull(start, end, r.first + a, r.first + b)
                        del start, end
                back.done = done + 1
                r.save_when_due(len(r.batches), back.final, back)
        if any(type(m).on_start is not Metaparameter.on_start for m in r.leaves):
            with torch.enable_grad():
                begun = initial_state(
                    r.learner, r.leaves, tape=True
                ).tensors()  # an average begins at the parameters too
            live = [i for i, x in enumerate(begun) if x.requires_grad]
            for sum_, part in zip(
                back.totals, puller([begun[i] for i in live], leaves, [back.cotangents[i] for i in live]), strict=True
            ):
                sum_ += part
    return {m.name: total for m, total in zip(r.leaves, back.totals, strict=True)}


def _steps(r: Recording, back: Backward) -> Iterator[int]:
    """The steps that are left to be run again, in their order."""
    for i in range(back.done, len(r.plan.reverse_actions)):
        move = r.plan.reverse_actions[i]
        if isinstance(move, plans.Advance | plans.Reverse):
            yield from range(back.t if i == back.done else r.first + move.a, r.first + move.b)


def _all_true(found: list[Tensor]) -> bool:
    """Whether all of them are true: one wait for a GPU, not one each."""
    return bool(torch.stack(found).all())


def _check_taped(end: TrainState, expected: TrainState, a: int, b: int) -> None:
    pairs = list(zip(end.tensors(), expected.tensors(), strict=True))
    if all(x.shape == y.shape for x, y in pairs) and _all_true([(x == y).all() for x, y in pairs]):
        return
    for name, x, y in zip(end.names(), end.tensors(), expected.tensors(), strict=True):
        if torch.equal(x, y):
            continue
        difference = float((x.detach() - y).norm() / y.norm().clamp(min=torch.finfo(y.dtype).tiny))
        if not difference < TAPE_TOLERANCE:
            raise ReplayMismatch(
                f"taping steps {a}..{b - 1} again gave {name} at step {b} with a relative difference of {difference:.1e} from "
                "the recorded run: something in the step is not a function of (state, batch, step), or training "
                "is unstable there (lower the learning rate, or use trainer.precision=64-true)."
            )
        log.debug("taped %s at step %d differs by %.1e (last bits)", name, b, difference)


def _explain_nonfinite(
    r: Recording, state: TrainState, cotangents: list[Tensor], puller: Puller, a: int, b: int
) -> None:
    """Find the step and the tensor where the cotangent stopped being finite, going back one step at a time."""
    states = [state]
    for t in range(a, b - 1):
        states.append(r.advance(states[-1], t, t + 1))
    names = [*state.names(), *(m.name for m in r.leaves)]
    for t in range(b - 1, a - 1, -1):
        first, last = r.tape(states[t - a], t, t + 1)
        pulled = puller(last.tensors(), [*first.tensors(), *(m.value for m in r.leaves)], cotangents)
        for name, c in zip(names, pulled, strict=True):
            if not bool(torch.isfinite(c).all()):
                raise NonFiniteCotangent(
                    f"the cotangent of {name} is not finite at step {t}: training is too unstable there to be differentiated "
                    "(or a square root met 0). What usually mends it: a lower learning rate, gradient-friendly "
                    "settings (GELU, average pooling, logit scale), Adam with eps_root >= 1e-8."
                )
        cotangents = pulled[: len(state.tensors())]
    raise NonFiniteCotangent(
        f"the cotangent overflowed between steps {a} and {b}: lower the learning rate or shorten replay segments"
    )

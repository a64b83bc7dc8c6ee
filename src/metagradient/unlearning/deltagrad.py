"""DeltaGrad: the run again without (or with) some examples, most of its steps on quasi-Newton shortcuts."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from statistics import median

from torch import Tensor

from metagradient.errors import UserError
from metagradient.replay.heap import keep_large_blocks
from metagradient.replay.storage import Storage
from metagradient.training.run import Progress, cast, check_loss, run_mode
from metagradient.training.state import TrainState
from metagradient.training.steps import step
from metagradient.unlearning.gradients import mean_gradient
from metagradient.unlearning.lbfgs import SecantPairs
from metagradient.unlearning.methods import Unlearned
from metagradient.unlearning.policies import Adaptive, Guard
from metagradient.unlearning.requests import Request
from metagradient.unlearning.run import Change, RecordedRun


@dataclass(frozen=True)
class DeltaGrad:
    """DeltaGrad (Wu, Dobriban & Davidson, ICML 2020, arXiv 2006.14755), deletion and addition alike.

    Step t of the recorded run had parameters w_t and the mean gradient g_t over its b examples. The new run is at
    w = w_t + v, and its batch has lost (gained) c examples, whose mean gradient at w is h. With s = -1 (+1):

        exact step:        G = the mean gradient over the new batch at w
        approximate step:  G = (b (g_t + B v) + s c h) / (b + s c)

    and the optimizer makes its update of w with G: L2, momentum and schedule are the run's, and exact. B is the L-BFGS
    matrix of the last pairs (v, y) of exact steps, y = (mean gradient over the old batch at w) - g_t. An approximate
    step differentiates the c examples only. A batch that loses all its examples is a skipped step: the clock goes on.

    Attributes:
        period: T0, one exact step in `period`; 1 is retraining, to the bit.
        burn_in: j0, the steps 0 .. burn_in are exact. So is every step until there are `pairs` pairs.
        pairs: m, of L-BFGS.
        guard: turns approximate steps that look wrong into exact ones: a safety net for losses that are not convex.
        adaptive: sets the period from the measured error of B instead: far better than a fixed one on a network,
            level with it in softmax regression, worse on mini-batches, whose noise it takes for error (so it is off
            by default).
    """

    period: int = 5
    burn_in: int = 10
    pairs: int = 2
    guard: Guard | None = None
    adaptive: Adaptive | None = None

    def __post_init__(self) -> None:
        for name, least in {"period": 1, "burn_in": 0, "pairs": 1}.items():
            value = getattr(self, name)
            if value < least:
                raise UserError(f"{name} must be at least {least}, not {value}: set method.{name}={least}")

    def __call__(
        self, run: RecordedRun, request: Request, *, keep: Storage | None = None, progress: Progress | None = None
    ) -> Unlearned:
        """The model after the request, for one gradient over the batch in `period` steps and c gradients in each."""
        if self.adaptive is not None and run.learner.update.sgd is None:
            raise UserError(
                "an adaptive period knows how far a gradient moves the parameters under plain SGD, not "
                f"{run.learner.update.described()}: set method=deltagrad, or learner=sgd"
            )
        walk = Walk(self, run, Change(run, request), keep)
        with run_mode(run.learner, run.batches), keep_large_blocks():
            for t, (w, g) in enumerate(run.history):
                walk.step(t, w, g)
                if progress is not None:
                    progress("DeltaGrad", t + 1, run.history.steps)
        return walk.finish()


class Walk:
    """One replay under a change: what DeltaGrad carries from step to step."""

    def __init__(self, method: DeltaGrad, run: RecordedRun, change: Change, keep: Storage | None) -> None:
        self.method, self.run, self.change = method, run, change
        self.state: TrainState = run.initial
        self.pairs = SecantPairs(method.pairs)
        self.period = method.period if method.adaptive is None else 1
        self.age = 0  # approximate steps since the last exact one
        self.new = None if keep is None else run.history.like(keep)
        self.count: Counter[str] = Counter()
        self.drifts: list[float] = []

    def step(self, t: int, w: Tensor, g: Tensor) -> None:
        """Step t of the new run, given w_t and g_t of the old one."""
        if self.change.sizes(t).after == 0:
            return
        v = self.state.params - w
        due = t <= self.method.burn_in or self.age + 1 >= self.period or not self.pairs.ready
        product = None if due else self._product(v)
        start = self.state.params
        if product is None:
            gradient, self.age = self._exact(t, v, g), 0
        else:
            gradient, self.age = self._approximate(t, g + product), self.age + 1
        if self.new is not None:
            self.new.record(t, start, gradient)

    def _exact(self, t: int, v: Tensor, g: Tensor) -> Tensor:
        """The training step itself; from its gradient, the next pair."""
        learner, state, size = self.run.learner, self.state, self.change.sizes(t)
        batch = cast(self.change.kept(t), state)
        self.state, loss, gradient = step(learner, state, batch, t)
        check_loss(loss, batch, t, learner, state)
        self.count += Counter(exact_steps=1, gradients=size.after)
        if size.before:
            old = gradient
            if size.changed:
                part = self._changed(t, state)
                old = (size.after * gradient - self.change.sign * size.changed * part) / size.before
            self._learn(t, v, old - g)
        return gradient

    def _approximate(self, t: int, estimate: Tensor) -> Tensor:
        """An update with the estimated gradient of the old batch, corrected by the changed examples' own."""
        size, gradient = self.change.sizes(t), estimate
        if size.changed:
            part = self._changed(t, self.state)
            gradient = estimate.mul(size.before / size.after).add_(
                part, alpha=self.change.sign * size.changed / size.after
            )
        self.state = self.run.learner.update.apply(self.state, gradient, t)
        return gradient

    def _changed(self, t: int, state: TrainState) -> Tensor:
        """The mean gradient of the examples that step t loses or gains."""
        batch = cast(self.change.changed(t), state)
        self.count["gradients"] += len(batch)
        return mean_gradient(self.run.learner, state.params, state.buffers, batch)

    def _product(self, v: Tensor) -> Tensor | None:
        """B v; None where the guard refuses it."""
        product = self.pairs.product(v)
        if self.method.guard is None or self.method.guard.accepts(v, product, self.pairs):
            return product
        self.count["refused_steps"] += 1
        return None

    def _learn(self, t: int, v: Tensor, y: Tensor) -> None:
        """A new pair; with `adaptive`, first what the old ones would have said about it."""
        adaptive = self.method.adaptive
        if adaptive is not None and self.pairs.ready:
            drift = self._rate(t) * float((self.pairs.product(v) - y).norm() / v.norm())
            self.drifts.append(drift)
            self.period = adaptive.next_period(self.age + 1, drift)
        if not self.pairs.push(v, y):
            self.count["refused_pairs"] += 1

    def _rate(self, t: int) -> float:
        """How far a gradient moves the parameters in all: the learning rate, over 1 - momentum."""
        momentum = float(self.run.learner.update.hyper(t).get("momentum", 0.0))
        return self.run.learner.schedule(t) / (1 - momentum)

    def finish(self) -> Unlearned:
        if not bool(self.state.params.isfinite().all()):
            raise UserError(
                "DeltaGrad diverged: its parameters are not finite at the end; set a smaller method.period, "
                "or method=deltagrad_adaptive"
            )
        kept = None
        if self.new is not None:
            self.new.finish(self.state.params)
            kept = replace(self.run, present=self.change.after, history=self.new, final=self.state)
        details = {name: float(self.count[name]) for name in ("exact_steps", "refused_pairs", "refused_steps")}
        if self.drifts:
            details["drift"] = median(self.drifts)
        return Unlearned(self.state, self.count["gradients"], kept, details)

"""What people do instead of DeltaGrad, with the same call: exactly, by one linear step, or by more training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from metagradient.errors import UserError
from metagradient.replay.heap import keep_large_blocks
from metagradient.replay.storage import Storage
from metagradient.training.batches import Batch, Batches
from metagradient.training.metaparameters import LearningRates
from metagradient.training.plans import epoch_plan
from metagradient.training.run import Progress, cast, run_mode, train
from metagradient.training.sources import gather
from metagradient.training.state import TrainState
from metagradient.unlearning.gradients import gradient_and_product, mean_gradient
from metagradient.unlearning.methods import Unlearned
from metagradient.unlearning.requests import Request
from metagradient.unlearning.run import Change, RecordedRun, batch_sizes, record


@dataclass(frozen=True)
class Retrain:
    """The truth: the run again from its first state, on the new training set, in the same order."""

    def __call__(
        self, run: RecordedRun, request: Request, *, keep: Storage | None = None, progress: Progress | None = None
    ) -> Unlearned:
        after = request.apply(run.present)
        batches = run.batches_of(after)
        gradients = sum(batch_sizes(batches.plan))
        if keep is None:
            with keep_large_blocks():
                return Unlearned(train(run.learner, batches, state=run.initial, progress=progress), gradients)
        new = record(
            run.learner,
            run.batches,
            after,
            initial=run.initial,
            storage=keep,
            dtype=run.history.dtype,
            progress=progress,
        )
        return Unlearned(new.final, gradients, new)


@dataclass(frozen=True)
class Newton:
    """One influence step at the trained model: theta - (H + beta I + damping I)^-1 d.

    d is what the request adds to the gradient of the mean loss over the training set, H that loss's Hessian after it,
    beta the L2 coefficient. Exact to first order where the run has converged; elsewhere it removes what the examples
    would have done to a converged one. Solved by conjugate gradients, each with one Hessian product over all data.

    Attributes:
        damping: None for 1 / (2 s), s the sum of the learning rates / (1 - momentum). Along a curvature lambda
            gradient descent has gone the share 1 - exp(-lambda s) of its way, and lambda / (lambda + 1 / (2 s)) is
            close to that: what a run of this length has not learned of the examples need not be taken out.

    Source: Guo et al., Certified data removal, arXiv 1911.03030 (at a minimiser the two agree).
    """

    damping: float | None = None
    iterations: int = 30
    tolerance: float = 1e-3

    def __call__(
        self, run: RecordedRun, request: Request, *, keep: Storage | None = None, progress: Progress | None = None
    ) -> Unlearned:
        _keeps_no_history(self, keep)
        after, mask = request.apply(run.present), request.mask(len(run.present))
        state, learner = run.final, run.learner
        share = request.sign * len(request.rows) / int(after.sum())
        gradient, changed = _gradient(run, state, run.present), _gradient(run, state, mask)
        decay = _decay(run) + (_unconverged(run) if self.damping is None else self.damping)

        def product(v: Tensor) -> Tensor:
            def of(batch: Batch) -> Tensor:
                return gradient_and_product(learner, state.params, state.buffers, batch, v)[1]

            return _mean(run, of, after) + decay * v

        solution, taken = _conjugate_gradients(
            product, share * (changed - gradient), self.iterations, self.tolerance, progress
        )
        spent = int(run.present.sum()) + len(request.rows) + 3 * taken * int(after.sum())
        return Unlearned(_moved(state, -solution), spent, details={"iterations": float(taken)})


@dataclass(frozen=True)
class FirstOrder:
    """The exact metagradient's prediction: the run's derivative with respect to the changed examples' weights.

    The tangent of the whole run, forward: v <- the optimizer's update of v with H_t v + s (c / b) (h - g_t), H_t the
    Hessian at w_t, along the recorded run. One tangent gives all parameters at once, for about 3 trainings; contracted
    with an objective's gradient it is the metagradient summed over the request's examples.
    """

    def __call__(
        self, run: RecordedRun, request: Request, *, keep: Storage | None = None, progress: Progress | None = None
    ) -> Unlearned:
        _keeps_no_history(self, keep)
        learner, update = run.learner, run.learner.update
        if update.sgd is None:
            raise UserError(
                f"first_order needs an update that is linear, plain SGD, not {update.described()}: set learner=sgd"
            )
        change, spent = Change(run, request), 0
        before = run.batches_of(run.present)
        tangent = update.start(torch.zeros_like(run.final.params), run.final.buffers)
        with run_mode(learner, run.batches):
            for t, (w, g) in enumerate(run.history):
                size = change.sizes(t)
                if size.before == 0:
                    continue
                batch = cast(before(t), tangent)
                _, drive = gradient_and_product(learner, w, tangent.buffers, batch, tangent.params)
                spent += 3 * size.before
                if size.changed:
                    part = mean_gradient(learner, w, tangent.buffers, cast(change.changed(t), tangent))
                    drive = drive + change.sign * size.changed / size.before * (part - g)
                    spent += size.changed
                tangent = update.apply(tangent, drive, t)
                if progress is not None:
                    progress("first order", t + 1, run.history.steps)
        return Unlearned(_moved(run.final, tangent.params), spent)


@dataclass(frozen=True)
class Finetune:
    """More training on the new training set: it forgets only as far as training washes out.

    Attributes:
        epochs: passes over the new training set, in batches of the run's size.
        learning_rate: None for the run's last one.
    """

    epochs: int = 2
    learning_rate: float | None = None
    seed: int = 0

    def __call__(
        self, run: RecordedRun, request: Request, *, keep: Storage | None = None, progress: Progress | None = None
    ) -> Unlearned:
        _keeps_no_history(self, keep)
        batches = _epochs(run, request.apply(run.present), self.epochs, self.seed)
        rate = LearningRates(torch.tensor([_rate(run, self.learning_rate)]), steps=len(batches))
        start = run.learner.update.start(run.final.params, run.final.buffers)
        state = train(run.learner, batches, (rate,), state=start, progress=progress)
        return Unlearned(state, sum(batch_sizes(batches.plan)))


@dataclass(frozen=True)
class GradientAscent:
    """Steps up the loss of the deleted examples (down that of added ones), which nothing holds back.

    Attributes:
        learning_rate: None for the run's last one.
    """

    steps: int = 1
    learning_rate: float | None = None

    def __call__(
        self, run: RecordedRun, request: Request, *, keep: Storage | None = None, progress: Progress | None = None
    ) -> Unlearned:
        _keeps_no_history(self, keep)
        request.apply(run.present)
        state, mask = run.final, request.mask(len(run.present))
        rate = _rate(run, self.learning_rate) * request.sign
        for _ in range(self.steps):
            state = _moved(state, -rate * _gradient(run, state, mask))
        return Unlearned(state, self.steps * len(request.rows))


@dataclass(frozen=True)
class NegGradPlus:
    """NegGrad+: descend share * (loss kept) - (1 - share) * (loss deleted), one batch of kept examples a step.

    An addition descends both. Source: Kurmanji et al., arXiv 2302.09880 (there the baseline beside SCRUB).
    """

    share: float = 0.95
    epochs: int = 2
    learning_rate: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise UserError(f"share must lie in (0, 1], not {self.share}: set method.share=0.95")

    def __call__(
        self, run: RecordedRun, request: Request, *, keep: Storage | None = None, progress: Progress | None = None
    ) -> Unlearned:
        _keeps_no_history(self, keep)
        batches = _epochs(run, request.apply(run.present), self.epochs, self.seed)
        mask, state, spent = request.mask(len(run.present)), run.final, 0
        rate, decay = _rate(run, self.learning_rate), _decay(run)
        with run_mode(run.learner, batches):
            for t in range(len(batches)):
                batch = cast(batches(t), state)
                kept = mean_gradient(run.learner, state.params, state.buffers, batch)
                part = request.sign * _gradient(run, state, mask)
                step = self.share * kept + (1 - self.share) * part + decay * state.params
                state, spent = _moved(state, -rate * step), spent + len(batch) + len(request.rows)
                if progress is not None:
                    progress("NegGrad+", t + 1, len(batches))
        return Unlearned(state, spent)


def _keeps_no_history(method: object, keep: Storage | None) -> None:
    if keep is not None:
        raise UserError(
            f"{type(method).__name__} leaves no run behind that a second request could be put to: "
            "streams need method=deltagrad or method=retrain"
        )


def _moved(state: TrainState, by: Tensor) -> TrainState:
    return replace(state, params=state.params + by)


def _rate(run: RecordedRun, given: float | None) -> float:
    return run.learner.schedule(len(run.batches) - 1) if given is None else given


def _decay(run: RecordedRun) -> Tensor | float:
    """The L2 coefficient, of each parameter where they differ."""
    mask, hyper = run.learner.decay_mask, run.learner.update.hyper(0)
    if "weight_decay" not in hyper:
        raise UserError(
            f"this method knows one weight decay for all parameters, not that of {run.learner.update.described()}: set method=deltagrad"
        )
    value = hyper["weight_decay"]
    return value if mask is None else value * mask


def _unconverged(run: RecordedRun) -> float:
    """The damping that stands for the length of the run."""
    optimizer = run.learner.update.sgd
    if optimizer is None:
        raise UserError(
            f"newton knows its damping only for plain SGD, not for {run.learner.update.described()}: set method.damping=0.01"
        )
    rates = sum(float(run.learner.schedule(t)) for t in range(len(run.batches)))
    return (1 - optimizer.momentum) / (2 * rates)


def _gradient(run: RecordedRun, state: TrainState, members: Tensor) -> Tensor:
    """The mean loss gradient of the members at a state, [P]."""
    return _mean(run, lambda batch: mean_gradient(run.learner, state.params, state.buffers, batch), members)


def _mean(run: RecordedRun, of: Callable[[Batch], Tensor], members: Tensor, chunk: int = 8192) -> Tensor:
    """The mean over the members of something that is a mean over a batch, [P]."""
    rows, total = members.nonzero().flatten(), torch.zeros_like(run.final.params)
    with run_mode(run.learner, run.batches):
        for part in rows.split(chunk):
            fields = gather(run.batches.examples, part)
            batch = cast(Batch(0, part, fields, run.batches.seed), run.final)
            total += of(batch) * (len(part) / len(rows))
    return total


def _epochs(run: RecordedRun, members: Tensor, epochs: int, seed: int) -> Batches:
    """Fresh passes over the members, in batches as wide as the run's."""
    rows = members.nonzero().flatten()
    plan = epoch_plan(len(rows), run.batches.plan.shape[1], epochs, seed)
    return Batches(run.batches.examples, torch.where(plan >= 0, rows[plan], -1), seed)


def _conjugate_gradients(
    product: Callable[[Tensor], Tensor], b: Tensor, iterations: int, tolerance: float, progress: Progress | None
) -> tuple[Tensor, int]:
    """x with A x = b to a relative residual of `tolerance`, and the products it took; A positive definite.

    Stops at a direction of negative curvature.
    """
    x, residual = torch.zeros_like(b), b.clone()
    direction, squared, goal = residual, float(residual @ residual), tolerance**2 * float(b @ b)
    for done in range(iterations):
        if squared <= goal:
            return x, done
        image = product(direction)
        curvature = float(direction @ image)
        if not curvature > 0:
            return x, done + 1
        step = squared / curvature
        x, residual = x + step * direction, residual - step * image
        previous, squared = squared, float(residual @ residual)
        direction = residual + squared / previous * direction
        if progress is not None:
            progress("conjugate gradients", done + 1, iterations)
    return x, iterations

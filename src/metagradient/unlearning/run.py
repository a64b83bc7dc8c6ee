"""A recorded run: one training, kept step by step so that it can be repeated without some of its examples."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import lightning
import psutil
import torch
from torch import Tensor

from metagradient.errors import UserError
from metagradient.learners.learner import Learner
from metagradient.replay.budget import format_bytes
from metagradient.replay.heap import keep_large_blocks
from metagradient.replay.storage import MemoryStorage, Storage
from metagradient.training.batches import Batch, Batches
from metagradient.training.metaparameters import Metaparameter
from metagradient.training.model import Model
from metagradient.training.run import Progress, initial_state, run_mode, train
from metagradient.training.state import TrainState
from metagradient.unlearning.gradients import mean_gradient
from metagradient.unlearning.history import History
from metagradient.unlearning.requests import Request

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class RecordedRun:
    """A training run and its history.

    Attributes:
        batches: over all rows, absent ones included: examples and index plan [T, B].
        present: [n] bool, the rows that the run was trained on.
        history: w_t and g_t of every step.
        initial: the states before the first and after the last step.
        final: see `initial`.
    """

    learner: Learner
    batches: Batches
    present: Tensor
    history: History
    initial: TrainState
    final: TrainState

    def batches_of(self, members: Tensor) -> Batches:
        """The run's batches with the members [n] bool only: order and steps stay, a batch may become empty."""
        return Batches(self.batches.examples, masked_plan(self.batches.plan, members), self.batches.seed)


def masked_plan(plan: Tensor, members: Tensor) -> Tensor:
    """The plan [T, B] with -1 in place of rows that are no members [n]; one row in memory where all are the same."""
    constant = plan.stride(0) == 0
    rows = plan[:1] if constant else plan
    kept = torch.where(members.to(rows.device)[rows] & (rows >= 0), rows, -1)  # -1 reads the last row: masked too
    return kept.expand(len(plan), -1) if constant else kept


def narrowed(plan: Tensor) -> Tensor:
    """The same batches in a plan that is no wider than its longest batch (at least 1)."""
    constant = plan.stride(0) == 0
    rows = plan[:1] if constant else plan
    t, column = (rows >= 0).nonzero(as_tuple=True)
    sizes = torch.bincount(t, minlength=len(rows))
    place = torch.arange(len(t)) - (sizes.cumsum(0) - sizes)[t]
    narrow = rows.new_full((len(rows), max(1, int(sizes.max()))), -1)
    narrow[t, place] = rows[t, column]
    return narrow.expand(len(plan), -1) if constant else narrow


def batch_sizes(plan: Tensor) -> list[int]:
    """The number of examples in each step's batch, T of them."""
    if plan.stride(0) == 0:
        return [int((plan[0] >= 0).sum())] * len(plan)
    return (plan >= 0).sum(1).tolist()


@dataclass(frozen=True, eq=False)
class GradientTap(Metaparameter):
    """No metaparameter but a look at every step: `sink(t, parameters, mean loss gradient without L2)`."""

    value: Tensor = torch.empty(0)  # noqa: RUF009 (never written into)
    name: str = "tap"
    sink: Callable[[int, Tensor, Tensor], None] = lambda t, params, gradient: None

    def on_gradient(self, gradient: Tensor, learner: Model, params: Tensor, buffers: Tensor, t: int) -> Tensor:
        self.sink(t, params.detach(), gradient.detach())
        return gradient


def record(
    learner: Learner,
    batches: Batches,
    present: Tensor | None = None,
    *,
    initial: TrainState | None = None,
    storage: str | Storage = "memory",
    dtype: torch.dtype | None = None,
    progress: Progress | None = None,
) -> RecordedRun:
    """Train without a Trainer and keep every step.

    Args:
        learner: its parameters are the run's start.
        batches: the run's batches, over all rows.
        present: [n] bool, the rows to train on (default: all); the plan of `batches` may hold rows that are added
            later.
        storage: of the history: "memory", "disk" or a `Storage`.
        dtype: of the history (default: the model's). float32 of a float64 model halves it.
        initial: a first state in place of the learner's own.
        progress: called now and then.

    Raises:
        UserError: the run cannot be unlearned from (see `check`), or its history does not fit into memory.
    """
    recorder = _Recorder(learner, batches, present, storage, dtype)
    initial = initial_state(learner) if initial is None else initial
    with keep_large_blocks():
        final = train(learner, recorder.batches, (recorder.tap,), state=initial, progress=progress)
    return recorder.finish(initial, final)


class RecordRun(lightning.Callback):
    """Records the fit of a `Learner`: after `Trainer.fit`, `run` holds the `RecordedRun`. Arguments as in `record`.

    callback = RecordRun(batches, present)
    Trainer(max_epochs=1, callbacks=[callback]).fit(learner, callback.batches)
    """

    def __init__(
        self,
        batches: Batches,
        present: Tensor | None = None,
        *,
        storage: str | Storage = "memory",
        dtype: torch.dtype | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._all, self._present, self._storage, self._dtype = batches, _members(batches, present), storage, dtype
        self.batches = Batches(
            batches.examples, masked_plan(batches.plan, self._present), batches.seed, batches.augment
        )
        self.progress = progress
        self.run: RecordedRun | None = None

    def on_fit_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        if not isinstance(module, Learner):
            raise UserError(f"the RecordRun callback needs a metagradient Learner, not {type(module).__name__}")
        self.run = None
        self._recorder = _Recorder(module, self._all, self._present, self._storage, self._dtype)
        module.metaparameters = (self._recorder.tap,)
        log.info("%s", self._recorder.history)

    def on_train_batch_start(self, trainer: lightning.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            if module.step_count:
                raise UserError("a resumed fit has no history of its first steps: fit from the start to record a run")
            self._initial = module.train_state
            given = trainer.train_dataloader
            if given is not self.batches and not torch.equal(getattr(given, "plan", torch.empty(0)), self.batches.plan):
                raise UserError(
                    "the fit reads other batches than the ones that are recorded, without the rows that are absent: "
                    "trainer.fit(learner, callback.batches)"
                )

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.progress is not None:
            self.progress("training", batch_idx + 1, len(self.batches))

    def on_train_end(self, trainer: lightning.Trainer, module: Any) -> None:
        module.metaparameters = ()
        self.run = self._recorder.finish(self._initial, module.train_state)


class _Recorder:
    def __init__(
        self,
        learner: Learner,
        batches: Batches,
        present: Tensor | None,
        storage: str | Storage,
        dtype: torch.dtype | None,
    ) -> None:
        self.learner, self.all, self.present = learner, batches, _members(batches, present)
        params = learner.layout.params()
        check(learner, batches)
        self.history = History(len(batches), len(params), storage, params.dtype if dtype is None else dtype)
        _fits(self.history)
        self.batches = Batches(batches.examples, masked_plan(batches.plan, self.present), batches.seed)
        self.tap = GradientTap(sink=self.history.record)

    def finish(self, initial: TrainState, final: TrainState) -> RecordedRun:
        self.history.finish(final.params)
        return RecordedRun(self.learner, self.all, self.present, self.history, initial, final)


def _members(batches: Batches, present: Tensor | None) -> Tensor:
    if present is None:
        return torch.ones(batches.n_examples, dtype=torch.bool)
    if present.dtype != torch.bool or present.shape != (batches.n_examples,) or not present.any():
        raise UserError(
            f"present must be a mask of the {batches.n_examples} rows with at least one of them, "
            f"not {present.dtype} {list(present.shape)}"
        )
    return present.cpu()


def _fits(history: History) -> None:
    free = psutil.virtual_memory().available
    if isinstance(history.storage, MemoryStorage) and history.nbytes > free:
        raise UserError(f"{history}, but only {format_bytes(free)} are free: set history.storage=disk")


def check(learner: Learner, batches: Batches) -> None:
    """Refuse a run whose batch gradient is not the mean of its examples' own: there, nothing can be taken out.

    Augmentation and dropout draw anew for a smaller batch, batch norm and contrastive losses tie examples together.
    Measured on the first batch of two or more examples: its gradient against the mean of its halves'.
    """
    if batches.augment is not None:
        raise UserError(
            "a run with augmentation cannot be unlearned from: its draws change with the batch; leave it out"
        )
    learner.configure_for(batches)
    if learner.update.average is not None:
        raise UserError("a run with averaged parameters cannot be unlearned from yet: set learner.average=null")
    t = next((t for t, size in enumerate(batch_sizes(batches.plan)) if size > 1), None)
    if t is None:
        return
    state = initial_state(learner)
    with run_mode(learner, batches):
        whole = batches(t).to(state.params.device, state.params.dtype)
        index = torch.arange(min(len(whole), 64))
        whole, halves = rows_of(whole, index), [rows_of(whole, part) for part in index.chunk(2)]
        together = mean_gradient(learner, state.params, state.buffers, whole)
        parts = [mean_gradient(learner, state.params, state.buffers, half) * len(half) for half in halves]
    apart = torch.stack(parts).sum(0) / len(whole)
    if float((together - apart).norm()) > 1e-3 * float(together.norm()):
        raise UserError(
            "the gradient of a batch is not the mean of its examples' gradients, so no example can be taken out of it: "
            "use a model without dropout and batch norm, and a loss of each example by itself"
        )


def rows_of(batch: Batch, rows: Tensor) -> Batch:
    """Some rows of a batch."""
    rows = rows.to(batch.index.device)
    return Batch(batch.t, batch.index[rows], {k: v[rows.to(v.device)] for k, v in batch.fields.items()}, batch.seed)


class Sizes(NamedTuple):
    """Examples in a step's batch: before the request, those that it changes, after it."""

    before: int
    changed: int
    after: int


class Change:
    """A request laid over a run: what each step's batch loses or gains.

    after:   [n] bool, the training set after the request.
    kept:    the batches of the new run.
    changed: the examples that each batch loses or gains.
    sign:    -1 where it loses them, +1 where it gains them.
    """

    def __init__(self, run: RecordedRun, request: Request) -> None:
        self.after, self.sign = request.apply(run.present), request.sign
        self.kept = run.batches_of(self.after)
        plan = narrowed(masked_plan(run.batches.plan, request.mask(len(run.present))))
        self.changed = Batches(run.batches.examples, plan, run.batches.seed)
        after, changed = batch_sizes(self.kept.plan), batch_sizes(plan)
        self._sizes = [Sizes(a - self.sign * c, c, a) for a, c in zip(after, changed, strict=True)]

    def sizes(self, t: int) -> Sizes:
        return self._sizes[t]

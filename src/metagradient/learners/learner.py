"""`Learner`: the user's seam. Subclass it, write `losses(batch) -> [B]`, and the run can be replayed."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, Literal, Self

import lightning
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from metagradient.distributed import SOLO
from metagradient.errors import UserError
from metagradient.learners.adoption import adopted
from metagradient.learners.hooks import TrainerHooks
from metagradient.learners.settings import StepSettings
from metagradient.learners.translation import Run, idle_hooks, translate
from metagradient.training.batches import Batch, Batches, Fields
from metagradient.training.compiled import Graphs
from metagradient.training.microbatches import MicroBatches
from metagradient.training.model import Needs
from metagradient.training.modules.recomputation import recomputing_within
from metagradient.training.modules.replayable import in_modes, make_replayable, modes_of
from metagradient.training.modules.substitutes import Substitutes, compiled, uncompiled
from metagradient.training.plans import steps_per_epoch
from metagradient.training.probing import probe
from metagradient.training.random import step_randomness
from metagradient.training.state import Layout, TrainState, default_dtype
from metagradient.training.updates import SGD, Constant, Optimizer, Schedule, Update, placed


class Learner(TrainerHooks):
    """A Lightning module whose training is the project's one step.

    Subclasses build their modules in `__init__` and define `losses(batch) -> [B]`, one loss for each example.

    Args:
        optimizer: an `Optimizer` (SGD by default).
        learning_rate: a number or a schedule, a function of the step (0.1 by default; a `configure_optimizers` of the class has its own).
        normalize: the weighted mean loss divides by the batch size ("batch") or by the weight sum ("kept").
        decay: which parameters the weight decay touches: a function of name and shape (None: all).
        clip_norm, clip_value: bounds on the gradient's norm and on each coordinate before the optimizer gets it (`Update`).
        average: the decay of an exponential average of the parameters, at which a finished run is read (`Update`).
        micro_batch: rows that are run at a time, so that a batch need not fit into memory (`MicroBatches`); None: all.
        compiled: steps and their adjoints run as machine code (`Graphs`), which takes some seconds to make.

    Attributes:
        group: the processes that share each batch; `metagradient.distributed.world()` for all that torchrun started. Every one of them
            then makes the same calls with the same arguments.

    Train with `Trainer(max_epochs=1).fit(learner, batches)` (one pass over a `Batches` is the whole run), or with
    `train(learner, batches)` where no Trainer is wanted; both end in the same bits.
    """

    def __init__(
        self,
        optimizer: Optimizer | None = None,
        learning_rate: float | Schedule | None = None,
        *,
        normalize: Literal["batch", "kept"] = "batch",
        decay: Callable[[str, torch.Size], bool] | None = None,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        average: float | None = None,
        micro_batch: int | None = None,
        compiled: bool = False,
    ) -> None:
        super().__init__()
        self._configure: Callable[[], Any] | None
        settings = StepSettings(normalize, decay, clip_norm, clip_value, average, micro_batch, compiled)
        self._set_up(
            settings, SGD() if optimizer is None else optimizer, 0.1 if learning_rate is None else learning_rate
        )
        if type(self).configure_optimizers is not TrainerHooks.configure_optimizers:
            if optimizer is not None:
                raise UserError(
                    f"{type(self).__name__} has a configure_optimizers of its own and is given an optimizer: leave one out"
                )
            if decay is not None:
                raise UserError(f"{type(self).__name__} has a configure_optimizers of its own, which decides the decay")
            self._own_rates = learning_rate is None
            self._configure = partial(type(self).configure_optimizers, self)

    def _set_up(self, settings: StepSettings, optimizer: Optimizer, learning_rate: float | Schedule) -> None:
        self.automatic_optimization = False  # the optimizer is part of the step
        self.optimizer = optimizer
        self.schedule: Schedule = learning_rate if callable(learning_rate) else Constant(float(learning_rate))
        self.normalize, self._step_settings = settings.normalize, settings
        self.graphs = Graphs() if settings.compiled else None
        self.micro_batches = None if settings.micro_batch is None else MicroBatches(settings.micro_batch)
        self.group = SOLO
        self.metaparameters, self.train_state, self.step_count, self.tape = (), None, 0, False
        self._layout: Layout | None = None
        self._decay_mask: Tensor | None = None
        self._placed: tuple[Optimizer, Optimizer] | None = None
        self._needs: Needs | None = None
        self.tried: dict[Hashable, Any] = {}  # what a tried step of runs of one kind took (`replay.trial`)
        self._resume, self._computing, self._fitting = None, 0, False
        self._configure = None
        self._configured_for: Run | None = None
        self._steps_per_epoch: int | None = None
        self._eps_root, self._own_rates = 1e-8, True

    @staticmethod
    def from_lightning(
        module: lightning.LightningModule,
        losses: Callable[[Any, Batch], Tensor] | None = None,
        *,
        steps_per_epoch: int | None = None,
        eps_root: float = 1e-8,
        **settings: Any,
    ) -> Learner:
        """An existing `LightningModule` as a learner: the same object, with its parameters, validation and checkpoints.

        Its `configure_optimizers` is translated when a run's length is known, at the start of the run (`translate`); its
        `training_step` is not used.

        Args:
            module: a module that Lightning trains today, with automatic optimization.
            losses: (module, batch) -> the loss of each example, [B]; or None where the module has a method `losses(batch)`.
            steps_per_epoch: for schedulers that step once an epoch; by default read off the plan, where its first steps read
                each example once.
            eps_root: inside Adam's square root, which has no derivative at 0; torch's values are those of 0.
            settings: those of `Learner` but for the optimizer and `decay`; `learning_rate` takes the place of the module's own
                rates (groups keep their ratios).

        Raises:
            UserError: the module optimizes by itself, changes updates in hooks, or uses names of a learner's for other things.
        """
        return adopted(Learner, module, losses, steps_per_epoch, eps_root, settings)

    def losses(self, batch: Batch) -> Tensor:
        """The loss of each example, [B]."""
        raise NotImplementedError("write losses(self, batch) -> [B], the loss of each example of the batch")

    def rows_at_once(self, examples: Fields) -> int:
        """How many examples are run together where nothing is trained."""
        return 2048

    @property
    def layout(self) -> Layout:
        """Where the flat vectors lie in this module; made when first asked for."""
        if self._layout is None:
            make_replayable(self)
            self._layout = Layout(self)
        return self._layout

    @property
    def update(self) -> Update:
        """How a gradient moves the parameters: the optimizer, the schedule, the decay mask, clipping and averaging."""
        if self._configure is not None and self._configured_for is None:
            raise UserError(
                "configure_optimizers is translated when the length of the run is known: call learner.configure_for(batches) first"
            )
        if self._placed is None or self._placed[0] is not self.optimizer:
            self._placed = self.optimizer, placed(self.optimizer, self.layout.names, self.layout.shapes)
        s = self._step_settings
        return Update(self._placed[1], self.schedule, self.decay_mask, s.clip_value, s.clip_norm, s.average)

    @property
    def decay_mask(self) -> Tensor | None:
        """[P] of 0 and 1, or None where the weight decay touches everything."""
        if self._step_settings.decay is None:
            return None
        params = next(p for p in self.parameters() if p.requires_grad)
        if (
            self._decay_mask is None
            or self._decay_mask.device != params.device
            or self._decay_mask.dtype != params.dtype
        ):
            layout = self.layout
            parts = [
                torch.full((size,), float(self._step_settings.decay(name, shape)))
                for name, shape, size in zip(layout.names, layout.shapes, layout.sizes, strict=True)
            ]
            self._decay_mask = torch.cat(parts).to(params)
        return self._decay_mask

    @contextmanager
    def running(self, params: Tensor, buffers: Tensor, seed: int | None, t: int) -> Iterator[None]:
        """Inside, the modules compute with these vectors and with the randomness of step t."""
        with (
            step_randomness(seed, t, params.device, foreign=self.needs.foreign_randomness),
            self._computing_with(params, buffers, taped=True),
        ):
            yield

    @contextmanager
    def _computing_with(self, params: Tensor, buffers: Tensor, taped: bool = False) -> Iterator[None]:
        """Inside, the modules hold these vectors, and blocks checkpointed there hold them again when they run again."""
        own = self.__dict__  # nn.Module.__setattr__ would take some microseconds of every step
        own["_computing"] += 1
        try:
            with (
                default_dtype(params.dtype),
                sdpa_kernel(SDPBackend.MATH) if self.needs.math_attention else nullcontext(),
                uncompiled() if self.needs.eager else nullcontext(),
                Substitutes() if self.needs.substitutes else nullcontext(),
                self.layout.bind(params, buffers),
                recomputing_within(self, params, buffers, lambda p, b: self._computing_with(p, b, taped), taped),
            ):
                yield
        finally:
            own["_computing"] -= 1

    @contextmanager
    def evaluating(self, state: TrainState) -> Iterator[Self]:
        """The learner at `state`, in evaluation mode; what is computed inside is differentiable in the state.

        Where parameters are averaged, at their average.
        """
        state = self.update.read(state)
        with in_modes(modes_of(self.modules())):
            self.eval()
            with self._computing_with(state.params, state.buffers):
                yield self

    def adopt(self, state: TrainState) -> Self:
        """Copy a state into the module's own parameters and buffers; of averaged parameters the average."""
        self.layout.store(self.update.read(state))
        return self

    def configure_for(self, batches: Batches) -> None:
        """Translate a `configure_optimizers` for a run over these batches; nothing where the learner has none."""
        if self._configure is not None:
            epoch = self._steps_per_epoch or steps_per_epoch(batches.plan.cpu(), batches.n_examples)
            self.configure_for_steps(len(batches), epoch)

    def configure_for_steps(self, steps: int, steps_per_epoch: int | None = None) -> None:
        """`configure_for` a run of so many steps."""
        if self._configure is None:
            return
        run = Run(steps, steps_per_epoch)
        if run != self._configured_for:
            optimizer, schedule = self.optimizer, self.schedule
            found, rates = translate(
                self, self._configure, run, self._eps_root, clipped=self._step_settings.clip_norm is not None
            )
            if self.optimizer is not optimizer or self.schedule is not schedule:
                raise UserError(
                    "configure_optimizers sets self.optimizer or self.schedule, which are a learner's own: give them another name"
                )
            self.optimizer, self.schedule = found, rates if self._own_rates else schedule
            self._configured_for = run

    def probe(self, batches: Batches) -> None:
        """Before a run: in the first, one forward pass to see what the losses need in order to be replayable."""
        if type(self).training_step is not TrainerHooks.training_step:
            raise UserError(
                f"{type(self).__name__} has a training_step of its own, which no replay would see: write losses(batch) -> [B] in its "
                "place (validation_step and the like stay)"
            )
        changed = idle_hooks(type(self))
        if changed:
            raise UserError(
                f"{type(self).__name__} defines {', '.join(changed)}, which would act outside the differentiated step and is never "
                "called: leave it out (for clipping give clip_norm=...)"
            )
        self._remake()
        self._configured_for = None  # what it reads of the module may have changed
        self.configure_for(batches)
        if self._needs is None:
            self._needs = Needs(eager=any(compiled(module) for module in self.modules()))
            try:
                self._needs = probe(self, batches)
            except BaseException:
                self._needs = None
                raise
        if self.graphs is not None:
            self.graphs.new_run(self, batches)

    def _remake(self) -> None:
        """Forget the layout where other parameters are trainable than when it was made."""
        trainable = dict.fromkeys(id(p) for p in self.parameters() if p.requires_grad)
        if self._layout is not None and list(trainable) != self._layout.identities():
            self._layout = self._decay_mask = self._placed = self._needs = None
            self.tried = {}

    @property
    def needs(self) -> Needs:
        """What `probe` saw."""
        return self._needs or Needs()


class ModelLearner(Learner):
    """A learner around one model, which it holds as `model`."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | None = None,
        learning_rate: float | Schedule | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(optimizer, learning_rate, **settings)
        self.model = model

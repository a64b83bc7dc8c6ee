"""`Learner`: the user's seam. Subclass it, write `losses(batch) -> [B]`, and the run can be replayed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal, Self

import lightning
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from metagradient.errors import UserError
from metagradient.training.batches import Batch, Batches
from metagradient.training.compiled import Graphs
from metagradient.training.metaparameters import Metaparameter
from metagradient.training.model import Needs
from metagradient.training.modules import in_modes, make_replayable, modes_of
from metagradient.training.probing import probe
from metagradient.training.random import step_randomness
from metagradient.training.recomputation import recomputing_within
from metagradient.training.run import cast, check_loss, initial_state
from metagradient.training.state import Layout, TrainState, default_dtype
from metagradient.training.steps import step
from metagradient.training.substitutes import Substitutes, uncompiled
from metagradient.training.updates import SGD, Constant, Optimizer, Schedule, Update, placed

# The optimizer is part of the step, so Lightning's warning that there is none, in every fit, says nothing.
warnings.filterwarnings("ignore", message=".*`LightningModule.configure_optimizers` returned `None`.*")
warnings.filterwarnings("ignore", message=".*LeafSpec.*")
# What ModelCheckpoint saves is the state after the step, as it should be.
warnings.filterwarnings("ignore", message=".*no pre-optimization state was saved.*")


class Learner(lightning.LightningModule):
    """A Lightning module whose training is the project's one step.

    Subclasses build their modules in `__init__` and define `losses(batch) -> [B]`, one loss for each example.

    Args:
        optimizer: an `Optimizer` (SGD by default).
        learning_rate: a number or a schedule, a function of the step.
        normalize: the weighted mean loss divides by the batch size ("batch") or by the weight sum ("kept").
        decay: which parameters the weight decay touches: a function of name and shape (None: all).
        clip_norm, clip_value: bounds on the gradient's norm and on each coordinate before the optimizer gets it (`Update`).
        average: the decay of an exponential average of the parameters, at which a finished run is read (`Update`).
        compiled: steps and their adjoints run as machine code (`Graphs`), which takes some seconds to make.

    Train with `Trainer(max_epochs=1).fit(learner, batches)` (one pass over a `Batches` is the whole run), or with
    `train(learner, batches)` where no Trainer is wanted; both end in the same bits.
    """

    def __init__(
        self,
        optimizer: Optimizer | None = None,
        learning_rate: float | Schedule = 0.1,
        *,
        normalize: Literal["batch", "kept"] = "batch",
        decay: Callable[[str, torch.Size], bool] | None = None,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        average: float | None = None,
        compiled: bool = False,
    ) -> None:
        super().__init__()
        if normalize not in ("batch", "kept"):
            raise UserError(f"normalize must be 'batch' or 'kept', not '{normalize}': set learner.normalize=batch")
        self.automatic_optimization = False  # the optimizer is part of the step
        self.optimizer: Optimizer = SGD() if optimizer is None else optimizer
        self.schedule: Schedule = learning_rate if callable(learning_rate) else Constant(float(learning_rate))
        self.normalize, self._decay = normalize, decay
        for name, bound in {"clip_norm": clip_norm, "clip_value": clip_value}.items():
            if bound is not None and not bound > 0:
                raise UserError(f"{name} must be > 0, or None for no clipping, not {bound}: set learner.{name}=1.0")
        if average is not None and not 0 <= average < 1:
            raise UserError(f"average is a decay in [0, 1), not {average}: set learner.average=0.99")
        self._clip_norm, self._clip_value, self._average = clip_norm, clip_value, average
        self.metaparameters: Sequence[Metaparameter] = ()
        self.train_state: TrainState | None = None
        self.step_count = 0
        self.tape = False
        self._layout: Layout | None = None
        self._decay_mask: Tensor | None = None
        self._placed: tuple[Optimizer, Optimizer] | None = None
        self._needs: Needs | None = None
        self.graphs = Graphs() if compiled else None
        self._resume: tuple[TrainState, int] | None = None

    def losses(self, batch: Batch) -> Tensor:
        """The loss of each example, [B]."""
        raise NotImplementedError("write losses(self, batch) -> [B], the loss of each example of the batch")

    # -- the learner as a function of flat vectors ------------------------------------------------------------------

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
        if self._placed is None or self._placed[0] is not self.optimizer:
            self._placed = self.optimizer, placed(self.optimizer, self.layout.names, self.layout.shapes)
        return Update(self._placed[1], self.schedule, self.decay_mask, self._clip_value, self._clip_norm, self._average)

    @property
    def decay_mask(self) -> Tensor | None:
        """[P] of 0 and 1, or None where the weight decay touches everything."""
        if self._decay is None:
            return None
        params = next(p for p in self.parameters() if p.requires_grad)
        if (
            self._decay_mask is None
            or self._decay_mask.device != params.device
            or self._decay_mask.dtype != params.dtype
        ):
            layout = self.layout
            parts = [
                torch.full((size,), float(self._decay(name, shape)))
                for name, shape, size in zip(layout.names, layout.shapes, layout.sizes, strict=True)
            ]
            self._decay_mask = torch.cat(parts).to(params)
        return self._decay_mask

    @contextmanager
    def running(self, params: Tensor, buffers: Tensor, seed: int | None, t: int) -> Iterator[None]:
        """Inside, the modules compute with these vectors and with the randomness of step t."""
        with (
            step_randomness(seed, t, params.device, foreign=self.needs.foreign_randomness),
            self._computing_with(params, buffers),
        ):
            yield

    @contextmanager
    def _computing_with(self, params: Tensor, buffers: Tensor) -> Iterator[None]:
        """Inside, the modules hold these vectors, and blocks checkpointed there hold them again when they run again."""
        with (
            default_dtype(params.dtype),
            sdpa_kernel(SDPBackend.MATH) if self.needs.math_attention else nullcontext(),
            uncompiled() if self.needs.eager else nullcontext(),
            Substitutes() if self.needs.substitutes else nullcontext(),
            self.layout.bind(params, buffers),
            recomputing_within(self, lambda: self._computing_with(params, buffers)),
        ):
            yield

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

    def probe(self, batches: Batches) -> None:
        """Before a run: in the first, one forward pass to see what the losses need in order to be replayable."""
        if self._needs is None:
            self._needs = probe(self, batches)
        if self.graphs is not None:
            self.graphs.new_run(self, batches)

    @property
    def needs(self) -> Needs:
        """What `probe` saw."""
        return self._needs or Needs()

    # -- Lightning ----------------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> None:
        """None: the optimizer is part of the step."""

    def on_train_start(self) -> None:
        batches = self.trainer.train_dataloader
        if not isinstance(batches, Batches):
            raise UserError(
                f"training data must be a metagradient Batches, not {type(batches).__name__}: a run can be replayed only "
                "where its batches are a function of the step. Wrap your tensors: Batches({'x': x, 'y': y}, epoch_plan(...))"
            )
        if self.trainer.precision not in ("32-true", "64-true"):
            raise UserError(
                f"trainer.precision={self.trainer.precision} is refused: metagradients in low precision are wrong without "
                "warning; use trainer.precision=32-true or 64-true"
            )
        if self.trainer.world_size != 1:
            raise UserError("replay runs on one device so far: set trainer.devices=1")
        self.train()
        self.probe(batches)
        if self._resume is not None:
            (self.train_state, self.step_count), self._resume = self._resume, None
            self.train_state = TrainState.of([x.to(self.device) for x in self.train_state.tensors()])
        else:
            self.train_state, self.step_count = initial_state(self, self.metaparameters), 0
        batches.from_step(self.step_count)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        assert self.train_state is not None
        t = self.step_count
        if batch.t != t:
            raise UserError(
                f"the loader gave the batch of step {batch.t} at step {t}: a run is one pass over its Batches, so set "
                "trainer.max_epochs=1 (the plan holds the epochs: epoch_plan(..., epochs=...))"
            )
        batch = cast(batch, self.train_state)
        state, loss, _ = step(self, self.train_state, batch, t, self.metaparameters, tape=self.tape)
        check_loss(loss, batch, t, self)
        self.train_state, self.step_count = state, t + 1
        # Lightning counts a manual optimizer's steps here; ModelCheckpoint, max_steps and loggers go by that count.
        progress = self.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
        progress.increment_ready()
        progress.increment_completed()

    def on_train_end(self) -> None:
        self._sync()

    def on_validation_start(self) -> None:
        self._sync()

    def _sync(self) -> None:
        if self.train_state is not None:
            self.adopt(self.train_state.detach())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.train_state is not None:
            self._sync()
            checkpoint["state_dict"] = self.state_dict()
            checkpoint["train_state"] = [x.detach().clone() for x in self.train_state.tensors()]
            checkpoint["step_count"] = self.step_count

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if "train_state" in checkpoint:
            self._resume = TrainState.of(checkpoint["train_state"]), int(checkpoint["step_count"])


class ModelLearner(Learner):
    """A learner around one model, which it holds as `model`."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | None = None,
        learning_rate: float | Schedule = 0.1,
        **settings: Any,
    ) -> None:
        super().__init__(optimizer, learning_rate, **settings)
        self.model = model

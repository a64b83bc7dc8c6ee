"""What Lightning's Trainer calls of a learner: one pass over the batches, each step the project's one step."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any

import lightning

from metagradient.distributed import Group, leaving_word
from metagradient.errors import UserError
from metagradient.learners.strategy import SharedBatches
from metagradient.training.batches import Batch, Batches
from metagradient.training.metaparameters import Metaparameter
from metagradient.training.parallel.agreement import agree_on_run
from metagradient.training.run import cast, check_loss, initial_state
from metagradient.training.state import TrainState
from metagradient.training.steps import step

# The optimizer is part of the step, so Lightning's warning that there is none, in every fit, says nothing.
warnings.filterwarnings("ignore", message=".*`LightningModule.configure_optimizers` returned `None`.*")
warnings.filterwarnings("ignore", message=".*LeafSpec.*")
# What ModelCheckpoint saves is the state after the step, as it should be.
warnings.filterwarnings("ignore", message=".*no pre-optimization state was saved.*")


class TrainerHooks(lightning.LightningModule):
    """The part of `Learner` that a `Trainer` talks to.

    Attributes:
        metaparameters: what enters the steps of a fit.
        train_state: the state after the last step of a fit; None before.
        step_count: the steps done.
        tape: whether the steps of a fit stay connected to the state and the metaparameters.
    """

    metaparameters: Sequence[Metaparameter]
    train_state: TrainState | None
    step_count: int
    tape: bool
    _resume: tuple[TrainState, int, str | None] | None
    _computing: int  # how many contexts deep the losses run
    _fitting: bool  # whether they run in a step of the fit itself

    def configure_optimizers(self) -> Any:
        """None: the optimizer is part of the step."""

    def configure_callbacks(self) -> Any:
        """The user's own; Lightning asks before anything else of a fit, so flags that the step cannot heed are refused."""
        if self.trainer.state.fn == "fit":
            refuse_flags(self.trainer)
        return super().configure_callbacks()

    def log(self, *args: Any, **kwargs: Any) -> None:
        """As ever; inside losses, in the steps of a fit only, and not when they are probed or replayed.

        Micro-batches and shares of several devices have no value of the whole batch to log, so theirs are left out, which is said
        once.
        """
        learner: Any = self  # a Learner, which stands on this class
        if self._computing and not (learner.micro_batches is None and learner.group.alone):
            _say_once(
                "self.log inside losses is left out with micro_batch and on several devices, where it would tell of a part of the batch"
            )
        elif not self._computing or self._fitting:
            super().log(*args, **kwargs)

    @property
    def global_step(self) -> int:
        """As ever; refused inside losses, where a replay and a run without a Trainer do not know it."""
        return self._known("global_step", super().global_step)

    @property
    def current_epoch(self) -> int:
        """As ever; refused inside losses."""
        return self._known("current_epoch", super().current_epoch)

    def _known(self, name: str, value: int) -> int:
        if self._computing:
            raise UserError(f"losses() read self.{name}, which only a Trainer knows: the step is batch.t")
        return value

    def on_train_start(self) -> None:
        learner: Any = self  # a Learner, which stands on this class
        super().on_train_start()
        batches = self.trainer.train_dataloader
        if not isinstance(batches, Batches):
            raise UserError(
                f"training data must be a metagradient Batches, not {type(batches).__name__}: a run can be replayed only "
                "where its batches are a function of the step. Wrap your tensors: Batches({'x': x, 'y': y}, epoch_plan(...))"
            )
        if self.trainer.max_epochs != 1 and self.trainer.max_steps > len(batches):
            raise UserError(
                f"max_steps={self.trainer.max_steps}, but the plan has {len(batches)} steps: give the Trainer max_epochs=1 (the plan "
                "holds the epochs: epoch_plan(..., epochs=...))"
            )
        if self.trainer.world_size > 1:
            learner.group = Group(self.trainer.global_rank, self.trainer.world_size)
        self.train()
        learner.probe(batches)
        if self._resume is not None:
            (self.train_state, self.step_count, made_by), self._resume = self._resume, None
            if made_by is not None and made_by != learner.update.described():
                raise UserError(
                    f"the checkpoint is of a run with {made_by}, but this learner has {learner.update.described()}: resume with the "
                    "optimizer, clipping and average that it began with"
                )
            self.train_state = TrainState.of([x.to(self.device) for x in self.train_state.tensors()])
        else:
            self.train_state, self.step_count = initial_state(learner, self.metaparameters), 0
        agree_on_run(learner, batches, self.metaparameters, self.train_state)
        batches.from_step(self.step_count)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """One step, which logs `train_loss` and `learning_rate` where there is a logger."""
        learner: Any = self  # a Learner, which stands on this class
        if self.train_state is None or self._computing:
            raise UserError(
                "training_step is the whole step of a learner, losses included: write losses(batch) -> [B], one loss for each example, "
                "without it"
            )
        t = self.step_count
        if batch.t != t:
            raise UserError(
                f"the loader gave the batch of step {batch.t} at step {t}: a run is one pass over its Batches, so give the "
                "Trainer max_epochs=1 (the plan holds the epochs: epoch_plan(..., epochs=...))"
            )
        batch = cast(batch, self.train_state)
        with leaving_word(learner.group):
            self._fitting = True
            try:
                state, loss, _ = step(learner, self.train_state, batch, t, self.metaparameters, tape=self.tape)
            finally:
                self._fitting = False
            last = t + 1 == self.trainer.num_training_batches
            check_loss(loss, batch, t, learner, self.train_state, last=last)
        self.train_state, self.step_count = state, t + 1
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if self.trainer.loggers and every and (t + 1) % every == 0:
            hyper = learner.update.hyper(t)
            for m in self.metaparameters:
                hyper = m.on_hyper(hyper, t)
            rate = float(hyper["learning_rate"])
            self.log_dict({"train_loss": loss, "learning_rate": rate}, batch_size=max(len(batch), 1))
        # Lightning counts a manual optimizer's steps here; ModelCheckpoint, max_steps and loggers go by that count.
        progress = self.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
        progress.increment_ready()
        progress.increment_completed()

    def on_train_end(self) -> None:
        self._sync()
        super().on_train_end()

    def on_validation_start(self) -> None:
        self._sync()
        super().on_validation_start()

    def _sync(self) -> None:
        learner: Any = self  # a Learner, which stands on this class
        if self.train_state is not None:
            learner.adopt(self.train_state.detach())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        learner: Any = self
        if self.train_state is not None:
            self._sync()
            checkpoint["state_dict"] = self.state_dict()
            checkpoint["train_state"] = [x.detach().clone() for x in self.train_state.tensors()]
            checkpoint["step_count"] = self.step_count
            checkpoint["update"] = learner.update.described()
        super().on_save_checkpoint(checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if "train_state" in checkpoint:
            state = TrainState.of(checkpoint["train_state"])
            self._resume = state, int(checkpoint["step_count"]), checkpoint.get("update")
        super().on_load_checkpoint(checkpoint)


@cache
def _say_once(sentence: str) -> None:
    logging.getLogger(__name__).warning("%s", sentence)


def refuse_flags(trainer: lightning.Trainer) -> None:
    """Refuse, before the first step, flags of the Trainer that a differentiated step does not heed."""
    if trainer.precision not in ("32-true", "64-true"):
        raise UserError(
            f"trainer.precision={trainer.precision} is refused: metagradients in low precision are wrong without "
            "warning; use trainer.precision=32-true or 64-true"
        )
    if trainer.world_size != 1 and not isinstance(trainer.strategy, SharedBatches):
        raise UserError(
            f"{type(trainer.strategy).__name__} would average gradients outside the differentiated step: give the Trainer "
            f"strategy=mg.SharedBatches(), or devices=1"
        )
    if trainer.gradient_clip_val:
        by_value = trainer.gradient_clip_algorithm == "value"
        raise UserError(
            f"gradient_clip_val={trainer.gradient_clip_val} would act outside the differentiated step: give the learner "
            f"{'clip_value' if by_value else 'clip_norm'}={trainer.gradient_clip_val}"
        )
    if trainer.accumulate_grad_batches != 1:
        raise UserError(
            f"accumulate_grad_batches={trainer.accumulate_grad_batches} would act outside the differentiated step: make the "
            "plan's batches larger and give the learner micro_batch=..., the rows that fit into memory"
        )
    if trainer.max_epochs not in (1, None, -1) or (trainer.max_epochs != 1 and trainer.max_steps in (-1, None)):
        raise UserError(
            f"max_epochs={trainer.max_epochs}, but one pass over a Batches is the whole run: give the Trainer max_epochs=1 (the plan "
            "holds the epochs: epoch_plan(..., epochs=...))"
        )
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        _refuse_callback(callback)
    overfit = getattr(trainer, "overfit_batches", 0)
    if overfit:
        raise UserError(
            f"overfit_batches={overfit} repeats batches, but the plan decides their order: give Batches a plan of "
            "those rows"
        )


_FOREIGN = (
    "WeightAveraging",
    "EMAWeightAveraging",
    "StochasticWeightAveraging",
    "GradientAccumulationScheduler",
    "BaseFinetuning",
)
_UNHEARD = ("on_before_backward", "on_after_backward", "on_before_optimizer_step", "on_before_zero_grad")


def _refuse_callback(callback: lightning.Callback) -> None:
    """Callbacks that change the parameters, the gradients or the optimizer, which are those of the differentiated step."""
    names = {kind.__name__ for kind in type(callback).__mro__}
    for name in _FOREIGN:
        if name in names:
            hint = "give the learner average=0.99" if "Averaging" in name else "leave it out"
            raise UserError(f"{type(callback).__name__} would act outside the differentiated step: {hint}")
    heard = [name for name in _UNHEARD if getattr(type(callback), name) is not getattr(lightning.Callback, name)]
    if heard and not type(callback).__module__.startswith("lightning."):
        raise UserError(
            f"the callback {type(callback).__name__} defines {', '.join(heard)}, which is never called: gradients and updates are inside "
            "the differentiated step"
        )

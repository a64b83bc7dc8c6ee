"""The Lightning callback that does the replay: gradients are ready when `fit` returns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning
from torch import Tensor

from metagradient.errors import UserError
from metagradient.learners.learner import Learner
from metagradient.replay.adjoint import Objective
from metagradient.replay.metagradients import HowToReplay, Metagradients, finish_recording, start_recording
from metagradient.replay.progress import ReplayBar
from metagradient.replay.recording import Recording
from metagradient.replay.storage import Storage
from metagradient.training.batches import Batches
from metagradient.training.metaparameters import Metaparameter
from metagradient.training.run import Progress


class Metagradient(lightning.Callback):
    """Records the fit and, at its end, replays it backwards.

        callback = Metagradient(DataWeights(torch.ones(n)), mean_loss(validation))
        Trainer(max_epochs=1, callbacks=[callback]).fit(learner, batches)
        callback.gradients["weights"]

    Arguments as in :func:`metagradient.metagradient`; `progress` takes the place of the bar that runs backwards.
    After the fit, `result` holds the `Metagradients` and the learner the trained parameters.
    """

    def __init__(
        self,
        metaparameters: Metaparameter | Sequence[Metaparameter],
        objective: Objective,
        *,
        checkpoints: str = "auto",
        memory: str | int | None = None,
        storage: str | Storage = "memory",
        save_to: str | Path | None = None,
        save_every: float = 300.0,
        progress: Progress | None = None,
    ) -> None:
        self.metaparameters = [metaparameters] if isinstance(metaparameters, Metaparameter) else list(metaparameters)
        self.objective, self.progress = objective, progress
        self.how = HowToReplay(checkpoints, memory, storage, save_to, save_every)
        self.result: Metagradients | None = None
        self._recording: Recording | None = None

    @property
    def gradients(self) -> dict[str, Tensor]:
        """d objective / d value by metaparameter name; after `fit`."""
        if self.result is None:
            raise RuntimeError("no metagradient yet: it is ready when Trainer.fit has returned")
        return self.result.gradients

    def on_fit_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        if not isinstance(module, Learner):
            raise UserError(f"the Metagradient callback needs a metagradient Learner, not {type(module).__name__}")
        self.result = self._recording = None
        module.metaparameters = self.metaparameters

    def on_train_epoch_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        if self._recording is None:
            self._recording = self._begin(trainer, module)

    def _begin(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> Recording:
        """The recording of a fit that runs from its first step, or from the one at which a saved replay goes on."""
        assert isinstance(module, Learner)
        if module.step_count > 0:
            raise UserError(
                f"the run was resumed at step {module.step_count}, but its metagradient needs the steps before: fit from the start"
            )
        batches = trainer.train_dataloader
        assert isinstance(batches, Batches)
        _refuse_short(trainer, len(batches))
        recording, module.train_state = start_recording(module, batches, self.metaparameters, self.objective, self.how)
        module.step_count = recording.start
        batches.from_step(recording.start)
        return recording

    def on_train_batch_start(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(module, Learner)
        assert module.train_state is not None
        if self._recording is None:  # an epoch that is resumed in its middle does not start
            self._recording = self._begin(trainer, module)
        recording = self._recording
        module.train_state = recording.enter(module.step_count, module.train_state)
        module.metaparameters, module.tape = recording.z, recording.taping

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.progress is not None:
            assert isinstance(module, Learner)
            self.progress("training", module.step_count, len(trainer.train_dataloader))  # type: ignore[arg-type]

    def on_exception(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, exception: BaseException
    ) -> None:
        self._recording = None
        if isinstance(module, Learner):
            module.metaparameters, module.tape = (), False

    def on_train_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        assert isinstance(module, Learner)
        recording, self._recording = self._recording, None
        module.metaparameters, module.tape = (), False
        if (
            recording is None
            or module.train_state is None
            or module.step_count < recording.first + recording.plan.steps
        ):
            return  # stopped early: there is no end of training to differentiate
        recording.finish(module.train_state)
        module.train_state = module.train_state.detach()  # the graph must go once it is pulled
        if self.progress is not None:
            self.result = finish_recording(recording, self.objective, self.progress)
        else:
            with ReplayBar(enabled=trainer.progress_bar_callback is not None) as bar:
                self.result = finish_recording(recording, self.objective, bar)
        module.train_state = self.result.state


def _refuse_short(trainer: lightning.Trainer, steps: int) -> None:
    """A replay starts at the end of the plan, so the Trainer must get there."""
    limits = {"max_steps": trainer.max_steps, "limit_train_batches": trainer.num_training_batches}
    for name, limit in limits.items():
        if limit not in (None, -1) and limit < steps:
            raise UserError(
                f"{name} ends the fit after {int(limit)} of {steps} steps, but a metagradient needs the whole run: shorten the plan, "
                f"Batches(examples, plan[:{int(limit)}])"
            )

"""A stranger's Learner and a plain Trainer: the gradient is there after `fit`."""

from typing import Any

import lightning
import pytest
import torch
import torch.nn.functional as F
from lightning import Trainer
from torch import Tensor, nn
from toys import N, batches, examples, fit, mlp, relative

import metagradient as mg
from metagradient.errors import UserError
from metagradient.training.run import NonFiniteLoss

DATA, HELD_OUT = examples(), examples(7, seed=3)


class Stranger(mg.Learner):
    """Twenty lines of someone who has read one page: a ridge-like regression of labels on two views of the input."""

    def __init__(self) -> None:
        super().__init__(optimizer=mg.SGD(momentum=0.9), learning_rate=0.05)
        self.encoder = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.GELU(), nn.Dropout(0.1))
        self.head = nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x) + self.encoder(-x)).squeeze(1)

    def losses(self, batch: mg.Batch) -> Tensor:
        return F.mse_loss(self(batch.x), batch.y.to(batch.x.dtype), reduction="none")

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val", F.mse_loss(self(batch[0]), batch[1].to(batch[0].dtype)))


def test_a_stranger_gets_the_gradient_after_fit(tmp_path: Any) -> None:
    torch.manual_seed(3)
    learner = Stranger()
    twin = Stranger()
    twin.load_state_dict(learner.state_dict())

    data = mg.Batches({k: v.float() if k == "x" else v for k, v in DATA.items()}, mg.epoch_plan(N, 4, epochs=3, seed=0))
    callback = mg.Metagradient(mg.DataWeights(torch.ones(N)), mg.mean_loss(HELD_OUT))
    trainer = Trainer(max_epochs=1, callbacks=[callback], default_root_dir=tmp_path, accelerator="cpu")
    trainer.fit(learner, data)

    assert callback.gradients["weights"].shape == (N,)
    assert callback.result is not None
    ours = mg.metagradient(twin, data, mg.DataWeights(torch.ones(N)), mg.mean_loss(HELD_OUT))
    assert torch.equal(callback.gradients["weights"], ours["weights"])
    assert torch.equal(callback.result.objective, ours.objective)
    assert torch.equal(learner.layout.params(), ours.state.params)
    learner.eval()
    with torch.no_grad():
        assert torch.equal(mg.mean_loss(HELD_OUT)(learner), ours.objective)


@pytest.mark.parametrize("plan", ["tape", "all", "binomial(2)", "auto"])
def test_callback_and_function_agree_to_the_bit(plan: str) -> None:
    z = [
        mg.DataWeights(torch.ones(N), start=3),
        mg.LearningRates(torch.tensor([0.1, 0.3, 0.1]), steps=9),
        mg.InputPerturbation(torch.zeros(2, 4), index=torch.tensor([1, 6])),
    ]
    learner, twin = (mg.Classifier(mlp(), mg.Adam(), 0.1) for _ in range(2))
    callback = mg.Metagradient(z, mg.example_losses(HELD_OUT), checkpoints=plan)
    fit(learner, batches(DATA), callback, precision="64-true")
    ours = mg.metagradient(twin, batches(DATA), z, mg.example_losses(HELD_OUT), checkpoints=plan)
    assert callback.result is not None
    assert callback.result.plan == ours.plan
    for m in z:
        assert torch.equal(callback.gradients[m.name], ours[m.name])


def test_first_step_later_in_the_run() -> None:
    z, phi = mg.DataWeights(torch.ones(N), start=6), mg.mean_loss(HELD_OUT)
    learner, twin = (mg.Classifier(mlp(), mg.SGD(0.9), 0.1) for _ in range(2))
    callback = mg.Metagradient(z, phi, checkpoints="all")
    fit(learner, batches(DATA), callback, precision="64-true")
    ours = mg.metagradient(twin, batches(DATA), z, phi, checkpoints="all")
    assert torch.equal(callback.gradients["weights"], ours["weights"])


def test_a_plain_fit_takes_the_values_of_the_learners_metaparameters() -> None:
    start = torch.randn(43, dtype=torch.float64)
    z = [mg.DataWeights(torch.linspace(0, 2, N)), mg.InitialParameters(start), mg.LearningRates(torch.full((9,), 0.2))]
    learner = mg.Classifier(mlp(), mg.SGD(0.9), 0.1)
    learner.metaparameters = z
    fit(learner, batches(DATA), precision="64-true")
    assert (
        relative(learner.layout.params(), mg.train(mg.Classifier(mlp(), mg.SGD(0.9), 0.1), batches(DATA), z).params)
        < 1e-14
    )


def test_one_callback_serves_fit_after_fit() -> None:
    """A second fit goes on from the trained parameters and has a gradient of its own."""
    learner, twin = (mg.Classifier(mlp(), mg.SGD(0.9), 0.1) for _ in range(2))
    callback = mg.Metagradient(mg.DataWeights(torch.ones(N)), mg.mean_loss(HELD_OUT))
    fit(learner, batches(DATA), callback, precision="64-true")
    first = callback.gradients["weights"]
    twin.adopt(mg.train(twin, batches(DATA)))
    fit(learner, batches(DATA), callback, precision="64-true")
    ours = mg.metagradient(twin, batches(DATA), mg.DataWeights(torch.ones(N)), mg.mean_loss(HELD_OUT))
    assert relative(callback.gradients["weights"], ours["weights"]) < 1e-12
    assert relative(first, ours["weights"]) > 0.01


def test_the_gradient_is_not_there_before_fit_or_after_one_cut_short() -> None:
    callback = mg.Metagradient(mg.DataWeights(torch.ones(N)), mg.mean_loss(HELD_OUT))
    with pytest.raises(RuntimeError, match=r"ready when Trainer\.fit has returned"):
        _ = callback.gradients
    fit(mg.Classifier(mlp()), batches(DATA), callback)
    assert callback.result is not None

    class Early(lightning.Callback):
        def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
            trainer.should_stop = trainer.global_step == 3

    fit(mg.Classifier(mlp()), batches(DATA), callback, Early())
    assert callback.result is None


def test_a_fit_that_fails_leaves_the_learner_ready_for_the_next() -> None:
    class Stop(lightning.Callback):
        def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
            if trainer.global_step == 6:
                raise NonFiniteLoss("stop", 6)

    learner, fresh = mg.Classifier(mlp()), mg.Classifier(mlp())
    callback = mg.Metagradient(mg.DataWeights(torch.zeros(N)), mg.mean_loss(HELD_OUT), checkpoints="tape")
    with pytest.raises(NonFiniteLoss):
        fit(learner, batches(DATA), callback, Stop())
    assert learner.metaparameters == ()
    fit(learner, batches(DATA))
    fit(fresh, batches(DATA))
    assert torch.equal(learner.layout.params(), fresh.layout.params())


def test_a_resumed_run_has_no_metagradient_and_says_so(tmp_path: Any) -> None:
    class Save(lightning.Callback):
        def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
            if trainer.global_step == 4:
                trainer.save_checkpoint(tmp_path / "mid.ckpt")

    z, phi = mg.DataWeights(torch.ones(N)), mg.mean_loss(HELD_OUT)
    watched = mg.Classifier(mlp())
    fit(watched, batches(DATA), mg.Metagradient(z, phi, checkpoints="tape"), Save())
    resumed = mg.Classifier(mlp())
    fit(resumed, batches(DATA), ckpt_path=tmp_path / "mid.ckpt")  # a checkpoint saved while taping is a checkpoint
    assert relative(resumed.layout.params(), watched.layout.params()) < 1e-6
    with pytest.raises(UserError, match=r"^the run was resumed at step 4, but its metagradient needs[^\n]*$"):
        fit(mg.Classifier(mlp()), batches(DATA), mg.Metagradient(z, phi), ckpt_path=tmp_path / "mid.ckpt")


def test_only_learners_have_metagradients() -> None:
    class Other(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 1)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self.layer(batch[0]).sum()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.1)

    with pytest.raises(UserError, match=r"^the Metagradient callback needs a metagradient Learner, not Other$"):
        fit(Other(), batches(DATA), mg.Metagradient(mg.DataWeights(torch.ones(N)), mg.mean_loss(HELD_OUT)))


def test_progress_runs_through_training_and_back() -> None:
    calls: list[tuple[str, int, int]] = []
    callback = mg.Metagradient(
        mg.DataWeights(torch.ones(N)),
        mg.mean_loss(HELD_OUT),
        checkpoints="all",
        progress=lambda *call: calls.append(call),
    )
    fit(mg.Classifier(mlp()), batches(DATA), callback)
    replay = [(done, total) for what, done, total in calls if what == "replay"]
    assert replay == [(done, 9) for done in range(10)]  # the bar is there before the first pull

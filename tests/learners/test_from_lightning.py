"""An existing LightningModule through the callback: its gradient, its logs, its checkpoints, and what is refused."""

from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, TensorDataset

import metagradient as mg
from metagradient.errors import UserError
from metagradient.training.batches import Batch

N, STEPS = 24, 12


def data(seed: int = 1) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {"x": torch.randn(N, 5, generator=g, dtype=torch.float64), "y": torch.randint(3, (N,), generator=g)}


class Module(lightning.LightningModule):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.save_hyperparameters()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(5, width), nn.GELU(), nn.Linear(width, 3)).double()
        self.started = self.validated = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def on_train_start(self) -> None:
        self.started += 1

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        raise AssertionError("a learner's step is the project's")

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.validated += 1
        self.log("val_loss", F.cross_entropy(self(x), y))

    def losses(self, batch: Batch) -> Tensor:
        found = F.cross_entropy(self(batch.x), batch.y, reduction="none")
        self.log("my_loss", found.mean(), on_step=True, on_epoch=False)
        return found

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
        steps = int(self.trainer.estimated_stepping_batches)
        return [optimizer], [{"scheduler": OneCycleLR(optimizer, 0.05, steps), "interval": "step"}]


def batches() -> mg.Batches:
    return mg.Batches(data(), mg.epoch_plan(N, 8, 4, seed=0), seed=3)


def trainer(**settings: Any) -> lightning.Trainer:
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return lightning.Trainer(**(quiet | {"max_epochs": 1, "accelerator": "cpu"} | settings))


def test_a_fit_leaves_the_metagradient_of_the_module_itself() -> None:
    held_out = data(2)
    callback = mg.Metagradient(mg.DataWeights(torch.ones(N, dtype=torch.float64)), mg.mean_loss(held_out))
    module = Module()
    learner = mg.Learner.from_lightning(module)
    trainer(callbacks=[callback]).fit(learner, batches())
    assert learner is module
    assert module.started == 1

    def value(weights: Tensor) -> float:
        other = mg.Learner.from_lightning(Module())
        other.adopt(mg.train(other, batches(), (mg.DataWeights(weights),)))
        with torch.no_grad():
            return float(F.cross_entropy(other(held_out["x"]), held_out["y"]))

    direction = callback.gradients["weights"] / callback.gradients["weights"].norm()
    at, h = torch.ones(N, dtype=torch.float64), 1e-4
    slope = (value(at + h * direction) - value(at - h * direction)) / (2 * h)
    assert float(callback.gradients["weights"] @ direction) == pytest.approx(slope, rel=1e-6)


def test_losses_log_once_a_step_and_never_from_a_probe_or_a_replay(tmp_path: Path) -> None:
    callback = mg.Metagradient(
        mg.DataWeights(torch.ones(N, dtype=torch.float64)), mg.mean_loss(data(2)), checkpoints="binomial(2)"
    )
    logger = CSVLogger(tmp_path, name="", version="")
    learner = mg.Learner.from_lightning(Module())
    held_out = DataLoader(TensorDataset(*data(2).values()), batch_size=8)
    trainer(callbacks=[callback], logger=logger, log_every_n_steps=1).fit(learner, batches(), held_out)
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    rows = [dict(zip(lines[0].split(","), line.split(","), strict=True)) for line in lines[1:]]
    logged = [row for row in rows if row["my_loss"]]
    assert [int(row["step"]) for row in logged] == list(range(STEPS))
    for t, row in enumerate(logged):
        assert float(row["train_loss"]) == pytest.approx(float(row["my_loss"]), rel=1e-6)
        assert float(row["learning_rate"]) == pytest.approx(learner.schedule(t), rel=1e-6)
    assert sum(bool(row["val_loss"]) for row in rows) == 1
    assert learner.validated == 3 + 2  # two of Lightning's sanity check


def test_checkpoints_are_the_users_own(tmp_path: Path) -> None:
    saved = ModelCheckpoint(tmp_path, filename="last")
    learner = mg.Learner.from_lightning(Module(width=6))
    trainer(callbacks=[saved], enable_checkpointing=True).fit(learner, batches())
    loaded = Module.load_from_checkpoint(tmp_path / "last.ckpt")
    assert loaded.hparams["width"] == 6
    for (name, p), (other, q) in zip(learner.named_parameters(), loaded.named_parameters(), strict=True):
        assert name == other
        assert torch.equal(p, q)


class Configured(mg.Learner):
    """A Learner subclass that keeps its configure_optimizers."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        torch.manual_seed(0)
        self.net = nn.Linear(5, 3).double()

    def losses(self, batch: Batch) -> Tensor:
        return F.cross_entropy(self.net(batch.x), batch.y, reduction="none")

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.3, momentum=0.5)


class Stepping(Configured):
    def training_step(self, batch: Any, batch_idx: int) -> None:
        pass


def test_a_learners_own_configure_optimizers_is_used() -> None:
    ours = Configured()
    by_trainer = Configured()
    trainer().fit(by_trainer, batches())
    ours.adopt(mg.train(ours, batches()))
    plain = mg.Classifier(nn.Linear(5, 3).double(), mg.SGD(0.5), 0.3)
    plain.model.load_state_dict(Configured().net.state_dict())
    plain.adopt(mg.train(plain, batches()))
    assert torch.equal(ours.net.weight, by_trainer.net.weight)
    torch.testing.assert_close(ours.net.weight, plain.model.weight, rtol=1e-12, atol=0)
    with pytest.raises(UserError, match="leave one out"):
        Configured(optimizer=mg.SGD())


def test_a_learners_own_training_step_is_refused() -> None:
    with pytest.raises(UserError, match=r"Stepping has a training_step of its own.*write losses\(batch\)"):
        trainer().fit(Stepping(), batches())


class Manual(Module):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


class Clipping(Module):
    def on_before_optimizer_step(self, optimizer: Any) -> None:
        nn.utils.clip_grad_norm_(self.parameters(), 1.0)


class Clashing(Module):
    def __init__(self) -> None:
        super().__init__()
        self.schedule = "mine"

    def update(self) -> None:
        pass


class WithoutLosses(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(5, 3)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Manual, "automatic_optimization=False"),
        (Clipping, r"defines on_before_optimizer_step.*clip_norm"),
        (Clashing, "called schedule, update"),
        (WithoutLosses, r"no method losses\(batch\)"),
        (lambda: nn.Linear(2, 2), "needs a LightningModule, not Linear"),
        (lambda: mg.Learner.from_lightning(Module()), "is a Learner already"),
    ],
)
def test_modules_that_would_train_otherwise_are_refused(module: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        mg.Learner.from_lightning(module())


@pytest.mark.parametrize("name", ["optimizer", "decay"])
def test_settings_that_configure_optimizers_decides_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"leave {name}=... out"):
        mg.Learner.from_lightning(Module(), **{name: None})


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"gradient_clip_val": 0.5}, r"clip_norm=0\.5"),
        ({"gradient_clip_val": 0.5, "gradient_clip_algorithm": "value"}, r"clip_value=0\.5"),
        ({"accumulate_grad_batches": 2}, "micro_batch"),
        ({"max_epochs": 3}, "give the Trainer max_epochs=1"),
        ({"max_epochs": None}, "give the Trainer max_epochs=1"),
        ({"max_epochs": None, "max_steps": 50}, "the plan has 12 steps"),
        ({"max_epochs": None, "max_steps": 5}, r"ends the fit after 5 of 12 steps.*plan\[:5\]"),
        ({"limit_train_batches": 4}, r"ends the fit after 4 of 12 steps.*plan\[:4\]"),
        ({"limit_train_batches": 0.5}, r"plan\[:6\]"),
        ({"fast_dev_run": True}, r"ends the fit after 1 of 12 steps"),
        ({"overfit_batches": 1}, "overfit_batches=1"),
        ({"precision": "bf16-mixed"}, r"trainer\.precision=32-true"),
    ],
)
def test_flags_that_a_replay_cannot_heed_are_refused_before_the_first_step(flags: dict[str, Any], message: str) -> None:
    callback = mg.Metagradient(mg.DataWeights(torch.ones(N, dtype=torch.float64)), mg.mean_loss(data(2)))
    learner = mg.Learner.from_lightning(Module())
    with pytest.raises(UserError, match=message):
        trainer(callbacks=[callback], **flags).fit(learner, batches())
    assert learner.step_count == 0


@pytest.mark.parametrize("flags", [{"max_epochs": None, "max_steps": 5}, {"limit_train_batches": 5}])
def test_without_a_replay_limits_do_what_they_say(flags: dict[str, Any]) -> None:
    learner = mg.Learner.from_lightning(Module())
    trainer(**flags).fit(learner, batches())
    assert learner.step_count == 5


def test_validation_alone_is_lightnings() -> None:
    learner = mg.Learner.from_lightning(Module())
    held_out = DataLoader(TensorDataset(*data(2).values()), batch_size=8)
    (found,) = trainer(gradient_clip_val=1.0, max_epochs=7).validate(learner, held_out, verbose=False)
    assert found["val_loss"] > 0

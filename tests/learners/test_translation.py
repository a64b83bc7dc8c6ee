"""Two hundred steps of an existing LightningModule: trained by Lightning and torch, and as a learner, to 1e-9."""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import lightning
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import lr_scheduler as lrs
from torch.utils.data import DataLoader, TensorDataset

import metagradient as mg
from metagradient.errors import UserError
from metagradient.training.batches import Batch

N, BATCH, EPOCHS = 40, 8, 40
STEPS = EPOCHS * N // BATCH  # 200


class Module(lightning.LightningModule):
    """As people write them: a network, a training_step, a configure_optimizers."""

    def __init__(self, configure: Callable[["Module"], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.LayerNorm(8), nn.Linear(8, 3, bias=False))
        self.frozen = nn.Linear(3, 3)
        self.frozen.requires_grad_(False)
        self.configure = configure
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.frozen(self.net(x))

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return F.cross_entropy(self(x), y)

    def configure_optimizers(self) -> Any:
        return self.configure(self)


def losses(module: Module, batch: Batch) -> Tensor:
    return F.cross_entropy(module(batch.x), batch.y, reduction="none")


def data() -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(1)
    return {"x": torch.randn(N, 5, generator=g, dtype=torch.float64), "y": torch.randint(3, (N,), generator=g)}


def fit(module: lightning.LightningModule, loader: Any, epochs: int, **settings: Any) -> None:
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )
    trainer.fit(module, loader)


def ordinary(module: Module, **settings: Any) -> Tensor:
    """All parameters after torch's own training."""
    examples = data()
    fit(module, DataLoader(TensorDataset(examples["x"], examples["y"]), batch_size=BATCH), EPOCHS, **settings)
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def as_learner(module: Module, **settings: Any) -> Tensor:
    learner = mg.Learner.from_lightning(module, losses, eps_root=0.0, **settings)
    assert learner is module
    plan = mg.given_plan([list(range(i, i + BATCH)) for i in range(0, N, BATCH)] * EPOCHS)
    fit(learner, mg.Batches(data(), plan), 1)
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def groups(module: Module) -> list[dict[str, Any]]:
    """The usual two: no decay for what has one dimension."""
    matrices = [p for p in module.net.parameters() if p.dim() > 1]
    others = [p for p in module.net.parameters() if p.dim() == 1]
    return [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0, "lr": 0.02}]


def stepwise(optimizer: torch.optim.Optimizer, scheduler: Any) -> dict[str, Any]:
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def sgd(module: Module, **settings: Any) -> torch.optim.SGD:
    return torch.optim.SGD(module.net.parameters(), **({"lr": 0.1, "momentum": 0.9} | settings))


def adamw_one_cycle(module: Module) -> Any:
    optimizer = torch.optim.AdamW(groups(module), lr=0.01)
    steps = int(module.trainer.estimated_stepping_batches)
    return stepwise(optimizer, lrs.OneCycleLR(optimizer, max_lr=[0.02, 0.05], total_steps=steps))


def sgd_one_cycle(module: Module) -> Any:
    optimizer = sgd(module, nesterov=True, weight_decay=0.01)
    return stepwise(optimizer, lrs.OneCycleLR(optimizer, max_lr=0.2, total_steps=STEPS))


def cosine_epochs(module: Module) -> Any:
    optimizer = sgd(module)
    return [optimizer], [lrs.CosineAnnealingLR(optimizer, T_max=module.trainer.max_epochs)]


def warmup_then_cosine(module: Module) -> Any:
    optimizer = torch.optim.Adam(module.net.parameters(), lr=0.02, weight_decay=0.05, betas=(0.8, 0.95))
    warm, cool = lrs.LinearLR(optimizer, 0.1, total_iters=20), lrs.CosineAnnealingLR(optimizer, STEPS - 20)
    return stepwise(optimizer, lrs.SequentialLR(optimizer, [warm, cool], [20]))


def step_epochs(module: Module) -> Any:
    optimizer = sgd(module)
    config = {"scheduler": lrs.StepLR(optimizer, 5, gamma=0.7), "interval": "epoch", "frequency": 2}
    return {"optimizer": optimizer, "lr_scheduler": config}


def lambdas(module: Module) -> Any:
    optimizer = torch.optim.SGD(groups(module), lr=0.05, momentum=0.8)
    rates = [lambda t: math.cos(t / STEPS), lambda t: 1 / (1 + t / 50)]
    return stepwise(optimizer, lrs.LambdaLR(optimizer, rates))


CONFIGURATIONS: dict[str, Callable[[Module], Any]] = {
    "sgd": lambda m: sgd(m, momentum=0.0),
    "momentum": sgd,
    "nesterov with decay": lambda m: sgd(m, nesterov=True, weight_decay=0.02),
    "adam": lambda m: torch.optim.Adam(
        m.net.parameters(), lr=torch.tensor(0.01, dtype=torch.float64), weight_decay=0.02
    ),
    "adam, decoupled": lambda m: torch.optim.Adam(
        m.net.parameters(), lr=0.01, weight_decay=0.02, decoupled_weight_decay=True
    ),
    "adamw": lambda m: {"optimizer": torch.optim.AdamW(m.parameters(), lr=0.01, weight_decay=0.2)},
    "adamw, groups": lambda m: [torch.optim.AdamW(groups(m), lr=0.01)],
    "a part of the network": lambda m: torch.optim.AdamW(m.net[0].parameters(), lr=0.01),
    "adamw, groups, one cycle": adamw_one_cycle,
    "sgd, one cycle": sgd_one_cycle,
    "sgd, cosine, epochs": cosine_epochs,
    "adam, warm-up, cosine": warmup_then_cosine,
    "sgd, steps, every second epoch": step_epochs,
    "sgd, groups, lambdas": lambdas,
}


@pytest.mark.parametrize("configure", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_two_hundred_steps_end_where_torchs_end(configure: Callable[[Module], Any]) -> None:
    theirs, ours = ordinary(Module(configure)), as_learner(Module(configure))
    start = torch.cat([p.detach().flatten() for p in Module(configure).parameters()])
    assert float((theirs - start).norm()) > 0.1  # it did train
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({"gradient_clip_val": 0.05}, {"clip_norm": 0.05}),
        ({"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"}, {"clip_value": 0.01}),
    ],
    ids=["norm", "value"],
)
def test_clipped_runs_are_those_of_the_trainers_flag(theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    torch.testing.assert_close(as_learner(Module(sgd), **ours), ordinary(Module(sgd), **theirs), rtol=1e-9, atol=1e-9)


class Reference(torch.optim.Optimizer):
    """Muon in float64, parameter by parameter, by singular values; AdamW for what is no matrix."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            for p in group["params"]:
                m = self.state[p].setdefault("m", torch.zeros_like(p))
                m.mul_(0.95).add_(p.grad, alpha=0.05)
                u, s, v = torch.linalg.svd((d := 0.05 * p.grad + 0.95 * m) / d.norm(), full_matrices=False)
                for _ in range(5):
                    s = 3.4445 * s - 4.775 * s**3 + 2.0315 * s**5
                scale = max(1, p.shape[0] / p.shape[1]) ** 0.5
                p.mul_(1 - group["lr"] * 0.1).sub_(u @ torch.diag(s) @ v, alpha=group["lr"] * scale)
        return loss


def test_muon_is_translated_to_its_update_in_full_precision() -> None:
    def muon(module: Module) -> Any:
        for p in module.net.parameters():
            p.requires_grad_(p.dim() == 2)
        matrices = [p for p in module.net.parameters() if p.requires_grad]
        optimizer = torch.optim.Muon([{"params": matrices[:1]}, {"params": matrices[1:], "lr": 0.005}], lr=0.02)
        return stepwise(optimizer, lrs.LinearLR(optimizer, 1.0, 0.1, STEPS))

    def reference(module: Module) -> Any:
        for p in module.net.parameters():
            p.requires_grad_(p.dim() == 2)
        matrices = [p for p in module.net.parameters() if p.requires_grad]
        optimizer = Reference([{"params": matrices[:1]}, {"params": matrices[1:], "lr": 0.005}], lr=0.02)
        return stepwise(optimizer, lrs.LinearLR(optimizer, 1.0, 0.1, STEPS))

    torch.testing.assert_close(as_learner(Module(muon)), ordinary(Module(reference)), rtol=1e-9, atol=1e-9)


def plateau(module: Module) -> Any:
    optimizer = sgd(module)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": lrs.ReduceLROnPlateau(optimizer), "monitor": "loss"}}


class Own(torch.optim.SGD):
    pass


@pytest.mark.parametrize(
    ("configure", "message"),
    [
        (plateau, "ReduceLROnPlateau is no function of the step"),
        (lambda m: torch.optim.RMSprop(m.net.parameters()), "RMSprop has no differentiable rule"),
        (lambda m: Own(m.net.parameters(), lr=0.1), "Own has no differentiable rule"),
        (lambda m: torch.optim.Adam(m.net.parameters(), amsgrad=True), "amsgrad=True"),
        (lambda m: torch.optim.SGD(m.net.parameters(), lr=0.1, momentum=0.9, dampening=0.5), "dampening=0.5"),
        (lambda m: torch.optim.SGD(m.net.parameters(), lr=0.1, maximize=True), "maximize=True"),
        (lambda m: [sgd(m), sgd(m)], "2 optimizers"),
        (lambda m: None, "returns None"),
        (lambda m: sgd(m, lr=0.1 / len(m.trainer.callbacks)), "reads trainer.callbacks"),
    ],
)
def test_what_cannot_be_translated_is_refused_by_name(configure: Callable[[Module], Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        as_learner(Module(configure))


def test_an_epochs_length_that_is_not_known_is_asked_for() -> None:
    rows = [list(range(BATCH))] * 7  # no whole epochs of five steps
    learner = mg.Learner.from_lightning(Module(cosine_epochs), losses)
    with pytest.raises(UserError, match="steps_per_epoch"):
        learner.probe(mg.Batches(data(), mg.given_plan(rows)))
    told = mg.Learner.from_lightning(Module(cosine_epochs), losses, steps_per_epoch=7)
    told.probe(mg.Batches(data(), mg.given_plan(rows)))


def test_a_run_is_translated_anew_for_another_length_and_copies_translate_for_themselves() -> None:
    learner = mg.Learner.from_lightning(Module(adamw_one_cycle), losses)
    plan = mg.epoch_plan(N, BATCH, 4, seed=0)
    copied = copy.deepcopy(learner)
    learner.probe(mg.Batches(data(), plan))
    copied.probe(mg.Batches(data(), plan[:10]))
    assert learner.schedule(10) != copied.schedule(9)
    learner.probe(mg.Batches(data(), plan[:10]))
    assert [learner.schedule(t) for t in range(10)] == [copied.schedule(t) for t in range(10)]

"""Habits of Lightning projects that would train otherwise here: the same, or refused by name."""

import pickle
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint, StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, StepLR

import metagradient as mg
from metagradient.attribution import ExampleGradients
from metagradient.errors import UserError
from metagradient.studies.saved import save_model
from metagradient.training.batches import Batch
from metagradient.training.plans import steps_per_epoch

N = 20


def data(n: int = N) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(0)
    return {"x": torch.randn(n, 4, generator=g, dtype=torch.float64), "y": torch.arange(n) % 2}


class Lit(lightning.LightningModule):
    """Two layers, two groups; the rate of the second is ten times the first's."""

    def __init__(self, scheduler: Any = None, interval: str = "step") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.lr = nn.Linear(4, 4).double(), nn.Linear(4, 2).double(), 0.01
        self.scheduler, self.interval = scheduler, interval

    def losses(self, batch: Batch) -> Tensor:
        return F.cross_entropy(self.b(torch.tanh(self.a(batch.x))), batch.y, reduction="none")

    def configure_optimizers(self) -> Any:
        groups = [{"params": self.a.parameters()}, {"params": self.b.parameters(), "lr": 10 * self.lr}]
        optimizer = torch.optim.SGD(groups, lr=self.lr)
        if self.scheduler is None:
            return optimizer
        return [optimizer], [{"scheduler": self.scheduler(optimizer), "interval": self.interval}]


def learner(**settings: Any) -> mg.Learner:
    return mg.Learner.from_lightning(Lit(**settings))


def batches(steps: int = 4) -> mg.Batches:
    return mg.Batches(data(), mg.epoch_plan(N, 5, 10, seed=0)[:steps], seed=1)


def trainer(*callbacks: Any, **settings: Any) -> lightning.Trainer:
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return lightning.Trainer(callbacks=list(callbacks), **(quiet | {"max_epochs": 1, "accelerator": "cpu"} | settings))


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        (mg.epoch_plan(100, 32, 4, seed=0), 4),
        (mg.epoch_plan(100, 32, 4, seed=0, drop_last=True), None),
        (mg.epoch_plan(50, 10, 4, seed=0), None),  # half of the rows
        (mg.count_plan(torch.full((100,), 2), 50, 3, seed=0), None),
        (mg.full_batch_plan(100, 7), 1),
        (mg.epoch_plan(100, 25, 2, seed=0)[:5], 4),
    ],
)
def test_the_length_of_an_epoch_is_read_off_the_plan(plan: Tensor, expected: int | None) -> None:
    assert steps_per_epoch(plan, 100) == expected


def test_an_epoch_that_the_plan_does_not_show_is_asked_for() -> None:
    run = mg.Learner.from_lightning(Lit(lambda o: StepLR(o, 1), "epoch"))
    with pytest.raises(UserError, match="steps_per_epoch"):
        run.probe(mg.Batches(data(), mg.epoch_plan(N, 6, 3, seed=0, drop_last=True)))


def test_groups_keep_their_ratio_where_all_rates_are_zero() -> None:
    rates = torch.full((4,), 0.1, dtype=torch.float64)
    warm = learner(scheduler=lambda o: LambdaLR(o, lambda t: t / 4))
    found = mg.metagradient(warm, batches(), mg.LearningRates(rates), mg.mean_loss(data()))
    plain = mg.metagradient(learner(), batches(), mg.LearningRates(rates), mg.mean_loss(data()))
    torch.testing.assert_close(found["learning_rates"], plain["learning_rates"], rtol=1e-9, atol=1e-12)


def test_every_run_asks_configure_optimizers_again() -> None:
    run = learner()
    run.probe(batches())
    assert run.schedule(0) == pytest.approx(0.1)
    run.lr = 0.02
    run.probe(batches())
    assert run.schedule(0) == pytest.approx(0.2)


def test_what_is_frozen_between_two_runs_stays_still() -> None:
    run = learner()
    run.adopt(mg.train(run, batches()))
    run.a.requires_grad_(False)
    before = run.a.weight.clone()
    run.adopt(mg.train(run, batches()))
    assert torch.equal(run.a.weight, before)


def test_a_clip_that_would_count_other_parameters_is_refused() -> None:
    class Head(Lit):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.b.parameters(), lr=0.1)

    with pytest.raises(UserError, match=r"leaves out \(a\.bias, a\.weight\).*requires_grad_"):
        mg.Learner.from_lightning(Head(), clip_norm=0.1).probe(batches())


class Reads(Lit):
    def losses(self, batch: Batch) -> Tensor:
        return super().losses(batch) * (1 + self.global_step)


class Augments(Lit):
    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch


class Stops(mg.Classifier):
    def optimizer_step(self, *args: Any) -> None:
        pass


class Peeks(lightning.Callback):
    def on_after_backward(self, *args: Any) -> None:
        pass


def test_what_only_a_trainer_would_do_is_refused() -> None:
    with pytest.raises(UserError, match=r"read self\.global_step.*batch\.t"):
        mg.Learner.from_lightning(Reads()).probe(batches())
    with pytest.raises(UserError, match="on_after_batch_transfer"):
        mg.Learner.from_lightning(Augments())
    with pytest.raises(UserError, match="Stops defines optimizer_step"):
        Stops(nn.Linear(4, 2)).probe(batches())
    with pytest.raises(UserError, match=r"average=0\.99"):
        trainer(WeightAveraging()).fit(learner(), batches())
    with pytest.raises(UserError, match=r"average=0\.99"):
        trainer(StochasticWeightAveraging(0.1)).fit(learner(), batches())
    with pytest.raises(UserError, match="Peeks defines on_after_backward"):
        trainer(Peeks()).fit(learner(), batches())


def test_a_plain_module_and_an_unpacked_batch_are_told_what_to_do() -> None:
    with pytest.raises(UserError, match=r"Lit is no Learner.*from_lightning"):
        mg.metagradient(Lit(), batches(), mg.DataWeights(torch.ones(N)), mg.mean_loss(data()))  # type: ignore[arg-type]

    def unpacks(module: Any, batch: Any) -> Tensor:
        x, _ = batch
        return x.sum(1)

    def steps(module: Any, batch: Any) -> Tensor:
        return module.training_step(batch, 0)

    class Plain(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 2).double()

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self.a(batch.x).mean()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    with pytest.raises(UserError, match=r"x, y = batch\.x, batch\.y"):
        mg.Learner.from_lightning(Plain(), unpacks).probe(batches())
    with pytest.raises(UserError, match=r"write losses\(batch\) -> \[B\]"):
        mg.Learner.from_lightning(Plain(), steps).probe(batches())


def test_resuming_with_another_update_is_refused(tmp_path: Path) -> None:
    def classifier(**settings: Any) -> mg.Classifier:
        torch.manual_seed(0)
        return mg.Classifier(nn.Linear(4, 2).double(), mg.SGD(0.9), 0.1, **settings)

    saved = ModelCheckpoint(tmp_path, filename="a", every_n_train_steps=2, save_top_k=1, monitor=None)
    trainer(saved, enable_checkpointing=True, max_epochs=None, max_steps=3).fit(classifier(), batches())
    with pytest.raises(UserError, match=r"average=0\.9.*resume with"):
        trainer().fit(classifier(average=0.9), batches(), ckpt_path=tmp_path / "a.ckpt")
    resumed, whole = classifier(), classifier()
    trainer().fit(resumed, batches(), ckpt_path=tmp_path / "a.ckpt")
    trainer().fit(whole, batches())
    assert torch.equal(resumed.model.weight, whole.model.weight)


def test_a_refused_module_stays_what_it_was() -> None:
    module = Lit()
    with pytest.raises(UserError, match="clip_norm must be > 0"):
        mg.Learner.from_lightning(module, clip_norm=-1.0)
    with pytest.raises(UserError, match="takes no clip; there are: learning_rate"):
        mg.Learner.from_lightning(module, clip=1.0)
    assert type(module) is Lit
    mg.Learner.from_lightning(module).probe(batches())


def test_an_adopted_module_goes_to_other_processes() -> None:
    run = learner()
    other = pickle.loads(pickle.dumps(run))
    run.adopt(mg.train(run, batches()))
    other.adopt(mg.train(other, batches()))
    assert torch.equal(run.b.weight, other.b.weight)


def test_a_learners_own_optimizer_takes_rates_but_no_decay() -> None:
    class Own(mg.Classifier):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.3, momentum=0.9)

    for rate in (0.7, 0.1):
        run = Own(nn.Linear(4, 2).double(), learning_rate=rate)
        run.probe(batches())
        assert run.schedule(0) == rate
    assert run.update.hyper(0)["momentum"] == 0.9
    with pytest.raises(UserError, match="decides the decay"):
        Own(nn.Linear(4, 2), decay=lambda name, shape: True)


class Zeroed(mg.Learner):
    """Batch statistics, hidden by a head of zeros."""

    def __init__(self) -> None:
        super().__init__(micro_batch=2)
        self.a, self.b = nn.Linear(4, 4).double(), nn.Linear(4, 2).double()
        nn.init.zeros_(self.b.weight)

    def losses(self, batch: Batch) -> Tensor:
        x = self.a(batch.x)
        return F.cross_entropy(self.b(x - x.mean(0)), batch.y, reduction="none")


class Triplets(mg.Learner):
    """Each example against the others of other classes: near ones of its own class say nothing."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.a = nn.Linear(4, 3).double()

    def losses(self, batch: Batch) -> Tensor:
        distances = torch.cdist(self.a(batch.x), self.a(batch.x) + 0.01)
        other = batch.y[:, None] != batch.y[None]
        return (other * (5 - distances).clamp(min=0)).sum(1)


def test_examples_that_see_each_other_are_found() -> None:
    with pytest.raises(UserError, match="depends on the others"):
        mg.train(Zeroed(), batches())
    for size in (1, 3):
        with pytest.raises(UserError, match="depends on the others"):
            mg.train(Triplets(micro_batch=size), batches())
    torch.manual_seed(0)
    run, ordered = Triplets(), data()
    order = ordered["y"].argsort()
    ordered = {name: field[order] for name, field in ordered.items()}
    with run.evaluating(mg.initial_state(run)):
        assert float(mg.mean_loss(ordered, chunk=10)(run)) == pytest.approx(float(mg.mean_loss(ordered)(run)))


def test_an_update_is_described_alike_in_every_process() -> None:
    def described() -> str:
        momentum = mg.Scheduled(mg.SGD(0.9), {"momentum": lambda t: 0.9})
        groups = mg.Groups([mg.Group(lambda name, shape: True, momentum, lambda t: 0.5)])
        return mg.Classifier(nn.Linear(4, 2), groups).update.described()

    assert described() == described()
    assert " at 0x" not in described()


def test_an_optimizer_that_is_none_of_torchs_is_refused_before_it_moves_anything() -> None:
    class Moves(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:
            for group in self.param_groups:
                for p in group["params"]:
                    p.data.add_(1)

    class Moving(Lit):
        def configure_optimizers(self) -> Any:
            return Moves(self.parameters(), lr=0.1)

    module = Moving()
    before = module.a.weight.clone()
    with pytest.raises(UserError, match="Moves has no differentiable rule"):
        mg.Learner.from_lightning(module).probe(batches())
    assert torch.equal(module.a.weight, before)


def test_logs_of_a_part_of_a_batch_are_left_out_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Tells(Lit):
        def losses(self, batch: Batch) -> Tensor:
            found = super().losses(batch)
            self.log("mine", found.mean())
            return found

    def logged(**settings: Any) -> str:
        folder = tmp_path / str(len(settings))
        run = mg.Learner.from_lightning(Tells(), **settings)
        trainer(logger=CSVLogger(folder, name="", version=""), log_every_n_steps=1).fit(run, batches())
        return (folder / "metrics.csv").read_text().splitlines()[0]

    assert "mine" in logged()
    assert "mine" not in logged(micro_batch=2)
    assert "left out with micro_batch" in caplog.text


def test_a_momentum_that_is_not_kept_cannot_be_scheduled() -> None:
    with pytest.raises(UserError, match=r"SGD\(0\.9\)"):
        mg.Scheduled(mg.SGD(), {"momentum": lambda t: 0.9})


def test_influence_of_smoothed_training_is_refused() -> None:
    run = mg.Classifier(nn.Linear(4, 2), label_smoothing=0.1)
    with pytest.raises(UserError, match=r"label_smoothing=0"):
        ExampleGradients(run, mg.initial_state(run))


def test_the_average_of_a_run_that_begins_with_a_skipped_step_is_differentiated() -> None:
    def run() -> mg.Classifier:
        torch.manual_seed(0)
        return mg.Classifier(nn.Linear(4, 2).double(), mg.SGD(0.9), 0.5, average=0.8)

    plan = mg.given_plan([[], [0, 1, 2], [3, 4, 5]])
    start = run().layout.params()
    found = mg.metagradient(run(), mg.Batches(data(), plan), mg.InitialParameters(start), mg.mean_loss(data()))
    direction = torch.randn(len(start), generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def value(at: Tensor) -> float:
        other = run()
        end = mg.train(other, mg.Batches(data(), plan), (mg.InitialParameters(at),))
        with torch.no_grad(), other.evaluating(end):
            return float(mg.mean_loss(data())(other))

    slope = (value(start + 1e-5 * direction) - value(start - 1e-5 * direction)) / 2e-5
    assert float(found["initial_parameters"] @ direction) == pytest.approx(slope, rel=1e-7)


def test_the_average_of_a_run_is_kept_on_disk_as_well() -> None:
    """It begins as the parameters themselves, in their memory."""

    def replay(storage: str) -> Tensor:
        torch.manual_seed(0)
        run = mg.Classifier(nn.Linear(4, 2).double(), mg.SGD(0.9), 0.5, average=0.8)
        weights = mg.DataWeights(torch.ones(len(data()["y"])))
        return mg.metagradient(
            run, batches(), weights, mg.mean_loss(data()), checkpoints="binomial(2)", storage=storage
        )["weights"]

    assert torch.equal(replay("disk"), replay("memory"))


def test_saving_a_model_leaves_the_learner_alone_and_takes_tied_weights(tmp_path: Path) -> None:
    class Record:
        def artifact_path(self, name: str) -> Path:
            return tmp_path / name

    net = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Tanh(), nn.Linear(4, 4, bias=False)).double()
    net[2].weight = net[0].weight
    run = mg.Classifier(net)
    before = net[0].weight.clone()
    save_model(Record(), run, mg.train(run, batches()))  # type: ignore[arg-type]
    assert torch.equal(net[0].weight, before)
    assert (tmp_path / "model.safetensors").exists()

"""One step function, hence one trajectory: Trainer, bare loop, resumed run and replay end in the same bits."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from toys import ROWS, N, batches, conv_net, examples, fit, mlp, relative, same_bits

import metagradient as mg
from metagradient.errors import UserError
from metagradient.replay.recording import Recording

T = len(ROWS)
IMAGES, HELD_OUT_IMAGES = examples(shape=(1, 4, 4)), examples(7, (1, 4, 4), seed=3)
VECTORS, HELD_OUT_VECTORS = examples(), examples(7, seed=3)


def shift(fields: dict[str, Tensor], g: torch.Generator) -> dict[str, Tensor]:
    """Augmentation: roll the image by a random step and add noise."""
    x = fields["x"].roll(int(torch.randint(4, (), generator=g)), dims=-1)
    return {**fields, "x": x + 0.1 * torch.randn(x.shape, generator=g, dtype=x.dtype)}


Problem = tuple[Callable[[], mg.Classifier], mg.Batches, Callable[[mg.Learner], Tensor]]
OPTIMIZERS = {"momentum": (mg.SGD(momentum=0.9, weight_decay=0.01), 0.2), "adam": (mg.Adam(), 0.05)}


@pytest.fixture(params=["mlp", "conv"])
def model(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=OPTIMIZERS)
def optimizer(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def problem(model: str, optimizer: str) -> Problem:
    """In float32; the conv net with batch norm, dropout and augmentation."""

    def learner() -> mg.Classifier:
        module = mlp() if model == "mlp" else conv_net(dropout=0.3)
        return mg.Classifier(module.float(), *OPTIMIZERS[optimizer])

    data, held_out = (VECTORS, HELD_OUT_VECTORS) if model == "mlp" else (IMAGES, HELD_OUT_IMAGES)
    augment = None if model == "mlp" else shift
    return learner, batches(data, augment=augment).to(dtype=torch.float32), mg.mean_loss(held_out)


def states(learner: mg.Learner, data: mg.Batches, *z: mg.Metaparameter) -> list[mg.TrainState]:
    """s_0 .. s_T of the bare loop, one step at a time."""
    path = [mg.initial_state(learner, z)]
    for t in range(len(data)):
        path.append(mg.train(learner, data, z, state=path[-1], start=t, stop=t + 1))
    return path


class SaveAt(lightning.Callback):
    """Save a checkpoint once `steps` steps are done."""

    def __init__(self, steps: int, path: Path) -> None:
        self.steps, self.path = steps, path

    def on_train_batch_end(self, trainer: lightning.Trainer, *args: Any) -> None:
        if trainer.global_step == self.steps:
            trainer.save_checkpoint(self.path)


def test_trainer_and_bare_loop(problem: Problem) -> None:
    make, data, _ = problem
    bare, trainer = make(), make()
    state = mg.train(bare, data)
    fit(trainer, data)
    assert trainer.train_state is not None
    assert same_bits(trainer.train_state, state)
    assert torch.equal(trainer.layout.params(), state.params)
    assert torch.equal(trainer.layout.buffers(like=state.params), state.buffers)
    assert same_bits(states(make(), data)[-1], state)


@pytest.mark.parametrize("steps", [1, 4, 5, T])
def test_resumed_trainer(problem: Problem, steps: int, tmp_path: Path) -> None:
    """Step 4 is the empty batch; the resumed learner starts from other parameters, which must not matter."""
    make, data, _ = problem
    whole, resumed = make(), make()
    fit(whole, data, SaveAt(steps, tmp_path / "mid.ckpt"))
    resumed.model = resumed.model.apply(lambda m: m.reset_parameters() if hasattr(m, "reset_parameters") else None)
    trainer = fit(resumed, data, ckpt_path=tmp_path / "mid.ckpt")
    assert same_bits(resumed.train_state, whole.train_state)
    assert same_bits(resumed.train_state, mg.train(make(), data))
    assert trainer.global_step == resumed.step_count == T


def test_resumed_bare_loop(problem: Problem) -> None:
    make, data, _ = problem
    whole = mg.train(make(), data)
    for stop in (1, 4, 7):
        half = mg.train(make(), data, stop=stop)
        assert same_bits(mg.train(make(), data, state=half, start=stop), whole)


def test_lightnings_own_checkpoints_resume_too(problem: Problem, tmp_path: Path) -> None:
    """Lightning must count our steps, or `ModelCheckpoint` saves nothing and `max_steps` never stops."""
    make, data, _ = problem
    whole = make()
    saving = ModelCheckpoint(tmp_path, every_n_train_steps=3, save_top_k=-1)
    fit(whole, data, saving, enable_checkpointing=True)
    assert {p.name for p in tmp_path.iterdir()} == {f"epoch=0-step={s}.ckpt" for s in (3, 6, 9)}
    resumed = make()
    fit(resumed, data, ckpt_path=tmp_path / "epoch=0-step=6.ckpt")
    assert same_bits(resumed.train_state, whole.train_state)
    stopped = make()
    fit(stopped, data, max_steps=4)
    assert same_bits(stopped.train_state, mg.train(make(), data, stop=4))
    loaded = make()
    saved = torch.load(tmp_path / "epoch=0-step=9.ckpt", weights_only=True)
    loaded.layout  # noqa: B018 (converts the batch norm)
    loaded.load_state_dict(saved["state_dict"])
    assert torch.equal(loaded.layout.params(), whole.layout.params())


@pytest.mark.parametrize("plan", ["all", "sqrt", "tree(3)", "binomial(1)", "binomial(2)", "every(4)"])
def test_what_the_replay_recomputes(problem: Problem, plan: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each state a plain recomputation gives, and each that a segment is taped from, is the bare loop's."""
    make, data, objective = problem
    weights = mg.DataWeights(torch.linspace(0.5, 1.5, N))
    path = states(make(), data, weights)
    advance, tape = Recording.advance, Recording.tape
    seen = []

    def watched_advance(self: Recording, state: mg.TrainState, start: int, stop: int, *passed: Any) -> mg.TrainState:
        end = advance(self, state, start, stop, *passed)
        assert same_bits(end, path[stop])
        seen.append(("advance", stop))
        return end

    def watched_tape(self: Recording, state: mg.TrainState, start: int, stop: int) -> Any:
        assert same_bits(state, path[start])
        seen.append(("tape", start))
        return tape(self, state, start, stop)

    monkeypatch.setattr(Recording, "advance", watched_advance)
    monkeypatch.setattr(Recording, "tape", watched_tape)
    result = mg.metagradient(make(), data, weights, objective, checkpoints=plan)
    assert ("tape", 0) in seen
    assert ("advance" in dict(seen)) == plan.startswith(("tree", "binomial"))
    assert relative(result.state.params, path[-1].params) < 1e-6


def test_fit_with_the_callback_ends_where_the_plain_fit_does(problem: Problem, model: str) -> None:
    """In float64 and for these operations even the taped steps have the plain steps' bits."""
    make, data, objective = problem
    plain, watched = make().double(), make().double()
    data = data.to(dtype=torch.float64)
    fit(plain, data, precision="64-true")
    callback = mg.Metagradient(mg.InitialParameters(plain_start(make())), objective, checkpoints="every(4)")
    fit(watched, data, callback, precision="64-true")
    assert relative(watched.train_state.params, plain.train_state.params) < 1e-14
    assert torch.equal(watched.layout.params(), watched.train_state.params)


def plain_start(learner: mg.Classifier) -> Tensor:
    return learner.double().layout.params()


def test_validation_in_the_middle_of_training_changes_nothing(problem: Problem) -> None:
    make, data, objective = problem

    class Validated(mg.Classifier):
        def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
            logits = self(batch[0].float())
            self.log("val_loss", nn.functional.cross_entropy(logits, batch[1]))

    plain, twin = make(), make()
    validated = Validated(twin.model, twin.optimizer, twin.schedule)
    held_out = HELD_OUT_IMAGES if data.examples["x"].dim() == 4 else HELD_OUT_VECTORS
    loader = DataLoader(TensorDataset(held_out["x"], held_out["y"]), batch_size=7)
    trainer = lightning.Trainer(
        max_epochs=1,
        val_check_interval=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(validated, data, loader)
    fit(plain, data)
    assert same_bits(validated.train_state, plain.train_state)
    last = trainer.callback_metrics["val_loss"]
    before_last = mg.train(make(), data, stop=8)
    with torch.no_grad(), make().evaluating(before_last) as there:
        assert float(last) == pytest.approx(float(objective(there)), rel=1e-5)


def test_the_global_generator_is_neither_read_nor_moved(problem: Problem) -> None:
    make, data, objective = problem
    learners = [make() for _ in range(3)]
    torch.manual_seed(21)
    before = torch.get_rng_state()
    first = mg.train(learners[0], data)
    fit(learners[1], data)
    mg.metagradient(learners[2], data, mg.DataWeights(torch.ones(N)), objective, checkpoints="binomial(2)")
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(22)
    assert same_bits(mg.train(copy.deepcopy(learners[0]), data), first)


# -- what would break the promise is refused ----------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["16-true", "bf16-true", "bf16-mixed"])
def test_low_precision_is_refused(precision: Any) -> None:
    with pytest.raises(
        UserError,
        match=rf"^trainer\.precision={precision} is refused: [^\n]* use trainer\.precision=32-true or 64-true$",
    ):
        fit(mg.Classifier(mlp()), batches(VECTORS), precision=precision)


def test_a_plain_data_loader_is_refused() -> None:
    loader = DataLoader(TensorDataset(VECTORS["x"], VECTORS["y"]), batch_size=2)
    with pytest.raises(UserError, match=r"^training data must be a metagradient Batches, not DataLoader: [^\n]*$"):
        fit(mg.Classifier(mlp()), loader)


@pytest.mark.parametrize("epochs", [2, None])
def test_a_second_pass_over_the_run_is_refused(epochs: int | None) -> None:
    with pytest.raises(
        UserError,
        match=r"^max_epochs=(2|1000), but one pass over a Batches is the whole run: [^\n]*max_epochs=1[^\n]*$",
    ):
        fit(mg.Classifier(mlp()), batches(VECTORS), max_epochs=epochs)


class MakesConstants(mg.Classifier):
    """Losses with a constant of the default dtype in them."""

    def losses(self, batch: mg.Batch) -> Tensor:
        return super().losses(batch) * torch.full((len(batch),), 1 / 3)


@pytest.mark.parametrize("kind", [mg.Classifier, MakesConstants])
def test_trainer_in_float64(kind: type[mg.Classifier]) -> None:
    """`precision=64-true` converts a float32 learner and data, and is the bare loop of the converted ones."""
    data, objective = batches(VECTORS).to(dtype=torch.float32), mg.mean_loss(HELD_OUT_VECTORS)
    learner, bare = kind(mlp().float(), mg.Adam(), 0.1), kind(mlp().float().double(), mg.Adam(), 0.1)
    callback = mg.Metagradient(mg.DataWeights(torch.ones(N)), objective, checkpoints="binomial(2)")
    fit(learner, data, callback, precision="64-true")
    ours = mg.metagradient(bare, data, mg.DataWeights(torch.ones(N)), objective, checkpoints="binomial(2)")
    assert callback.gradients["weights"].dtype == torch.float64
    assert torch.equal(callback.gradients["weights"], ours["weights"])
    assert same_bits(learner.train_state, ours.state)
    assert torch.get_default_dtype() == torch.float32

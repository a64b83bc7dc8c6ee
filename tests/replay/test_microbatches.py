"""Micro-batches and chunked objectives give what the whole batch gives, and hold less of it at a time."""

import pytest
import torch
from torch import Tensor, nn
from toys import CLASSES, INPUTS, PLANS, ROWS, N, assert_slope, batches, conv_net, examples, mlp, relative

import metagradient as mg
from metagradient.errors import UserError
from metagradient.training.batches import Batch
from metagradient.training.random import step_generator
from metagradient.training.saved_tensors import watching_saved_tensors
from metagradient.training.steps import step

T = len(ROWS)
DATA, HELD_OUT = examples(), examples(7, seed=3)


def weights() -> Tensor:
    return torch.linspace(0, 1.5, N, dtype=torch.float64)


def metaparameters() -> list[mg.Metaparameter]:
    return [
        mg.DataWeights(weights()),
        mg.LearningRates(torch.linspace(0.3, 0.1, T, dtype=torch.float64)),
        mg.InputPerturbation(torch.full((3, INPUTS), 0.01, dtype=torch.float64), index=torch.tensor([1, 4, 9])),
        mg.InitialParameters(mg.Classifier(mlp()).layout.params()),
    ]


def run(
    micro_batch: int | None, normalize: str, objective: object, dropout: float = 0.0, plan: str = "auto"
) -> mg.Metagradients:
    learner = mg.Classifier(mlp(dropout), mg.SGD(0.9), 0.2, normalize=normalize, micro_batch=micro_batch)  # type: ignore[arg-type]
    return mg.metagradient(learner, batches(DATA), metaparameters(), objective, checkpoints=plan)  # type: ignore[arg-type]


@pytest.mark.parametrize("plan", [p for p in PLANS if p in ("tape", "binomial(2)", "every(4)")])
@pytest.mark.parametrize("normalize", ["batch", "kept"])
@pytest.mark.parametrize("micro_batch", [1, 3])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_micro_batches_are_the_whole_batch(plan: str, normalize: str, micro_batch: int, dropout: float) -> None:
    whole = run(None, normalize, mg.mean_loss(HELD_OUT), dropout, plan)
    parts = run(micro_batch, normalize, mg.mean_loss(HELD_OUT), dropout, plan)
    assert relative(parts.state.params, whole.state.params) < 1e-12
    for name, gradient in whole.gradients.items():
        assert relative(parts.gradients[name], gradient) < 1e-10, name


def test_many_objectives_share_a_replay_of_micro_batches() -> None:
    whole = run(None, "batch", mg.example_losses(HELD_OUT))
    parts = run(2, "batch", mg.example_losses(HELD_OUT))
    for name, gradient in whole.gradients.items():
        assert gradient.shape[0] == 7
        assert relative(parts.gradients[name], gradient) < 1e-10, name


def test_metagradients_of_micro_batches_are_slopes_of_whole_batch_runs() -> None:
    z = [mg.DataWeights(torch.linspace(0.5, 1.5, N, dtype=torch.float64))]
    learner = mg.Classifier(mlp(), mg.Adam(), 0.05, clip_norm=0.5, average=0.5, micro_batch=2)
    found = mg.metagradient(learner, batches(DATA), z, mg.mean_loss(HELD_OUT))
    plain = mg.Classifier(mlp(), mg.Adam(), 0.05, clip_norm=0.5, average=0.5)
    assert_slope(found.gradients["weights"], plain, batches(DATA), z, "weights", mg.mean_loss(HELD_OUT))


def test_a_taped_step_keeps_no_activations_of_its_micro_batches() -> None:
    def kept(micro_batch: int | None) -> int:
        wide = nn.Sequential(
            nn.Linear(INPUTS, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, CLASSES)
        ).double()
        learner, found = mg.Classifier(wide, micro_batch=micro_batch), {}
        data = batches(examples(512), [list(range(512))])
        learner.probe(data)
        state = mg.initial_state(learner).leaf()

        def keep(x: Tensor) -> None:
            found[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()

        with watching_saved_tensors(keep):
            step(learner, state, data(0), 0, tape=True)
        return sum(found.values())

    state = 8 * sum(
        p.numel() for p in nn.Sequential(nn.Linear(INPUTS, 64), nn.Linear(64, 64), nn.Linear(64, CLASSES)).parameters()
    )
    assert kept(32) < 10 * state < kept(None)


def test_stacked_runs_go_through_micro_batches() -> None:
    learner = mg.Classifier(mlp(), mg.SGD(0.9), 0.2, micro_batch=3)
    two = torch.stack([torch.ones(N, dtype=torch.float64), weights()])
    start = mg.initial_state(learner)
    together = mg.train(learner, batches(DATA), (mg.DataWeights(two),), state=mg.TrainState.stack([start, start]))
    for i in range(2):
        alone = mg.train(mg.Classifier(mlp(), mg.SGD(0.9), 0.2), batches(DATA), (mg.DataWeights(two[i]),))
        assert relative(together[i].params, alone.params) < 1e-12


class Noisy(mg.Classifier):
    def losses(self, batch: Batch) -> Tensor:
        return super().losses(batch) * torch.rand(len(batch), generator=step_generator(batch.index.device))


class Drawing(mg.Classifier):
    def losses(self, batch: Batch) -> Tensor:
        return super().losses(batch) * torch.rand(len(batch))


class Centred(mg.Classifier):
    def losses(self, batch: Batch) -> Tensor:
        losses = super().losses(batch)
        return (losses - losses.mean()).square()


def test_what_micro_batches_would_change_is_refused() -> None:
    images, rows = examples(shape=(1, 4, 4)), batches(DATA)
    for size in (1, 2):
        with pytest.raises(
            UserError,
            match=r"change buffers \(batch norm model.1\)|depends on the others of its batch \(batch norm model.1\)",
        ):
            mg.train(mg.Classifier(conv_net(), micro_batch=size), batches(images))
    with pytest.raises(UserError, match="for their own rows"):
        mg.train(Noisy(mlp(), micro_batch=2), rows)
    with pytest.raises(UserError, match="global generator"):
        mg.train(Drawing(mlp(), micro_batch=2), rows)
    with pytest.raises(UserError, match="depends on the others"):
        mg.train(Centred(mlp(), micro_batch=2), rows)
    with pytest.raises(UserError, match=r"learner\.micro_batch=null"):
        mg.Classifier(mlp(), micro_batch=2, compiled=True)
    with pytest.raises(UserError, match=r"micro_batch must be an integer >= 1"):
        mg.Classifier(mlp(), micro_batch=0)


@pytest.mark.parametrize("plan", ["tape", "every(4)"])
def test_objectives_in_chunks_are_objectives_of_all_rows(plan: str) -> None:
    z = metaparameters()
    learner = mg.Classifier(mlp(), mg.SGD(0.9), 0.2)
    whole = mg.metagradient(learner, batches(DATA), z, mg.mean_loss(HELD_OUT), checkpoints=plan)
    parts = mg.metagradient(learner, batches(DATA), z, mg.mean_loss(HELD_OUT, chunk=3), checkpoints=plan)
    assert float(parts.objective) == pytest.approx(float(whole.objective), rel=1e-12)
    for name, gradient in whole.gradients.items():
        assert relative(parts.gradients[name], gradient) < 1e-10, name

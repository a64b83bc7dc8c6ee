"""Our normalisation, dropout and treatment of foreign modules: torch's values, and replayable."""

import copy
import logging
import warnings
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

import metagradient as mg
from metagradient.errors import UserError
from metagradient.training.modules.replayable import DifferentiableBatchNorm, SeededDropout, make_replayable
from metagradient.training.random import generator, step_generator, step_randomness

CPU = torch.device("cpu")
DATA = {
    "x": torch.randn(8, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64),
    "y": torch.arange(8) % 3,
}


def batches(steps: int = 6) -> mg.Batches:
    return mg.Batches(DATA, mg.epoch_plan(8, 4, epochs=steps // 2, seed=0), seed=5)


# -- batch normalisation ------------------------------------------------------------------------------------------

NORMS: list[tuple[type[nn.Module], Sequence[int]]] = [
    (nn.BatchNorm1d, (6, 3)),
    (nn.BatchNorm1d, (6, 3, 5)),
    (nn.BatchNorm2d, (4, 3, 5, 2)),
    (nn.BatchNorm3d, (4, 3, 2, 2, 3)),
]


@pytest.mark.parametrize(("kind", "shape"), NORMS)
def test_tangents_of_batch_normalisation_are_those_that_two_reverse_passes_give(
    kind: Any, shape: Sequence[int]
) -> None:
    """Of the output and of the running statistics; v . (d y / d x) u is the same from both sides."""
    u, x = (torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(i)) for i in range(2))

    def outputs(x: Tensor) -> Tensor:
        norm = kind(shape[1]).double().train()
        make_replayable(nn.Sequential(norm))
        return torch.cat([norm(x).flatten(), norm.running_mean, norm.running_var])

    with forward_ad.dual_level(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = forward_ad.unpack_dual(outputs(forward_ad.make_dual(x, u)))
    leaf = x.clone().requires_grad_()
    y = outputs(leaf)
    v = torch.randn(y.shape, dtype=torch.float64)
    (pulled,) = torch.autograd.grad(y, leaf, v)
    assert float((v * found.tangent).sum()) == pytest.approx(float((pulled * u).sum()), rel=1e-10)


@pytest.mark.parametrize(
    "settings", [{}, {"momentum": 0.4, "eps": 1e-2}, {"affine": False}, {"track_running_stats": False}], ids=str
)
@pytest.mark.parametrize(("kind", "shape"), NORMS)
def test_batch_norm_has_torchs_values_in_training_and_evaluation(
    kind: type[nn.Module], shape: Sequence[int], settings: dict[str, Any]
) -> None:
    theirs = kind(3, **settings).double()
    if theirs.weight is not None:
        nn.init.normal_(theirs.weight)
        nn.init.normal_(theirs.bias)
    ours = nn.Sequential(copy.deepcopy(theirs))
    make_replayable(ours)
    assert type(ours[0]) is DifferentiableBatchNorm
    for _ in range(3):
        x = 3 * torch.randn(shape, dtype=torch.float64) + 1
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-12, atol=1e-12)
    assert ours[0].state_dict().keys() == theirs.state_dict().keys()
    for name in ("running_mean", "running_var"):
        if getattr(theirs, name) is not None:
            torch.testing.assert_close(getattr(ours[0], name), getattr(theirs, name), rtol=1e-12, atol=1e-12)
    x = torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=1e-12, atol=1e-12)


def test_batch_norms_statistics_carry_gradient() -> None:
    norm = DifferentiableBatchNorm(2).double()
    x = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    norm(x)
    (gradient,) = torch.autograd.grad(norm.running_mean.sum() + norm.running_var.sum(), x)
    expected = 0.1 / 5 + 0.1 * 2 * (x - x.mean(0)) / 4
    torch.testing.assert_close(gradient, expected.detach())


def test_batch_norms_statistics_have_second_derivatives() -> None:
    def statistics(x: Tensor) -> tuple[Tensor, Tensor]:
        norm = DifferentiableBatchNorm(2).double()
        norm(x)
        return norm.running_mean**2, norm.running_var**2

    x = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(statistics, x)
    assert torch.autograd.gradgradcheck(statistics, x)


def test_a_batch_of_one_is_refused_as_torch_does() -> None:
    with pytest.raises(UserError, match=r"^batch norm needs more than one value a channel[^\n]*drop_last=True[^\n]*$"):
        DifferentiableBatchNorm(3)(torch.ones(1, 3))


# -- dropout ------------------------------------------------------------------------------------------------------


def test_dropout_is_a_function_of_seed_and_step() -> None:
    x, drop = torch.ones(50, 40), SeededDropout(0.3)

    def at(seed: int, t: int) -> Tensor:
        with step_randomness(seed, t, CPU):
            return drop(x)

    assert torch.equal(at(1, 2), at(1, 2))
    assert not torch.equal(at(1, 2), at(1, 3))
    assert not torch.equal(at(1, 2), at(2, 2))
    with step_randomness(1, 2, CPU):
        first, second = drop(x), drop(x)
    assert torch.equal(first, at(1, 2))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("p", [0.0, 0.2, 0.7, 1.0])
def test_dropout_keeps_1_minus_p_and_scales_by_its_inverse(p: float) -> None:
    with step_randomness(0, 0, CPU):
        out = SeededDropout(p)(torch.ones(400, 400))
    kept = out != 0
    assert float(kept.float().mean()) == pytest.approx(1 - p, abs=0.01)
    assert bool(torch.isfinite(out).all())
    if p < 1:
        torch.testing.assert_close(out[kept], torch.full_like(out[kept], 1 / (1 - p)))


def test_dropout_is_the_identity_in_evaluation_and_torchs_outside_a_step() -> None:
    x, drop = torch.ones(30, 30), SeededDropout(0.5)
    with step_randomness(0, 0, CPU):
        assert torch.equal(drop.eval()(x), x)
    assert step_generator(CPU) is None
    torch.manual_seed(4)
    ours = drop.train()(x)
    torch.manual_seed(4)
    assert torch.equal(ours, F.dropout(x, 0.5))


def test_conversion_changes_classes_and_nothing_else() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(0.2), nn.Dropout2d(0.1))
    before, parameters = model.state_dict(), list(model.parameters())
    make_replayable(model)
    assert [type(m) for m in model] == [nn.Conv2d, DifferentiableBatchNorm, SeededDropout, nn.Dropout2d]
    assert model[2].p == 0.2
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    make_replayable(model)
    assert type(model[1]) is DifferentiableBatchNorm


# -- foreign randomness -------------------------------------------------------------------------------------------


class ForeignDropout(mg.Classifier):
    """Draws from torch's global generator in its losses."""

    def losses(self, batch: mg.Batch) -> Tensor:
        return F.cross_entropy(self.model(F.dropout(batch.x, 0.5, self.training)), batch.y, reduction="none")


def linear() -> nn.Module:
    torch.manual_seed(1)
    return nn.Linear(4, 3).double()


def test_foreign_randomness_is_found_said_once_and_made_replayable(caplog: pytest.LogCaptureFixture) -> None:
    learner = ForeignDropout(linear(), mg.SGD(momentum=0.9))
    with caplog.at_level(logging.WARNING):
        torch.manual_seed(11)
        before = torch.get_rng_state()
        first = mg.train(learner, batches())
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(12)
        again = mg.train(learner, batches())
    assert torch.equal(first.params, again.params)
    assert sum("draws from torch's global generator" in message for message in caplog.messages) == 1
    halves = mg.train(learner, batches(), state=mg.train(learner, batches(), stop=3), start=3)
    assert torch.equal(halves.params, first.params)
    weights, phi = mg.DataWeights(torch.ones(8)), mg.mean_loss(DATA)
    tape = mg.metagradient(learner, batches(), weights, phi, checkpoints="tape")
    replay = mg.metagradient(learner, batches(), weights, phi, checkpoints="binomial(2)")
    assert torch.equal(tape.state.params, first.params)
    torch.testing.assert_close(replay["weights"], tape["weights"], rtol=1e-10, atol=0)


def test_learners_of_our_own_modules_draw_nothing_global(caplog: pytest.LogCaptureFixture) -> None:
    learner = mg.Classifier(nn.Sequential(nn.Dropout(0.5), linear()))
    with caplog.at_level(logging.WARNING):
        before = torch.get_rng_state()
        first = mg.train(learner, batches())
        assert torch.equal(torch.get_rng_state(), before)
    assert not caplog.messages
    assert not torch.equal(first.params, mg.train(mg.Classifier(linear()), batches()).params)


def test_randomness_from_the_steps_generator_is_replayable_without_forking() -> None:
    class Noisy(mg.Classifier):
        def losses(self, batch: mg.Batch) -> Tensor:
            noise = torch.randn(batch.x.shape, generator=step_generator(batch.x.device), dtype=batch.x.dtype)
            return super().losses(batch.replace(x=batch.x + noise))

    learner = Noisy(linear())
    assert torch.equal(mg.train(learner, batches()).params, mg.train(learner, batches()).params)
    assert not learner._needs.foreign_randomness
    with step_randomness(5, 3, CPU):
        inside = torch.randn(4, generator=step_generator(CPU))
    assert torch.equal(inside, torch.randn(4, generator=generator(5, 3)))


# -- fused attention ----------------------------------------------------------------------------------------------


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.qkv, self.out = nn.Linear(2, 12), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x.view(-1, 2, 2)).chunk(3, dim=-1)
        return self.out(F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0].mean(1))


class WrittenOut(Attention):
    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x.view(-1, 2, 2)).chunk(3, dim=-1)
        return self.out(((q @ k.transpose(1, 2) / 2).softmax(-1) @ v).mean(1))


def test_fused_attention_gets_a_second_derivative() -> None:
    gradients = []
    for model in (Attention(), WrittenOut()):
        learner = mg.Classifier(model.double(), mg.SGD(), 0.5)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            result = mg.metagradient(learner, batches(), mg.DataWeights(torch.ones(8)), mg.mean_loss(DATA))
        gradients.append(result["weights"])
        assert learner._needs.math_attention == (type(model) is Attention)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-9, atol=0)

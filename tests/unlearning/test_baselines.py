"""Each baseline does what its formula says, checked without its code."""

from dataclasses import replace

import pytest
import torch
from torch.func import hessian
from unlearning_toys import N, add, delete, recorded

import metagradient as mg
from metagradient.errors import UserError
from metagradient.replay import MemoryStorage
from metagradient.unlearning import (
    DeltaGrad,
    Finetune,
    FirstOrder,
    GradientAscent,
    NegGradPlus,
    Newton,
    RecordedRun,
    Request,
    Retrain,
    perturbed,
)

BETA = 0.01


def _loss(run: RecordedRun, rows: torch.Tensor, params: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy of softmax regression, written out."""
    weight, bias = params[:15].view(3, 5), params[15:]
    logits = run.batches.examples["x"][rows] @ weight.T + bias
    return torch.nn.functional.cross_entropy(logits, run.batches.examples["y"][rows])


def _gradient(run: RecordedRun, rows: torch.Tensor, params: torch.Tensor) -> torch.Tensor:
    leaf = params.clone().requires_grad_()
    return torch.autograd.grad(_loss(run, rows, leaf), leaf)[0]


ALL, GONE = torch.arange(N), torch.tensor([0, 1, 5])
LEFT = torch.arange(N)[~torch.isin(ALL, GONE)]


@pytest.mark.parametrize("kind", ["delete", "add"])
def test_newton_is_the_dense_influence_step(kind: str) -> None:
    before, after = (ALL, LEFT) if kind == "delete" else (LEFT, ALL)
    run = recorded("full", present=before.tolist())
    theta = run.final.params
    difference = _gradient(run, after, theta) - _gradient(run, before, theta)
    curvature = hessian(lambda p: _loss(run, after, p))(theta) + BETA * torch.eye(18).double()
    answer = Newton(0.0, iterations=200, tolerance=1e-12)(run, Request(kind, GONE))  # type: ignore[arg-type]
    torch.testing.assert_close(
        answer.state.params, theta - torch.linalg.solve(curvature, difference), rtol=1e-8, atol=1e-10
    )


def test_newton_is_right_at_a_minimiser() -> None:
    base = recorded("full", optimizer=mg.SGD(weight_decay=0.1))
    run = replace(base, batches=mg.Batches(base.batches.examples, mg.full_batch_plan(N, 500)))
    ends = [mg.train(run.learner, run.batches_of(row != ALL), state=run.initial) for row in (-1, 7)]
    answer = Newton(0.0)(replace(run, final=ends[0]), delete(7))
    moved, error = (ends[1].params - ends[0].params).norm(), (answer.state.params - ends[1].params).norm()
    assert error < 0.05 * moved


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_newton_takes_a_short_run_for_what_it_is(momentum: float) -> None:
    """60 steps at a rate of .02: damped by the run's length it comes nearer to retraining, undamped it overshoots."""
    run = recorded("full", optimizer=mg.SGD(momentum=momentum, weight_decay=BETA), schedule=0.02)
    truth = Retrain()(run, delete(7)).state.params
    moved = (run.final.params - truth).norm()
    states = [Newton(damping, 200, 1e-12)(run, delete(7)).state.params for damping in (None, (1 - momentum) / 2.4, 0.0)]
    torch.testing.assert_close(states[0], states[1], rtol=1e-8, atol=1e-12)
    assert (states[0] - truth).norm() < 0.5 * moved
    assert (states[2] - truth).norm() > moved


def test_newton_asks_for_its_damping_where_it_cannot_know_it() -> None:
    with pytest.raises(UserError, match=r"method\.damping"):
        Newton()(recorded("full", optimizer=mg.Adam(), schedule=0.01), delete(0))


@pytest.mark.parametrize("plan", ["full", "batches", "holes"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_first_order_is_the_derivative_of_the_run(plan: str, momentum: float) -> None:
    """Against central differences of whole runs in the weights of the deleted rows."""
    run = recorded(plan, optimizer=mg.SGD(momentum=momentum, weight_decay=BETA), schedule=0.05)
    run.learner.normalize = "kept"

    def trained(weight: float) -> torch.Tensor:
        weights = torch.ones(N).double().index_fill(0, GONE, weight)
        return mg.train(run.learner, run.batches, (mg.DataWeights(weights),), state=run.initial).params

    slope = (trained(1 + 1e-5) - trained(1 - 1e-5)) / 2e-5
    predicted = FirstOrder()(run, delete(*GONE.tolist())).state.params - run.final.params
    torch.testing.assert_close(predicted, -slope, rtol=1e-5, atol=1e-8)


def test_first_order_is_the_metagradient_contracted() -> None:
    run = recorded("batches")
    run.learner.normalize = "kept"
    queries = {k: v[20:24] for k, v in run.batches.examples.items()}
    found = mg.metagradient(run.learner, run.batches, mg.DataWeights(torch.ones(N)), mg.example_losses(queries))
    tangent = FirstOrder()(run, delete(*GONE.tolist())).state.params - run.final.params
    jacobian = torch.stack([_gradient(run, torch.tensor([i]), run.final.params) for i in range(20, 24)])
    torch.testing.assert_close(jacobian @ tangent, -found["weights"][:, GONE].sum(1), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("plan", ["full", "batches"])
def test_first_order_of_an_addition_is_the_derivative_at_weight_zero(plan: str) -> None:
    run = recorded(plan, present=LEFT.tolist())
    run.learner.normalize = "kept"

    def trained(weight: float) -> torch.Tensor:
        weights = torch.ones(N).double().index_fill(0, GONE, weight)
        return mg.train(run.learner, run.batches, (mg.DataWeights(weights),), state=run.initial).params

    slope = (trained(1e-5) - trained(-1e-5)) / 2e-5
    predicted = FirstOrder()(run, add(*GONE.tolist())).state.params - run.final.params
    torch.testing.assert_close(predicted, slope, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("sign", [-1, 1])
def test_gradient_ascent_by_hand(sign: int) -> None:
    run = recorded("full", present=(ALL if sign < 0 else LEFT).tolist())
    theta = run.final.params
    for _ in range(3):
        theta = theta - sign * 0.1 * _gradient(run, GONE, theta)
    request = Request("delete" if sign < 0 else "add", GONE)
    torch.testing.assert_close(GradientAscent(3, 0.1)(run, request).state.params, theta)


def test_neggrad_plus_by_hand() -> None:
    run = recorded("full")
    theta = run.final.params
    for _ in range(2):
        step = 0.9 * _gradient(run, LEFT, theta) - 0.1 * _gradient(run, GONE, theta) + BETA * theta
        theta = theta - 0.05 * step
    answer = NegGradPlus(share=0.9, epochs=2, learning_rate=0.05)(run, delete(*GONE.tolist()))
    torch.testing.assert_close(answer.state.params, theta)
    assert answer.gradients == 2 * N


def test_finetune_by_hand() -> None:
    run = recorded("full")
    theta = run.final.params
    for _ in range(4):
        theta = theta - 0.05 * (_gradient(run, LEFT, theta) + BETA * theta)
    answer = Finetune(epochs=4, learning_rate=0.05)(run, delete(*GONE.tolist()))
    torch.testing.assert_close(answer.state.params, theta)
    assert answer.gradients == 4 * len(LEFT)


def test_retrain_can_keep_its_run() -> None:
    run = recorded("batches")
    answer = Retrain()(run, delete(3), keep=MemoryStorage())
    assert answer.run is not None
    assert torch.equal(DeltaGrad(1)(answer.run, add(3)).state.params, run.final.params)


@pytest.mark.parametrize("method", [Newton(), FirstOrder(), Finetune(), GradientAscent(), NegGradPlus()])
def test_methods_without_a_history_say_so(method) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError, match="method=deltagrad"):
        method(recorded("full"), delete(0), keep=MemoryStorage())


def test_first_order_needs_a_linear_update() -> None:
    with pytest.raises(UserError, match="SGD, not Adam"):
        FirstOrder()(recorded("full", optimizer=mg.Adam(), schedule=0.01), delete(0))


def test_noise_on_the_output_has_its_deviation_and_its_seed() -> None:
    state = mg.TrainState(torch.zeros(20_000), (), torch.zeros(0))
    noisy = perturbed(state, 0.3, seed=1).params
    assert abs(float(noisy.std()) - 0.3) < 0.01
    assert torch.equal(noisy, perturbed(state, 0.3, seed=1).params)
    assert not torch.equal(noisy, perturbed(state, 0.3, seed=2).params)
    with pytest.raises(UserError, match="output_noise"):
        perturbed(state, -1.0, 0)

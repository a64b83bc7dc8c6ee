"""Numbers and several labels at once: torch's losses, metagradients against finite differences, curvature against a dense matrix."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metagradient as mg
from metagradient import attribution as at
from metagradient.attribution.gradients.targets import drawn, enumerated
from metagradient.errors import UserError

N, K = 12, 3


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


X = torch.randn(N, 4, generator=rng(0), dtype=torch.float64)
NUMBERS = 40 + 8 * torch.randn(N, K, generator=rng(1), dtype=torch.float64)
LABELS = torch.randint(2, (N, K), generator=rng(2)).double()
UNITS: dict[str, Any] = {"center": NUMBERS.mean(0).tolist(), "scale": NUMBERS.std(0).tolist()}
CASES: dict[str, tuple[type[mg.Learner], dict[str, Any], Tensor]] = {
    "squared": (mg.Regressor, UNITS, NUMBERS),
    "huber": (mg.Regressor, {"loss": "huber", "delta": 0.7, **UNITS}, NUMBERS),
    "labels": (mg.MultiLabel, {}, LABELS),
}


def made(case: str, outputs: int = K) -> mg.Learner:
    kind, settings, _ = CASES[case]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, outputs)).double()
    return kind(model, mg.SGD(momentum=0.9), 0.1, **settings)  # type: ignore[call-arg]


def batch(case: str) -> mg.Batch:
    return mg.Batch(0, torch.arange(N), {"x": X, "y": CASES[case][2]})


STANDARD = (NUMBERS - NUMBERS.mean(0)) / NUMBERS.std(0)
TORCHS: dict[str, Callable[[Tensor], Tensor]] = {
    "squared": lambda out: F.mse_loss(out, STANDARD, reduction="none"),
    "huber": lambda out: F.huber_loss(out, STANDARD, reduction="none", delta=0.7),
    "labels": lambda out: F.binary_cross_entropy(out.sigmoid(), LABELS, reduction="none"),
}


@pytest.mark.parametrize("case", CASES)
def test_losses_are_the_means_of_torchs(case: str) -> None:
    learner = made(case)
    torch.testing.assert_close(learner.losses(batch(case)), TORCHS[case](learner.model(X)).mean(1))  # type: ignore[operator]


def test_predictions_are_in_the_units_of_the_targets() -> None:
    learner = made("squared")
    want = NUMBERS.mean(0) + NUMBERS.std(0) * learner.model(X)  # type: ignore[operator]
    torch.testing.assert_close(learner(X), want)


@pytest.mark.parametrize("case", CASES)
def test_metagradients_are_finite_differences(case: str) -> None:
    """Of every training weight and of an input, through six steps with momentum."""
    y = CASES[case][2]
    batches = mg.Batches({"x": X, "y": y}, mg.epoch_plan(N, 4, 2, seed=0))
    objective = mg.mean_loss({"x": X.flip(0), "y": y.roll(1, 0)})
    inputs = mg.InputPerturbation(torch.zeros(1, 4, dtype=torch.float64), index=torch.tensor([3]))
    z = [mg.DataWeights(torch.ones(N, dtype=torch.float64)), inputs]
    found = mg.metagradient(made(case), batches, z, objective)

    def value(moved: list[mg.Metaparameter]) -> float:
        learner = made(case)
        state = mg.train(learner, batches, moved)
        with torch.no_grad(), learner.evaluating(state):
            return float(objective(learner))

    h = 1e-5
    for i, own in enumerate(z):
        for place in range(min(own.value.numel(), 3)):
            step = torch.zeros_like(own.value)
            step.view(-1)[place] = h
            ends = [value([*z[:i], own.with_value(own.value + s * step), *z[i + 1 :]]) for s in (1, -1)]
            got = float(found[own.name].reshape(-1)[place])
            assert got == pytest.approx((ends[0] - ends[1]) / (2 * h), rel=1e-5, abs=1e-9)


def dense(case: str) -> Tensor:
    """The mean Gauss-Newton matrix, by a Jacobian of all outputs and a Hessian of torch's loss in them."""
    learner = made(case)
    params = dict(learner.named_parameters())
    outputs = learner.model(X).detach()  # type: ignore[operator]
    jacobians = torch.func.jacrev(lambda p: torch.func.functional_call(learner.model, p, X))(  # type: ignore[arg-type]
        {name.removeprefix("model."): p.detach() for name, p in params.items()}
    )
    j = torch.cat([g.reshape(N, K, -1) for g in jacobians.values()], dim=2)
    total = torch.zeros(j.shape[2], j.shape[2], dtype=torch.float64)
    for b in range(N):
        h = torch.func.hessian(lambda out, b=b: TORCHS[case](outputs.index_put((torch.tensor(b),), out))[b].mean())
        total += j[b].T @ h(outputs[b]) @ j[b]
    return total / N


def gauss_newton(case: str, target: Any) -> Tensor:
    """The same of the targets' gradients."""
    learner = made(case)
    rows = target(learner, batch(case)).flatten()
    params = list(learner.parameters())
    each = torch.autograd.grad(rows, params, torch.eye(len(rows), dtype=torch.float64), is_grads_batched=True)
    g = torch.cat([part.flatten(1) for part in each], dim=1)
    return g.T @ g / N


@pytest.mark.parametrize("case", CASES)
def test_the_gauss_newton_matrix_is_the_dense_one(case: str) -> None:
    torch.testing.assert_close(gauss_newton(case, enumerated), dense(case), atol=1e-12, rtol=1e-9)
    many = gauss_newton(case, drawn(100, seed=0))
    assert float((many - dense(case)).norm() / dense(case).norm()) < 0.2


@pytest.mark.parametrize("case", CASES)
def test_influence_functions_are_those_of_the_dense_matrix(case: str) -> None:
    learner = made(case)
    fields = {"x": X, "y": CASES[case][2]}
    batches = mg.Batches(fields, mg.epoch_plan(N, 4, 2, seed=0))
    run = at.TrainedRun(learner=learner, batches=batches, state=mg.initial_state(learner))
    scores = at.method("none", damping=0.5)(run, {name: f[:2] for name, f in fields.items()})
    g = torch.stack(
        [
            torch.cat([p.flatten() for p in torch.autograd.grad(loss, list(learner.parameters()), retain_graph=True)])
            for loss in learner.losses(batch(case))
        ]
    )
    f = dense(case)
    damped = f + 0.5 * f.diagonal().mean() * torch.eye(len(f), dtype=torch.float64)
    torch.testing.assert_close(scores, g @ torch.linalg.solve(damped, g[:2].T) / N)


@pytest.mark.parametrize("y", [NUMBERS[:, 0], NUMBERS[:, :1], NUMBERS[:, 0].round().int()])
def test_one_number_is_a_column_or_none(y: Tensor) -> None:
    """Never the [B, B] residuals of [B, 1] against [B]."""
    learner = mg.Regressor(nn.Linear(4, 1).double())
    out = learner.model(X).squeeze(1)  # type: ignore[operator]
    losses = learner.losses(mg.Batch(0, torch.arange(N), {"x": X, "y": y}))
    torch.testing.assert_close(losses, (out - y.flatten()).square())


@pytest.mark.parametrize(
    ("learner", "y", "message"),
    [
        (lambda: made("squared"), NUMBERS[:, :2], "center has 3 numbers"),
        (lambda: mg.Regressor(nn.Linear(4, 1).double()), NUMBERS, "field y has 3 numbers.*the model gives 1"),
        (lambda: mg.Regressor(nn.Linear(4, 1).double()), NUMBERS[:, :, None], r"float64 \[12, 3, 1\]: a Regressor"),
        (lambda: made("squared"), NUMBERS.index_fill(0, torch.tensor([2]), torch.inf), "not finite in row 2:"),
        (lambda: made("labels", 2), LABELS, "field y has 3 labels.*the model has 2 outputs"),
        (lambda: made("labels"), 2 * LABELS, r"lies outside \[0, 1\] in rows"),
        (lambda: mg.Regressor(nn.Linear(4, 1), loss="absolute"), NUMBERS, "squared, huber, not 'absolute'"),  # type: ignore[arg-type]
        (lambda: mg.Regressor(nn.Linear(4, 1), scale=0), NUMBERS, "scale must be > 0"),
    ],
)
def test_what_does_not_fit_is_told(learner: Callable[[], mg.Learner], y: Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message):
        mg.train(learner(), mg.Batches({"x": X, "y": y}, mg.epoch_plan(N, 4, 1, seed=0)))


def test_trak_needs_probabilities_of_labels() -> None:
    with pytest.raises(UserError, match="a Regressor has none"):
        at.TRAK(at.Uncompressed()).fit([(made("squared"), mg.initial_state(made("squared")))], batch("squared").fields)

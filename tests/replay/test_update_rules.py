"""Clipping, averages, groups, Muon, schedules of settings: metagradients against a naive unroll, finite differences, torch."""

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from toys import PLANS, ROWS, N, assert_slope, batches, examples, mlp, relative

import metagradient as mg
from metagradient.errors import UserError

T = len(ROWS)
DATA, HELD_OUT = examples(), examples(7, seed=3)
Tensors = dict[str, Tensor]


def is_matrix(name: str, shape: torch.Size) -> bool:
    return len(shape) == 2


def shrinking(t: int) -> float:
    return 1.0 - 0.05 * t


# -- the same updates parameter by parameter, from the formulas ---------------------------------------------------


@dataclass
class Naive:
    """One parameter's rule: `kind`, learning-rate factor, settings, and what it remembers."""

    kind: str
    factor: Callable[[int], float] = lambda t: 1.0
    momentum: Callable[[int], float] = lambda t: 0.0
    decay: float = 0.0
    memory: Tensor | None = None
    square: Tensor | None = None

    def __call__(self, x: Tensor, g: Tensor, t: int, rate: Tensor) -> Tensor:
        eta, mu = rate * self.factor(t), self.momentum(t)
        before = torch.zeros_like(x) if self.memory is None else self.memory
        if self.kind == "sgd":
            self.memory = mu * before + g + self.decay * x
            return x - eta * self.memory
        if self.kind == "muon":
            self.memory = mu * before + (1 - mu) * g
            return x - eta * self.decay * x - eta * orthogonalised((1 - mu) * g + mu * self.memory)
        assert self.kind == "adamw"
        square = torch.zeros_like(x) if self.square is None else self.square
        self.memory, self.square = 0.9 * before + 0.1 * g, 0.999 * square + 0.001 * g**2
        m, v = self.memory / (1 - 0.9 ** (t + 1)), self.square / (1 - 0.999 ** (t + 1))
        return x - eta * self.decay * x - eta * m / ((v + 1e-8) ** 0.5 + 1e-8)


def orthogonalised(d: Tensor) -> Tensor:
    """Five Newton-Schulz iterations on singular values: U p(p(...(S / ||d||)...)) V^T, p(s) = a s + b s^3 + c s^5."""
    u, s, v = torch.linalg.svd(d / d.norm().clamp(min=1e-7), full_matrices=False)
    for _ in range(5):
        s = 3.4445 * s - 4.775 * s**3 + 2.0315 * s**5
    return max(1.0, d.shape[0] / d.shape[1]) ** 0.5 * u @ torch.diag(s) @ v


@dataclass(frozen=True)
class Case:
    settings: dict[str, Any]
    rules: Callable[[str], Naive]
    clip_norm: float | None = None
    clip_value: float | None = None
    average: float | None = None


def sgd(name: str) -> Naive:
    return Naive("sgd", momentum=lambda t: 0.9)


def layers(name: str) -> Naive:
    if name.startswith("0."):
        return Naive("sgd", lambda t: 0.1, lambda t: 0.9, 0.02)
    return Naive("adamw", shrinking, decay=0.0 if name.endswith("bias") else 0.3)


def matrices(name: str) -> Naive:
    return Naive("adamw", lambda t: 0.2) if name.endswith("bias") else Naive("muon", momentum=lambda t: 0.95, decay=0.1)


LAYERS = mg.Groups(
    [
        mg.Group("0.*", mg.SGD(0.9, weight_decay=0.02), 0.1),
        mg.Group(lambda name, shape: len(shape) == 1, mg.AdamW(weight_decay=0.0), shrinking),
        mg.Group("*", mg.AdamW(weight_decay=0.3), shrinking),
    ]
)
MATRICES = mg.Groups([mg.Group(is_matrix, mg.Muon()), mg.Group("*", mg.AdamW(weight_decay=0.0), 0.2)])
CASES = {
    "norm": Case({"optimizer": mg.SGD(0.9)}, sgd, clip_norm=0.3),
    "norm of some steps": Case({"optimizer": mg.SGD(0.9)}, sgd, clip_norm=0.6),  # gradients from .4 to .8: others stay
    "value": Case({"optimizer": mg.SGD(0.9)}, sgd, clip_value=0.05),
    "average": Case({"optimizer": mg.SGD(0.9)}, sgd, average=0.7),
    "layers": Case({"optimizer": LAYERS}, layers),
    "muon": Case({"optimizer": MATRICES}, matrices),
    "momentum": Case(
        {"optimizer": mg.Scheduled(mg.SGD(0.9), {"momentum": lambda t: 0.9 - 0.03 * t})},
        lambda name: Naive("sgd", momentum=lambda t: 0.9 - 0.03 * t),
    ),
    "all": Case({"optimizer": LAYERS}, layers, clip_norm=0.3, clip_value=0.08, average=0.7),
}


def named(name: str) -> str:
    return name.removeprefix("model.")


def learner(case: Case) -> mg.Classifier:
    optimizer = case.settings["optimizer"]
    if isinstance(optimizer, mg.Groups):  # the learner's parameters are called model.*
        groups = [
            mg.Group(
                f"model.{g.names}" if g.names != "*" and isinstance(g.names, str) else g.names, g.optimizer, g.rate
            )
            for g in optimizer.groups
        ]
        optimizer = mg.Groups(groups)
    return mg.Classifier(
        mlp(), optimizer, 0.2, clip_norm=case.clip_norm, clip_value=case.clip_value, average=case.average
    )


def logits(p: Tensors, x: Tensor) -> Tensor:
    return torch.tanh(x @ p["0.weight"].T + p["0.bias"]) @ p["2.weight"].T + p["2.bias"]


def unrolled(case: Case, start: Tensors, weights: Tensor, rates: Tensor) -> Tensor:
    """The mean held-out loss after the run, connected to all three."""
    params, rules = dict(start), {name: case.rules(name) for name in start}
    average = dict(params)
    for t, rows in enumerate(ROWS):
        if not rows:
            continue
        params = {name: x if x.requires_grad else x.requires_grad_() for name, x in params.items()}
        losses = F.cross_entropy(logits(params, DATA["x"][rows]), DATA["y"][rows], reduction="none")
        loss = (weights[rows] * losses).sum() / len(rows)
        gradients = torch.autograd.grad(loss, list(params.values()), create_graph=True)
        if case.clip_value is not None:
            gradients = tuple(g.clamp(-case.clip_value, case.clip_value) for g in gradients)
        if case.clip_norm is not None:
            norm = sum((g**2).sum() for g in gradients) ** 0.5
            if norm + 1e-6 > case.clip_norm:
                gradients = tuple(g * case.clip_norm / (norm + 1e-6) for g in gradients)
        params = {name: rules[name](x, g, t, rates[t]) for (name, x), g in zip(params.items(), gradients, strict=True)}
        if case.average is not None:
            d = case.average
            average = dict(params) if t == 0 else {k: d * average[k] + (1 - d) * params[k] for k in params}
    end = params if case.average is None else average
    return F.cross_entropy(logits(end, HELD_OUT["x"]), HELD_OUT["y"])


@pytest.mark.parametrize("checkpoints", [p for p in PLANS if p in ("tape", "binomial(2)", "every(4)")])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_metagradients_are_those_of_a_naive_unroll(case: Case, checkpoints: str) -> None:
    ours = learner(case)
    start = ours.layout.params()
    rates, weights = torch.linspace(0.25, 0.1, T, dtype=torch.float64), torch.linspace(0.5, 1.5, N, dtype=torch.float64)
    z = [mg.DataWeights(weights.clone()), mg.LearningRates(rates.clone()), mg.InitialParameters(start)]
    found = mg.metagradient(ours, batches(DATA), z, mg.mean_loss(HELD_OUT), checkpoints=checkpoints)
    parameters = {named(n): p.detach().clone().requires_grad_() for n, p in ours.named_parameters()}
    inputs = [weights.requires_grad_(), rates.requires_grad_(), *parameters.values()]
    value = unrolled(case, parameters, weights, rates)
    by_weight, by_rate, *by_start = torch.autograd.grad(value, inputs)
    assert float(found.objective) == pytest.approx(float(value), rel=1e-12)
    assert relative(found.gradients["weights"], by_weight) < 1e-9
    assert relative(found.gradients["learning_rates"], by_rate) < 1e-9
    assert relative(found.gradients["initial_parameters"], torch.cat([g.flatten() for g in by_start])) < 1e-9


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_metagradients_are_slopes_of_real_runs(case: Case) -> None:
    z = [mg.DataWeights(torch.linspace(0.5, 1.5, N, dtype=torch.float64))]
    found = mg.metagradient(learner(case), batches(DATA), z, mg.mean_loss(HELD_OUT))
    assert_slope(found.gradients["weights"], learner(case), batches(DATA), z, "weights", mg.mean_loss(HELD_OUT))


# -- torch's own training -----------------------------------------------------------------------------------------


def torchs(optimizers: Sequence[torch.optim.Optimizer], model: nn.Module, case: Case) -> nn.Module:
    """The model after the run as a torch user writes it; the averaged one where the case averages."""
    averaged = None
    if case.average is not None:
        averaged = torch.optim.swa_utils.AveragedModel(
            model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(case.average)
        )
    for rows in ROWS:
        if not rows:
            continue
        model.zero_grad()
        F.cross_entropy(model(DATA["x"][rows]), DATA["y"][rows]).backward()
        if case.clip_value is not None:
            nn.utils.clip_grad_value_(model.parameters(), case.clip_value)
        if case.clip_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), case.clip_norm)
        for optimizer in optimizers:
            optimizer.step()
        if averaged is not None:
            averaged.update_parameters(model)
    return model if averaged is None else averaged.module


@pytest.mark.parametrize("name", ["norm", "norm of some steps", "value", "average"])
def test_clipped_and_averaged_runs_end_where_torchs_do(name: str) -> None:
    case, ours, model = CASES[name], learner(CASES[name]), mlp()
    ours.adopt(mg.train(ours, batches(DATA)))
    theirs = torchs([torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)], model, case)
    for (_, p), q in zip(ours.model.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)


def test_muon_is_torchs_but_for_torchs_half_precision() -> None:
    """Newton-Schulz in bfloat16 is good to some per cent; in float64 it is the polynomial of the singular values."""
    torch.manual_seed(0)
    weight, gradient = torch.randn(6, 4, dtype=torch.float64), torch.randn(6, 4, dtype=torch.float64)
    theirs = weight.clone().requires_grad_()
    optimizer = torch.optim.Muon([theirs], lr=0.1, weight_decay=0.2)
    theirs.grad = gradient.clone()
    optimizer.step()
    ours = mg.Muon(weight_decay=0.2).placed(["w"], [weight.shape])
    flat = weight.flatten()
    new, _ = ours.update(flat, gradient.flatten(), ours.init(flat), 0, {"learning_rate": 0.1, **ours.hyper(0)})
    step = new.view(6, 4) - weight
    assert relative(step, theirs.detach() - weight) < 0.05
    torch.testing.assert_close(step, -0.02 * weight - 0.1 * orthogonalised(gradient), rtol=1e-9, atol=1e-12)


def test_stacked_runs_are_clipped_averaged_and_grouped_each_by_itself() -> None:
    case = CASES["all"]
    weights = torch.stack([torch.ones(N, dtype=torch.float64), torch.linspace(0, 2, N, dtype=torch.float64)])
    run = learner(case)
    start = mg.initial_state(run)
    together = mg.train(run, batches(DATA), (mg.DataWeights(weights),), state=mg.TrainState.stack([start, start]))
    for i in range(2):
        alone = mg.train(run, batches(DATA), (mg.DataWeights(weights[i]),))
        for x, y in zip(together[i].tensors(), alone.tensors(), strict=True):
            torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-12)


def test_lion_steps_as_published_and_its_sign_is_told_to_have_no_derivative() -> None:
    theta, m, g = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.1, -0.1, 0.2]), torch.tensor([-2.0, 3.0, 0.0])
    lion = mg.Lion(weight_decay=0.5)
    new, (slot,) = lion.update(theta, g, (m,), 0, {"learning_rate": 0.1, **lion.hyper(0)})
    torch.testing.assert_close(new, 0.95 * theta - 0.1 * torch.tensor([-1.0, 1.0, 1.0]))
    torch.testing.assert_close(slot, 0.99 * m + 0.01 * g)
    run = mg.Classifier(mlp(), mg.Lion(), 0.01)
    z = [
        mg.DataWeights(torch.ones(N, dtype=torch.float64)),
        mg.LearningRates(torch.full((T,), 0.01, dtype=torch.float64)),
    ]
    with pytest.warns(UserWarning, match="sign has no derivative"):
        found = mg.metagradient(run, batches(DATA), z, mg.mean_loss(HELD_OUT))
    assert not found.gradients["weights"].any()
    rates = found.gradients["learning_rates"]
    assert_slope(
        rates, mg.Classifier(mlp(), mg.Lion(), 0.01), batches(DATA), z, "learning_rates", mg.mean_loss(HELD_OUT)
    )


def test_wrong_settings_name_what_mends_them() -> None:
    with pytest.raises(UserError, match=r"learner\.clip_norm=1\.0"):
        mg.Classifier(mlp(), clip_norm=0.0)
    with pytest.raises(UserError, match=r"learner\.average=0\.99"):
        mg.Classifier(mlp(), average=1.0)
    with pytest.raises(UserError, match="in no group"):
        mg.initial_state(mg.Classifier(mlp(), mg.Groups([mg.Group("model.0.*", mg.SGD())])))
    with pytest.raises(UserError, match=r"muon orthogonalises matrices, and parameter 'model.0.bias' has shape \[5\]"):
        mg.initial_state(mg.Classifier(mlp(), mg.Muon()))
    with pytest.raises(UserError, match="no setting 'beta1'"):
        mg.Scheduled(mg.SGD(0.9), {"beta1": lambda t: 0.9})
    grouped = learner(CASES["layers"])
    with pytest.raises(UserError, match="weight decay"):
        mg.metagradient(
            grouped, batches(DATA), mg.WeightDecay(torch.tensor(0.1, dtype=torch.float64)), mg.mean_loss(HELD_OUT)
        )


def test_smoothed_labels_are_torchs_in_training_and_plain_in_evaluation() -> None:
    run = mg.Classifier(mlp(), label_smoothing=0.2)
    batch = batches(DATA)(0)
    with torch.no_grad():
        logits_ = run.model(batch.x)
        smoothed = F.cross_entropy(logits_, batch.y, reduction="none", label_smoothing=0.2)
        torch.testing.assert_close(run.train().losses(batch), smoothed)
        torch.testing.assert_close(run.eval().losses(batch), F.cross_entropy(logits_, batch.y, reduction="none"))


def test_warnings_are_for_lion_alone() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mg.metagradient(
            copy.deepcopy(learner(CASES["muon"])),
            batches(DATA),
            mg.DataWeights(torch.ones(N, dtype=torch.float64)),
            mg.mean_loss(HELD_OUT),
        )

"""Every metaparameter, optimizer and checkpoint plan gives the gradient that a naive unroll and real runs give."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import oracle
import pytest
import torch
from oracle import Rule, Run, Tensors, Z
from torch import Tensor, nn
from toys import (
    CLASSES,
    INPUTS,
    PLANS,
    ROWS,
    N,
    assert_slope,
    batches,
    conv_net,
    examples,
    mlp,
    relative,
    smallest_memory,
    trained_objective,
)

import metagradient as mg
from metagradient.models import GPT, TwoTower, lora
from metagradient.replay.adjoint import Puller
from metagradient.training.modules.replayable import SeededDropout
from metagradient.training.random import step_randomness

EXACT = 1e-9
T = len(ROWS)
DATA, HELD_OUT = examples(), examples(7, seed=3)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# -- kinds of metaparameters, in our words and in the oracle's ----------------------------------------------------


@dataclass(frozen=True)
class Kind:
    ours: mg.Metaparameter
    theirs: Callable[[Tensor], Z]


def hats(knots: int) -> Tensor:
    """[T, knots]: linear interpolation from evenly spaced knots as a matrix."""
    place = torch.linspace(0, T - 1, knots, dtype=torch.float64)
    t = torch.arange(T, dtype=torch.float64)[:, None]
    return (1 - (t - place).abs() / (place[1] - place[0])).clamp(min=0)


WEIGHTS = 1 + 0.3 * random(N).tanh()
RATES = 0.2 + 0.05 * random(T).tanh()
KNOTS = torch.tensor([0.1, 0.3, 0.25, 0.05], dtype=torch.float64)
PIXELS = [8, 2, 5]
KINDS = {
    "weights": Kind(mg.DataWeights(WEIGHTS), lambda v: Z(weights=v)),
    "weights from step 5": Kind(mg.DataWeights(WEIGHTS, start=5), lambda v: Z(weights=v, weights_at=range(5, T))),
    "weights at step 6": Kind(mg.DataWeights(WEIGHTS, start=6, stop=7), lambda v: Z(weights=v, weights_at=[6])),
    "candidates at 0": Kind(
        mg.CandidateWeights(torch.zeros(N), step=3, candidates=DATA, chunk=4),
        lambda v: Z(candidates=v, candidates_at=3),
    ),
    "candidates": Kind(
        mg.CandidateWeights(0.1 * random(N), step=3, candidates=DATA, chunk=4),
        lambda v: Z(candidates=v, candidates_at=3),
    ),
    "inputs": Kind(
        mg.InputPerturbation(0.3 * random(3, INPUTS), index=torch.tensor(PIXELS)), lambda v: Z(inputs=v, rows=PIXELS)
    ),
    "rates": Kind(mg.LearningRates(RATES), lambda v: Z(rates=v)),
    "knots": Kind(mg.LearningRates(KNOTS, steps=T), lambda v: Z(rates=hats(4) @ v)),
    "log knots": Kind(mg.LearningRates(KNOTS.log(), steps=T, log=True), lambda v: Z(rates=(hats(4) @ v).exp())),
    "initial": Kind(mg.InitialParameters(oracle.flatten(oracle.trained(mlp()))), lambda v: Z(initial=v)),
    "decay": Kind(mg.WeightDecay(torch.tensor(0.05)), lambda v: Z(weight_decay=v)),
}

# -- optimizers, in our words and in the oracle's -----------------------------------------------------------------


def only_matrices(name: str, shape: torch.Size | None = None) -> bool:
    return name.endswith("weight")


@dataclass(frozen=True)
class Rules:
    ours: mg.Optimizer
    theirs: Rule
    rate: float = 0.3
    decay: Callable[[str, torch.Size], bool] | None = None


OPTIMIZERS = {
    "sgd": Rules(mg.SGD(), Rule("sgd")),
    "sgd decay": Rules(mg.SGD(weight_decay=0.1), Rule("sgd", weight_decay=0.1)),
    "momentum": Rules(mg.SGD(momentum=0.8), Rule("sgd", momentum=0.8)),
    "nesterov decay": Rules(
        mg.SGD(momentum=0.8, nesterov=True, weight_decay=0.1),
        Rule("sgd", momentum=0.8, nesterov=True, weight_decay=0.1, decays=only_matrices),
        decay=only_matrices,
    ),
    "adam": Rules(mg.Adam(eps_root=1e-6), Rule("adam", eps_root=1e-6), 0.1),
    "adam decay": Rules(
        mg.Adam((0.8, 0.95), eps_root=1e-6, weight_decay=0.1),
        Rule("adam", betas=(0.8, 0.95), eps_root=1e-6, weight_decay=0.1),
        0.1,
    ),
    "adamw": Rules(mg.AdamW(eps_root=1e-6), Rule("adamw", eps_root=1e-6, weight_decay=0.01), 0.1),
    "adamw masked": Rules(
        mg.AdamW(weight_decay=0.3, eps_root=1e-6),
        Rule("adamw", weight_decay=0.3, eps_root=1e-6, decays=only_matrices),
        0.1,
        only_matrices,
    ),
}

# -- the matrix: kind x optimizer x plan --------------------------------------------------------------------------


def learner(optimizer: str, normalize: Any = "batch") -> mg.Classifier:
    rules = OPTIMIZERS[optimizer]
    return mg.Classifier(mlp(), rules.ours, rules.rate, normalize=normalize, decay=rules.decay)


def run(optimizer: str, normalize: str = "batch") -> Run:
    rules = OPTIMIZERS[optimizer]
    start = oracle.trained(learner(optimizer))
    return Run(oracle.mlp, start, {}, DATA, ROWS, rules.theirs, rules.rate, normalize)


def held_out_loss(params: Tensors, stats: Tensors) -> Tensor:
    return oracle.mlp(params, stats, HELD_OUT, T)[0].mean()


def unrolled(run: Run, make: Callable[[Tensor], Z], value: Tensor, phi: Callable[..., Tensor]) -> Tensor:
    """The gradient of phi(trained parameters, statistics), [*value] or [Q, *value]."""
    leaf = value.detach().double().clone().requires_grad_()
    result = phi(*oracle.unroll(run, make(leaf)))
    if result.dim() == 0:
        return torch.autograd.grad(result, leaf)[0]
    return torch.stack([torch.autograd.grad(one, leaf, retain_graph=True)[0] for one in result])


@cache
def expected(kind: str, optimizer: str, normalize: str) -> Tensor:
    return unrolled(run(optimizer, normalize), KINDS[kind].theirs, KINDS[kind].ours.value, held_out_loss)


def replayed(kind: str, optimizer: str, normalize: Any, plan: str) -> Tensor:
    z = KINDS[kind].ours
    return mg.metagradient(learner(optimizer, normalize), batches(DATA), z, mg.mean_loss(HELD_OUT), checkpoints=plan)[
        z.name
    ]


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kind", KINDS)
def test_replay_agrees_with_the_unroll(kind: str, optimizer: str, plan: str) -> None:
    truth = expected(kind, optimizer, "batch")
    assert truth.norm() > 1e-5
    assert relative(replayed(kind, optimizer, "batch", plan), truth) < EXACT


@pytest.mark.parametrize("plan", ["tape", "binomial(2)"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kind", [k for k in KINDS if k.startswith("weights")])
def test_replay_agrees_with_the_unroll_when_the_loss_is_divided_by_the_weight_sum(
    kind: str, optimizer: str, plan: str
) -> None:
    truth = expected(kind, optimizer, "kept")
    assert relative(truth, expected(kind, optimizer, "batch")) > 0.01
    assert relative(replayed(kind, optimizer, "kept", plan), truth) < EXACT


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kind", KINDS)
def test_replay_agrees_with_central_differences(kind: str, optimizer: str) -> None:
    z, phi = KINDS[kind].ours, mg.mean_loss(HELD_OUT)
    gradient = replayed(kind, optimizer, "batch", "auto")
    assert_slope(gradient, learner(optimizer), batches(DATA), [z], z.name, phi)


@pytest.mark.parametrize("normalize", ["batch", "kept"])
def test_a_batch_of_weight_zero(normalize: Any) -> None:
    """Divided by the batch size it is a step of decay and momentum alone; by the weight sum it is a skipped step."""
    weights = WEIGHTS.clone()
    weights[ROWS[5]] = 0
    theirs = run("nesterov decay", normalize)
    if normalize == "kept":
        theirs = replace(theirs, batches=[*ROWS[:5], [], *ROWS[6:]])
    truth = unrolled(theirs, lambda v: Z(weights=v), weights, held_out_loss)
    for plan in ("tape", "all"):
        ours = mg.metagradient(
            learner("nesterov decay", normalize),
            batches(DATA),
            mg.DataWeights(weights),
            mg.mean_loss(HELD_OUT),
            checkpoints=plan,
        )
        assert relative(ours["weights"], truth) < EXACT


@pytest.mark.parametrize("plan", ["tape", "all", "binomial(2)"])
@pytest.mark.parametrize("other", [None, "inputs", "rates"])
def test_a_truncated_metagradient_is_that_of_the_steps_from_k_on(other: str | None, plan: str) -> None:
    """The weights act at every step; what they do before step 5 is a constant, whatever else is differentiated."""

    def weighted_before_5(p: Tensors, s: Tensors, fields: Tensors, t: int) -> tuple[Tensor, Tensors]:
        losses, s = oracle.mlp(p, s, fields, t)
        return (WEIGHTS[ROWS[t]] * losses if t < 5 else losses), s

    def theirs(v: Tensor) -> Z:
        rest = Z() if other is None else KINDS[other].theirs(KINDS[other].ours.value)
        return replace(rest, weights=v, weights_at=range(5, T))

    z = [mg.DataWeights(WEIGHTS, differentiate_from=5), *([] if other is None else [KINDS[other].ours])]
    truth = unrolled(replace(run("momentum"), model=weighted_before_5), theirs, WEIGHTS, held_out_loss)
    ours = mg.metagradient(learner("momentum"), batches(DATA), z, mg.mean_loss(HELD_OUT), checkpoints=plan)
    assert relative(ours["weights"], truth) < EXACT
    assert ours.plan.steps == (T - 5 if other is None else T)


def all_at_once() -> tuple[list[mg.Metaparameter], Callable[..., Z]]:
    """Every kind in one run, and the oracle's Z from their values in the same order."""
    names = ["weights", "candidates", "inputs", "log knots", "initial", "decay"]

    def theirs(weights: Tensor, candidates: Tensor, inputs: Tensor, knots: Tensor, initial: Tensor, decay: Tensor) -> Z:
        return Z(
            initial=initial,
            weights=weights,
            inputs=inputs,
            rows=PIXELS,
            rates=(hats(4) @ knots).exp(),
            weight_decay=decay,
            candidates=candidates,
            candidates_at=3,
        )

    return [KINDS[name].ours for name in names], theirs


@pytest.mark.parametrize("plan", ["tape", "all", "tree(3)", "binomial(2)"])
@pytest.mark.parametrize("optimizer", ["nesterov decay", "adamw masked"])
def test_all_metaparameters_in_one_replay(optimizer: str, plan: str, device: torch.device) -> None:
    z, theirs = all_at_once()
    leaves = [m.value.double().clone().requires_grad_() for m in z]
    truth = torch.autograd.grad(held_out_loss(*oracle.unroll(run(optimizer), theirs(*leaves))), leaves)
    ours = mg.metagradient(
        learner(optimizer).to(device),
        batches(DATA).to(device),
        z,
        mg.mean_loss(HELD_OUT),
        checkpoints=plan,
    )
    for m, gradient in zip(z, truth, strict=True):
        assert ours[m.name].device.type == device.type
        assert relative(ours[m.name], gradient) < EXACT, m.name


@pytest.mark.parametrize("storage", ["memory", "pinned", "disk"])
@pytest.mark.parametrize("plan", ["all", "binomial(2)"])
def test_where_checkpoints_lie_does_not_matter(storage: str, plan: str, device: torch.device) -> None:
    ours = mg.metagradient(
        learner("momentum").to(device),
        batches(DATA).to(device),
        KINDS["weights"].ours,
        mg.mean_loss(HELD_OUT),
        checkpoints=plan,
        storage=storage,
    )
    assert relative(ours["weights"], expected("weights", "momentum", "batch")) < EXACT


def test_auto_in_little_memory_is_another_plan_and_the_same_gradient() -> None:
    def attempt(memory: int) -> mg.Metagradients:
        return mg.metagradient(
            learner("adam"), batches(DATA), KINDS["weights"].ours, mg.mean_loss(HELD_OUT), memory=memory
        )

    result = attempt(smallest_memory(attempt))
    assert result.plan.name.startswith("binomial")
    assert relative(result["weights"], expected("weights", "adam", "batch")) < EXACT


# -- other learners -----------------------------------------------------------------------------------------------

IMAGES, HELD_OUT_IMAGES = examples(shape=(1, 4, 4)), examples(7, (1, 4, 4), seed=3)


def conv_run(rate: float = 0.3) -> Run:
    model = conv_net()
    stats = {f"model.1.running_{s}": getattr(model[1], f"running_{s}").clone() for s in ("mean", "var")}

    def losses(p: Tensors, s: Tensors, fields: Tensors, t: int) -> tuple[Tensor, Tensors]:
        logits, s = oracle.conv_logits(p, s, fields["x"], training=True, momentum=0.3)
        return oracle.cross_entropy(logits, fields["y"]), s

    start = oracle.trained(mg.Classifier(model))
    return Run(losses, start, stats, IMAGES, ROWS, Rule("sgd", momentum=0.8), rate)


def conv_losses(p: Tensors, stats: Tensors) -> Tensor:
    """Of the held-out images, in evaluation mode."""
    logits, _ = oracle.conv_logits(p, stats, HELD_OUT_IMAGES["x"], training=False, momentum=0.3)
    return oracle.cross_entropy(logits, HELD_OUT_IMAGES["y"])


def conv_learner() -> mg.Classifier:
    return mg.Classifier(conv_net(), mg.SGD(momentum=0.8), 0.3)


@pytest.mark.parametrize("plan", PLANS)
def test_batch_norm_statistics_carry_gradient_into_an_evaluation_mode_objective(
    plan: str, device: torch.device
) -> None:
    truth = unrolled(conv_run(), lambda v: Z(weights=v), WEIGHTS, lambda p, s: conv_losses(p, s).mean())
    blind = unrolled(
        conv_run(),
        lambda v: Z(weights=v),
        WEIGHTS,
        lambda p, s: conv_losses(p, {name: x.detach() for name, x in s.items()}).mean(),
    )
    assert relative(blind, truth) > 0.05  # statistics taken for constants would be this wrong
    ours = mg.metagradient(
        conv_learner().to(device),
        batches(IMAGES).to(device),
        mg.DataWeights(WEIGHTS),
        mg.mean_loss(HELD_OUT_IMAGES),
        checkpoints=plan,
    )
    assert relative(ours["weights"], truth) < EXACT


def test_batch_norm_agrees_with_central_differences() -> None:
    z, phi = [mg.DataWeights(WEIGHTS)], mg.mean_loss(HELD_OUT_IMAGES)
    gradient = mg.metagradient(conv_learner(), batches(IMAGES), z, phi)["weights"]
    assert_slope(gradient, conv_learner(), batches(IMAGES), z, "weights", phi)


def dropout_masks(p: float, *widths: int) -> list[list[Tensor]]:
    """Of every step and dropout layer, what multiplies the activations: 0 or 1 / (1 - p)."""
    masks = []
    for t, rows in enumerate(ROWS):
        with step_randomness(7, t, torch.device("cpu")):
            masks.append([SeededDropout(p)(torch.ones(len(rows), width, dtype=torch.float64)) for width in widths])
    return masks


@pytest.mark.parametrize("plan", PLANS)
def test_live_dropout(plan: str) -> None:
    masks = dropout_masks(0.4, 5)
    assert {float(m) for m in torch.cat([m[0].flatten() for m in masks]).unique()} == {0.0, 1 / 0.6}
    assert not torch.equal(masks[0][0], masks[1][0])

    def losses(p: Tensors, s: Tensors, fields: Tensors, t: int) -> tuple[Tensor, Tensors]:
        return oracle.cross_entropy(oracle.mlp_logits(p, fields["x"], masks[t][0]), fields["y"]), s

    dropping = mg.Classifier(mlp(0.4), mg.Adam(eps_root=1e-6), 0.1)
    theirs = Run(losses, oracle.trained(dropping), {}, DATA, ROWS, Rule("adam", eps_root=1e-6), 0.1)
    truth = unrolled(theirs, lambda v: Z(weights=v), WEIGHTS, held_out_loss)
    z, phi = mg.DataWeights(WEIGHTS), mg.mean_loss(HELD_OUT)
    ours = mg.metagradient(dropping, batches(DATA), z, phi, checkpoints=plan)
    assert relative(ours["weights"], truth) < EXACT
    if plan == "auto":
        assert_slope(ours["weights"], dropping, batches(DATA), [z], "weights", phi)


def towers() -> TwoTower:
    torch.manual_seed(1)
    return TwoTower(nn.Linear(INPUTS, 3, bias=False), nn.Linear(6, 3, bias=False), temperature=0.3).double()


@pytest.mark.parametrize("plan", ["tape", "all", "binomial(2)"])
@pytest.mark.parametrize("optimizer", ["momentum", "adamw"])
def test_contrastive_learner(optimizer: str, plan: str) -> None:
    pairs = {"x": random(N, INPUTS), "y": random(N, 6, seed=1)}
    held_out = {"x": random(5, INPUTS, seed=2), "y": random(5, 6, seed=3)}
    rules = OPTIMIZERS[optimizer]
    ours = mg.ContrastiveLearner(towers(), rules.ours, rules.rate)
    theirs = Run(oracle.contrastive, oracle.trained(ours), {}, pairs, ROWS, rules.theirs, rules.rate)
    z, phi = [mg.DataWeights(WEIGHTS), KINDS["inputs"].ours], mg.mean_loss(held_out)
    result = mg.metagradient(ours, batches(pairs), z, phi, checkpoints=plan)

    def held_out_mean(p: Tensors, s: Tensors) -> Tensor:
        return oracle.contrastive(p, s, held_out, T)[0].mean()

    leaves = [m.value.clone().requires_grad_() for m in z]
    both = Z(weights=leaves[0], inputs=leaves[1], rows=PIXELS)
    truth = torch.autograd.grad(held_out_mean(*oracle.unroll(theirs, both)), leaves)
    for m, gradient in zip(z, truth, strict=True):
        assert relative(result[m.name], gradient) < EXACT
    if plan == "tape":
        assert_slope(result["weights"], ours, batches(pairs), z, "weights", phi)


def token_batches(n: int = N, seed: int = 0) -> Tensors:
    return {"tokens": torch.randint(7, (n, 6), generator=torch.Generator().manual_seed(seed))}


def gpt(tied: bool = False) -> GPT:
    torch.manual_seed(1)
    model = GPT(vocab=7, block=5, layers=1, heads=2, width=8, tied=tied)
    for p in model.parameters():
        nn.init.normal_(p, std=0.3)  # far from where training is linear
    return model.double()


@pytest.mark.parametrize("plan", ["tape", "all", "binomial(2)"])
@pytest.mark.parametrize("kind", ["adapters", "tied"])
def test_causal_language_model(kind: str, plan: str) -> None:
    """Trainable low-rank adapters on a frozen base; and the embedding tied to the output map."""
    model = gpt() if kind == "adapters" else gpt(tied=True)
    if kind == "adapters":
        model = lora(model, rank=2, alpha=4.0, targets=["qkv", "mlp.0"]).double()
    rules = OPTIMIZERS["adamw" if kind == "adapters" else "momentum"]
    ours = mg.LanguageModel(model, rules.ours, 0.1)
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    assert (len(frozen) > 10) == (kind == "adapters")
    assert ours.layout.params().numel() == sum(p.numel() for p in model.parameters() if p.requires_grad)

    losses = oracle.language_model(copy.deepcopy(model))
    theirs = Run(losses, oracle.trained(ours), {}, token_batches(), ROWS, rules.theirs, 0.1)
    held_out = token_batches(5, seed=9)
    z, phi = [mg.DataWeights(WEIGHTS), KINDS["log knots"].ours], mg.mean_loss(held_out)
    result = mg.metagradient(ours, batches(token_batches()), z, phi, checkpoints=plan)
    leaves = [m.value.clone().requires_grad_() for m in z]
    params, stats = oracle.unroll(theirs, Z(weights=leaves[0], rates=(hats(4) @ leaves[1]).exp()))
    truth = torch.autograd.grad(losses(params, stats, held_out, T)[0].mean(), leaves)
    for m, gradient in zip(z, truth, strict=True):
        assert relative(result[m.name], gradient) < EXACT
    assert all(torch.equal(dict(model.named_parameters())[name], p) for name, p in frozen.items())
    if plan == "tape":
        assert_slope(result["weights"], ours, batches(token_batches()), z, "weights", phi)


# -- many objectives in one replay --------------------------------------------------------------------------------


class NormalisedMLP(nn.Sequential):
    def __init__(self, norm: nn.Module) -> None:
        torch.manual_seed(1)
        super().__init__(nn.Linear(INPUTS, 6), norm, nn.Tanh(), nn.Linear(6, CLASSES))
        self.double()


MANY: Mapping[str, Callable[[], mg.Learner]] = {
    "mlp": lambda: learner("adamw"),
    "conv, batch norm": conv_learner,
    "batch norm": lambda: mg.Classifier(NormalisedMLP(nn.BatchNorm1d(6)), mg.SGD(momentum=0.8)),
    "layer norm": lambda: mg.Classifier(NormalisedMLP(nn.LayerNorm(6)), mg.Adam()),
    "group norm": lambda: mg.Classifier(NormalisedMLP(nn.GroupNorm(2, 6)), mg.Adam()),
}


@pytest.mark.parametrize("plan", ["tape", "every(4)", "binomial(2)"])
@pytest.mark.parametrize("model", MANY)
def test_many_objectives_in_one_replay_are_as_many_replays(
    model: str, plan: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, held_out = (IMAGES, HELD_OUT_IMAGES) if model.startswith("conv") else (DATA, HELD_OUT)
    z: Sequence[mg.Metaparameter] = [
        mg.DataWeights(WEIGHTS),
        KINDS["log knots"].ours,
        mg.CandidateWeights(0.1 * random(N) if plan == "tape" else torch.zeros(N), step=3, candidates=data, chunk=4),
        mg.InitialParameters(MANY[model]().layout.params()),
    ]

    def replay(objective: Callable[[mg.Learner], Tensor]) -> mg.Metagradients:
        return mg.metagradient(MANY[model](), batches(data), z, objective, checkpoints=plan)

    together = replay(mg.example_losses(held_out))
    assert together.objective.shape == (7,)
    singly = [replay(lambda trained, q=q: mg.example_losses(held_out)(trained)[q]) for q in range(7)]
    init = Puller.__init__

    def looping(self: Puller, *args: Any) -> None:
        init(self, *args)
        self.batched = False

    monkeypatch.setattr(Puller, "__init__", looping)
    loop = replay(mg.example_losses(held_out))
    for m in z:
        truth = torch.stack([one[m.name] for one in singly])
        assert together[m.name].shape == (7, *m.value.shape)
        assert relative(together[m.name], truth) < 1e-12, m.name
        assert relative(loop[m.name], truth) < 1e-12, m.name


def test_many_objectives_agree_with_the_unroll() -> None:
    losses = unrolled(run("adam"), KINDS["weights"].theirs, WEIGHTS, lambda p, s: oracle.mlp(p, s, HELD_OUT, T)[0])
    images = unrolled(conv_run(), KINDS["weights"].theirs, WEIGHTS, conv_losses)
    for plan in ("tape", "sqrt"):
        ours = mg.metagradient(
            learner("adam"), batches(DATA), KINDS["weights"].ours, mg.example_losses(HELD_OUT), checkpoints=plan
        )
        assert relative(ours["weights"], losses) < EXACT
        ours = mg.metagradient(
            conv_learner(),
            batches(IMAGES),
            KINDS["weights"].ours,
            mg.example_losses(HELD_OUT_IMAGES),
            checkpoints=plan,
        )
        assert relative(ours["weights"], images) < EXACT


def test_one_objective_in_a_vector_is_that_objective() -> None:
    phi = mg.mean_loss(HELD_OUT)
    ours = mg.metagradient(learner("sgd"), batches(DATA), KINDS["weights"].ours, lambda trained: phi(trained)[None])
    assert ours["weights"].shape == (1, N)
    assert relative(ours["weights"][0], expected("weights", "sgd", "batch")) < EXACT


def test_steps_before_the_first_metaparameter_are_not_replayed() -> None:
    z, phi = KINDS["weights from step 5"].ours, mg.mean_loss(HELD_OUT)
    result = mg.metagradient(learner("sgd"), batches(DATA), z, phi, checkpoints="all")
    assert result.plan.steps == T - 5
    assert result.cost == pytest.approx((5 + (T - 5 - 1) + 3 * (T - 5)) / T)


def test_the_reported_objective_is_that_of_a_plain_run() -> None:
    z, phi = KINDS["weights"].ours, mg.mean_loss(HELD_OUT)
    result = mg.metagradient(learner("adam"), batches(DATA), z, phi, checkpoints="all")
    plain = trained_objective(learner("adam"), batches(DATA), [z], phi)
    assert float(result.objective) == pytest.approx(plain, rel=1e-14)

"""Small runs whose metagradients do not depend on how many processes share them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1] / "replay"))

import oracle  # noqa: F401 (for the tests)
from toys import CLASSES, INPUTS, ROWS, N, batches, conv_net, examples, fit, mlp

import metagradient as mg
from metagradient.attribution import Dropout, Influence
from metagradient.attribution.scoring.exact import ExactScores
from metagradient.attribution.scoring.scorers import scores
from metagradient.distributed import SOLO, Group, copy, gather, summed
from metagradient.errors import UserError
from metagradient.evaluation import GroundTruth, subsets
from metagradient.replay.storage import MemoryStorage, SharedStorage

T = len(ROWS)
DATA, HELD_OUT = examples(), examples(7, seed=3)
"""Nine batches of 4, 3, 2 and 0 rows: of four processes some have none."""


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


WEIGHTS = 1 + 0.3 * random(N).tanh()


def metaparameters() -> list[mg.Metaparameter]:
    """All that enter every run; weight decay and the initial parameters among them."""
    return [
        mg.DataWeights(WEIGHTS),
        mg.InputPerturbation(0.3 * random(3, INPUTS), index=torch.tensor([8, 2, 5])),
        mg.LearningRates(0.2 + 0.05 * random(T).tanh()),
        mg.InitialParameters(mg.Classifier(mlp()).layout.params()),
        mg.CandidateWeights(0.1 * random(N), step=3, candidates=DATA, chunk=2),
    ]


def classifier(group: Group, model: nn.Module | None = None, **settings: Any) -> mg.Classifier:
    optimizer, rate = settings.pop("optimizer", mg.SGD(0.9)), settings.pop("rate", 0.2)
    learner = mg.Classifier(mlp() if model is None else model, optimizer, rate, **settings)
    learner.group = group
    return learner


def outcome(learner: mg.Learner, z: list[mg.Metaparameter], objective: Any, **settings: Any) -> dict[str, Tensor]:
    data = settings.pop("data", None) or batches(DATA)
    found = mg.metagradient(learner, data, z, objective, **settings)
    ends = dict(zip(found.state.names(), found.state.tensors(), strict=True))
    return {"objective": found.objective, **ends, **found.gradients}


def rule(optimizer: mg.Optimizer, rate: float = 0.2, **settings: Any) -> Callable[[Group], dict[str, Tensor]]:
    def of(group: Group) -> dict[str, Tensor]:
        decay = [mg.WeightDecay(torch.tensor([0.1], dtype=torch.float64))] if "decays" in settings else []
        own = {name: x for name, x in settings.items() if name != "decays"}
        learner = classifier(group, optimizer=optimizer, rate=rate, **own)
        return outcome(learner, [*metaparameters(), *decay], mg.mean_loss(HELD_OUT))

    return of


def plan(name: str) -> Callable[[Group], dict[str, Tensor]]:
    return lambda group: outcome(classifier(group), metaparameters(), mg.mean_loss(HELD_OUT), checkpoints=name)


def tight(group: Group) -> dict[str, Tensor]:
    """Rows that cannot be divided evenly, in so little memory that a few bytes decide the plan: all must take the same."""
    found = {}
    for memory in range(80_000, 160_000, 8_000):
        learner = classifier(group)
        data = mg.Batches(DATA, mg.epoch_plan(N, 3, 4, seed=0))
        outcomes = outcome(learner, [mg.DataWeights(WEIGHTS)], mg.mean_loss(HELD_OUT), data=data, memory=memory)
        found[str(memory)] = outcomes["weights"]
    return found


def many_objectives(group: Group) -> dict[str, Tensor]:
    return outcome(classifier(group), metaparameters()[:3], mg.example_losses(HELD_OUT), checkpoints="every(4)")


def many_objectives_one_by_one(group: Group) -> dict[str, Tensor]:
    """Convolutions are pulled for one objective after another."""
    torch.manual_seed(1)
    net = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.GroupNorm(1, 3), nn.GELU(), nn.Flatten(), nn.Linear(12, CLASSES)
    ).double()
    images, held_out = examples(shape=(1, 4, 4)), examples(5, (1, 4, 4), seed=3)
    return outcome(classifier(group, net), [mg.DataWeights(WEIGHTS)], mg.example_losses(held_out), data=batches(images))


class Functional(nn.Module):
    """Batch norm as a function, of buffers of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(INPUTS, 5), nn.Linear(5, CLASSES)
        self.register_buffer("mean", torch.zeros(5))
        self.register_buffer("var", torch.ones(5))

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.batch_norm(self.inner(x), self.mean, self.var, training=self.training, momentum=0.3)
        return self.outer(x.tanh())


def batch_norm(group: Group) -> dict[str, Tensor]:
    """Of the whole batch, whose statistics carry gradient; short batches and empty shares included."""
    images = examples(shape=(1, 4, 4))
    pixels = mg.InputPerturbation(0.3 * random(3, 1, 4, 4), index=torch.tensor([8, 2, 5]))
    z = [mg.DataWeights(WEIGHTS), pixels, mg.InitialParameters(mg.Classifier(conv_net()).layout.params())]
    learner = classifier(group, conv_net(dropout=0.2), normalize="kept")
    one = outcome(learner, list(z), mg.mean_loss(images), data=batches(images), checkpoints="every(2)")
    torch.manual_seed(1)
    learner = classifier(
        group, Functional().double()
    )  # whose bias before the norm has no gradient, which Adam would blow up
    other = outcome(learner, metaparameters()[:3], mg.example_losses(HELD_OUT))
    return one | {f"{name} of a function": x for name, x in other.items()}


def chunked_objective(group: Group) -> dict[str, Tensor]:
    return outcome(classifier(group), metaparameters()[:1], mg.mean_loss(HELD_OUT, chunk=2))


def candidates(group: Group) -> dict[str, Tensor]:
    """Of weight 0, of which the forward pass sees nothing; in more chunks than processes and in fewer; in the rows' order and drawn."""
    z = [
        mg.CandidateWeights(torch.zeros(N), "many", step=3, candidates=DATA, chunk=2, seed=5),
        mg.CandidateWeights(torch.zeros(N), "few", step=3, candidates=DATA, chunk=7),
        mg.CandidateWeights(0.1 * random(N), "drawn", step=5, candidates=DATA, chunk=3, seed=6),
    ]
    one = outcome(classifier(group), list(z), mg.mean_loss(HELD_OUT), checkpoints="every(2)")
    many = outcome(classifier(group), list(z), mg.example_losses(HELD_OUT), checkpoints="every(2)")
    return one | {f"{name} of many": x for name, x in many.items()}


def augmented(group: Group) -> dict[str, Tensor]:
    def noise(fields: dict[str, Tensor], rng: torch.Generator) -> dict[str, Tensor]:
        drawn = torch.randn(fields["x"].shape, generator=rng, dtype=fields["x"].dtype)
        return {**fields, "x": fields["x"] + 0.1 * drawn}

    data = batches(DATA, augment=noise)
    return outcome(classifier(group, mlp(dropout=0.3)), metaparameters()[:3], mg.mean_loss(HELD_OUT), data=data)


class Towers(nn.Module):
    """Two linear towers with dropout; the scale of their similarities is a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.dropout = nn.Linear(INPUTS, 3), nn.Linear(INPUTS, 3), nn.Dropout(0.2)
        self.log_scale = nn.Parameter(torch.tensor(0.7))

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        a, b = self.left(self.dropout(x)), self.right(y)
        return nn.functional.normalize(a, dim=1), nn.functional.normalize(b, dim=1), self.log_scale.exp()


class Scaled(mg.ContrastiveLearner):
    """Whose contrast reads a parameter by itself, beside the features."""

    def losses_of(self, features: tuple[Tensor, ...], batch: mg.Batch) -> Tensor:
        return super().losses_of(features, batch) * (1 + self.model.log_scale.square())


def pairs(group: Group) -> dict[str, Tensor]:
    torch.manual_seed(3)
    data = {"x": random(N, INPUTS), "y": random(N, INPUTS, seed=1), "pair": torch.arange(N) % 8}
    learner = Scaled(Towers().double(), mg.Adam(), 0.05, normalize="kept")
    learner.group = group
    held_out = {"x": random(5, INPUTS, seed=2), "y": random(5, INPUTS, seed=3)}
    z = [*metaparameters()[:2], mg.CandidateWeights(0.1 * random(N), step=3, candidates=data, chunk=3, seed=1)]
    return outcome(learner, z, mg.mean_loss(held_out), data=batches(data))


class Sums(nn.Module):
    """Next tokens from the sum of those before, with dropout of all positions."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.dropout, self.outer = nn.Embedding(11, 5), nn.Dropout(0.3), nn.Linear(5, 11)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.outer(self.dropout(self.inner(tokens).cumsum(1).tanh()))


def tokens(group: Group) -> dict[str, Tensor]:
    torch.manual_seed(2)
    model = Sums().double()
    rows = torch.randint(11, (N, 6), generator=torch.Generator().manual_seed(4))
    data = {
        "tokens": rows,
        "mask": torch.arange(6) < torch.randint(2, 7, (N, 1), generator=torch.Generator().manual_seed(5)),
    }
    learner = mg.LanguageModel(model, mg.AdamW(weight_decay=0.1), 0.02)
    learner.group = group
    z = [mg.TokenWeights.ones(data), mg.DataWeights(WEIGHTS)]
    held_out = {name: x[:5] for name, x in data.items()}
    return outcome(learner, z, mg.mean_loss(held_out), data=batches(data))


SGD_DECAY = mg.SGD(0.9, nesterov=True, weight_decay=0.1)


def attribution(group: Group) -> dict[str, Tensor]:
    """Exact scores, influence with a curvature of fewer and of more rows than coordinates, and retrainings."""
    learner, data = classifier(group), batches(DATA)
    end = mg.train(learner, data)
    exact = ExactScores(learner, data, at_once=3)
    found = {
        "exact": torch.cat([part for part, _ in exact.columns(HELD_OUT)], dim=1),
        "mean": exact.aggregate(HELD_OUT)[0],
    }
    for name, k, settings in (("primal", 5, {}), ("dual", 30, {"curvature": "fisher"}), ("drawn", 5, {"labels": 2})):
        scorer = Influence(Dropout(k), batch_size=3, **settings).fit(learner, end, DATA)
        found[name] = scores(scorer, HELD_OUT, 0.3)
        found[f"{name}, mean"] = scorer.aggregate(HELD_OUT, 0.3)
        found[f"{name}, self"] = scorer.self_influence(0.3)
    for at_once in (1, 2):
        truth = GroundTruth(learner, data, HELD_OUT, at_once=at_once)
        found[f"retrained, {at_once} at once"] = truth.losses(subsets(N, 0.2, 7, seed=0))
        assert truth.runs == 7
    assert learner.group is group
    return found


CASES: dict[str, Callable[[Group], dict[str, Tensor]]] = {
    "sgd": rule(mg.SGD()),
    "momentum, decay": rule(SGD_DECAY, decays=True),
    "kept": rule(SGD_DECAY, decays=True, normalize="kept"),
    "adam": rule(mg.Adam(), 0.05),
    "adamw, clipped, averaged": rule(mg.AdamW(), 0.05, decays=True, clip_norm=0.5, average=0.5),
    "muon": rule(mg.Groups([mg.Group(lambda name, shape: len(shape) == 2, mg.Muon()), mg.Group("*", mg.Adam())]), 0.05),
    "micro-batches": rule(mg.SGD(0.9), micro_batch=1),
    "micro-batches, kept, adam": rule(mg.Adam(), 0.05, micro_batch=2, normalize="kept"),
    "plan all": plan("all"),
    "plan binomial": plan("binomial(2)"),
    "tight memory": tight,
    "many objectives": many_objectives,
    "many objectives, one by one": many_objectives_one_by_one,
    "batch norm": batch_norm,
    "chunked objective": chunked_objective,
    "candidates": candidates,
    "augmentation, dropout": augmented,
    "pairs": pairs,
    "tokens": tokens,
    "attribution": attribution,
}


def table(group: Group) -> dict[str, Any]:
    """Every case, the operations by themselves, and what is refused."""
    found: dict[str, Any] = {name: case(group) for name, case in CASES.items()}
    whole = dist.get_world_size() == group.size
    said = without_our_strategy(group) if whole else None
    return found | {
        "operations": operations(group),
        "refusals": refusals(group),
        "trainer": through_a_trainer(group),
        "ddp": said,
        "stored": stored(group),
    }


def through_a_trainer(group: Group) -> dict[str, Tensor]:
    """The same run as "adam" by Lightning's Trainer, where all processes are of the group."""
    if group.size not in (1, dist.get_world_size() if dist.is_initialized() else 1):
        return {}
    learner = classifier(group, optimizer=mg.Adam(), rate=0.05)
    callback = mg.Metagradient(metaparameters(), mg.mean_loss(HELD_OUT))
    learner.group = SOLO  # the Trainer tells it
    fit(learner, batches(DATA), callback, devices=group.size, strategy="auto" if group.alone else mg.SharedBatches())
    assert learner.group.size == group.size
    return {"params": learner.layout.params(), **callback.gradients}


def without_our_strategy(group: Group) -> str:
    """What is said to Lightning's own."""
    try:
        fit(mg.Classifier(mlp()), batches(DATA), devices=group.size, strategy="ddp")
    except UserError as error:
        return str(error)
    return ""


def stored(group: Group) -> dict[str, Any]:
    """Bytes of the checkpoints of a run of 48 parameters in this process, whose states come back bit for bit."""
    own = MemoryStorage()
    state = mg.TrainState(random(48), (-0.0 * random(48).abs(), random(48, seed=1)), random(7))
    storage = SharedStorage(own, group)
    storage.save(3, state)
    back = storage.load(3)
    assert [x.signbit().tolist() for x in back.tensors()] == [x.signbit().tolist() for x in state.tensors()]
    assert all(torch.equal(x, y) for x, y in zip(back.tensors(), state.tensors(), strict=True))
    return {"bytes": sum(x.untyped_storage().nbytes() for x in own.load(3).tensors())}


X = random(5, seed=8)


def term(rank: int, x: Tensor) -> Tensor:
    """A function that is another one in each process."""
    return (x * (rank + 1)).sin() * x


def operations(group: Group) -> dict[str, Tensor]:
    """Values and derivatives of a sum over the processes, and of gathered rows."""
    x, direction = X.clone().requires_grad_(), random(5, seed=9)
    (y,) = summed(group, lambda own: (term(group.rank, own),), x)
    z = (y**3).sum()  # replicated once more
    (first,) = torch.autograd.grad(z, x, create_graph=True)
    (second,) = torch.autograd.grad(first @ direction, x, create_graph=True)
    (third,) = torch.autograd.grad(second @ direction, x)

    # process 1 does not read x
    (other,) = summed(group, lambda own: (term(0, own) if group.rank != 1 else torch.ones(5).double(),), x)
    many = torch.func.vmap(lambda c: torch.autograd.grad(other, x, c, retain_graph=True)[0])(torch.eye(5).double())

    rows = random(7, 2, seed=10).requires_grad_()
    start, stop = group.share(7)
    (own,) = copy(group, rows)
    (all_rows,) = gather(group, 7, own[start:stop] ** 2)
    (back,) = torch.autograd.grad((all_rows * torch.arange(7).unsqueeze(1)).sum(), rows)
    found = {"value": y, "first": first, "second": second, "third": third, "many": many, "rows": all_rows, "back": back}
    return {name: value.detach() for name, value in found.items()}


def refusals(group: Group) -> dict[str, str]:
    """What is said, by every process alike, of runs that several cannot share."""

    class Centred(mg.Classifier):
        def losses(self, batch: mg.Batch) -> Tensor:
            losses = super().losses(batch)
            return (losses - losses.mean()).square()

    class Drawing(mg.Classifier):
        def losses(self, batch: mg.Batch) -> Tensor:
            return super().losses(batch) * torch.rand(len(batch))

    def of(learner: mg.Learner, data: mg.Batches | None = None, z: list[mg.Metaparameter] | None = None) -> str:
        learner.group = group
        try:
            data = data or batches(DATA)
            mg.metagradient(learner, data, z or metaparameters()[:1], mg.mean_loss(dict(data.examples)))
        except UserError as error:
            return str(error)
        return ""

    other = {name: x.clone() for name, x in DATA.items()}
    other["x"][ROWS[0]] += group.rank
    return {
        "own statistics": of(mg.Classifier(own_statistics()), batches(examples(shape=(1, 4, 4)))),
        "centred": of(Centred(mlp())),
        "drawing": of(Drawing(mlp())),
        "other start": of(mg.Classifier(scaled(mlp(), 1 + group.rank))),
        "other seed": of(mg.Classifier(mlp()), mg.Batches(DATA, mg.given_plan(ROWS), seed=group.rank)),
        "other plan": of(mg.Classifier(mlp()), batches(DATA, ROWS[group.rank :] + ROWS[: group.rank])),
        "other data": of(mg.Classifier(mlp()), batches(other)),
        "other weights": of(mg.Classifier(mlp()), z=[mg.DataWeights(WEIGHTS + group.rank)]),
        "other rate": of(mg.Classifier(mlp(), learning_rate=0.1 + group.rank)),
    }


def own_statistics() -> nn.Module:
    """Instance norm, whose running statistics are means over the rows that it sees."""
    norm = nn.InstanceNorm2d(2, track_running_stats=True)
    return nn.Sequential(nn.Conv2d(1, 2, 2), norm, nn.Flatten(), nn.Linear(18, CLASSES)).double()


def scaled(model: nn.Module, factor: float) -> nn.Module:
    with torch.no_grad():
        for p in model.parameters():
            p *= factor
    return model

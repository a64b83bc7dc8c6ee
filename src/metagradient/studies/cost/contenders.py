"""Ways to differentiate a training run, for `cost`: ours, a naive unroll, and other packages where installed.

Each takes a `Case` and returns d (validation loss) / d (data weights) [n], ours as `Metagradients`; `plain` and `torch_loop` only train. All of
them see the same model, the same batches and the same SGD with momentum.
"""

import functools
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metagradient as mg
from metagradient import data, models
from metagradient.errors import UserError
from metagradient.streams import Cost
from metagradient.training.compiled import Graphs, can_compile
from metagradient.training.modules.replayable import make_replayable
from metagradient.training.random import generator

RATE, MOMENTUM = 0.05, 0.9
COMPILED = ", compiled"
MODELS = ("mlp", "mnist_linear", "mnist_mlp", "resnet9", "gpt")


Found = Tensor | mg.Metagradients | None
"""What a contender returns."""


def gradient_of(found: Found) -> Tensor | None:
    """The metagradient itself."""
    return found["weights"] if isinstance(found, mg.Metagradients) else found


@dataclass(frozen=True)
class Case:
    """One model and length of run: fields of the training and validation examples, and the batches' index plan."""

    build: Callable[[], nn.Module]
    losses: Callable[[nn.Module, dict[str, Tensor]], Tensor]
    examples: dict[str, Tensor]
    validation: dict[str, Tensor]
    plan: Tensor
    like: Tensor = field(default_factory=lambda: torch.empty(0))

    def to(self, device: torch.device, dtype: torch.dtype = torch.float32) -> "Case":
        """The same on a device, floating-point numbers as `dtype`."""

        def moved(fields: dict[str, Tensor]) -> dict[str, Tensor]:
            return {k: x.to(device, dtype if x.is_floating_point() else None) for k, x in fields.items()}

        like, plan = self.like.to(device, dtype), self.plan.to(device)
        return replace(self, examples=moved(self.examples), validation=moved(self.validation), plan=plan, like=like)

    def model(self) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return self.build().to(self.like)

    def batch(self, t: int) -> tuple[Tensor, dict[str, Tensor]]:
        rows = self.plan[t]
        return rows, {k: v.index_select(0, rows) for k, v in self.examples.items()}

    @property
    def weights(self) -> Tensor:
        return self.like.new_ones(len(next(iter(self.examples.values()))))


class CaseLearner(mg.Learner):
    """A case as a Learner."""

    def __init__(self, case: Case, graphs: Graphs | None) -> None:
        super().__init__(mg.SGD(momentum=MOMENTUM), RATE)
        self.graphs = graphs
        self.model, self.case_losses = case.model(), case.losses

    def losses(self, batch: mg.Batch) -> Tensor:
        return self.case_losses(self.model, batch.fields)


def _classification(model: nn.Module, fields: dict[str, Tensor]) -> Tensor:
    # Class by class, as `mg.Classifier` does.
    log_probabilities = F.log_softmax(model(fields["x"]).T, dim=0)
    return -log_probabilities.gather(0, fields["y"].unsqueeze(0)).squeeze(0)


def _next_token(model: nn.Module, fields: dict[str, Tensor]) -> Tensor:
    tokens = fields["tokens"]
    return F.cross_entropy(model(tokens[:, :-1]).transpose(1, 2), tokens[:, 1:], reduction="none").mean(1)


def make_case(name: str, steps: int, seed: int = 0) -> Case:
    """One of MODELS: `mlp` on digits (85,002 parameters), the others on random data of the shape they are made for."""
    rng = generator(seed, Cost.EXAMPLES)
    if name in ("mnist_linear", "mnist_mlp"):
        x, y = torch.rand(2000, 1, 28, 28, generator=rng), torch.randint(10, (2000,), generator=rng)
        examples, validation = {"x": x[:1900], "y": y[:1900]}, {"x": x[1900:], "y": y[1900:]}
        build = functools.partial(models.linear if name == "mnist_linear" else models.mlp, (1, 28, 28), 10)
        return Case(build, _classification, examples, validation, _plan(1900, 128, steps, seed))
    if name == "mlp":
        digits = data.digits(train=1400, validation=300)
        plan = _plan(1400, 128, steps, seed)
        return Case(
            lambda: models.mlp((1, 8, 8), 10, hidden=(256, 256)), _classification, digits.train, digits.validation, plan
        )
    if name == "resnet9":
        x, y = torch.rand(512, 3, 32, 32, generator=rng), torch.randint(10, (512,), generator=rng)
        examples, validation = {"x": x[:384], "y": y[:384]}, {"x": x[384:], "y": y[384:]}
        plan = _plan(384, 64, steps, seed)
        return Case(lambda: models.resnet9((3, 32, 32), 10, width=16), _classification, examples, validation, plan)
    if name == "gpt":
        tokens = torch.randint(65, (256, 65), generator=rng)
        examples, validation = {"tokens": tokens[:192]}, {"tokens": tokens[192:]}
        return Case(
            lambda: models.GPT(65, block=64, layers=4, heads=4, width=128),
            _next_token,
            examples,
            validation,
            _plan(192, 16, steps, seed),
        )
    raise UserError(f"models must be among {', '.join(MODELS)}, not '{name}': set models=[mlp]")


def _plan(n: int, batch_size: int, steps: int, seed: int) -> Tensor:
    epochs = -(-steps // (n // batch_size))
    return mg.epoch_plan(n, batch_size, epochs, seed, drop_last=True)[:steps]


def plain(case: Case, graphs: Graphs | None = None) -> None:
    """The run itself, by the bare loop: the unit where it is not compiled."""
    mg.train(CaseLearner(case, graphs), mg.Batches(case.examples, case.plan))


def torch_loop(case: Case) -> None:
    """The same run as one would write it in PyTorch, with torch.optim."""
    model = case.model()
    optimizer = torch.optim.SGD(model.parameters(), RATE, momentum=MOMENTUM)
    for t in range(len(case.plan)):
        _, fields = case.batch(t)
        optimizer.zero_grad()
        case.losses(model, fields).mean().backward()
        optimizer.step()


def ours(
    case: Case,
    checkpoints: str,
    memory: str | int | None = None,
    objectives: int | None = None,
    graphs: Graphs | None = None,
) -> mg.Metagradients:
    """REPLAY under a checkpoint plan; of the first `objectives` validation losses at once, [objectives, n]."""
    learner, batches = CaseLearner(case, graphs), mg.Batches(case.examples, case.plan)
    objective: mg.Objective = mg.mean_loss(case.validation)
    if objectives is not None:
        objective = mg.example_losses({name: field[:objectives] for name, field in case.validation.items()})
    return mg.metagradient(
        learner, batches, mg.DataWeights(case.weights), objective, checkpoints=checkpoints, memory=memory
    )


def naive(case: Case) -> Tensor:
    """The whole run in one autograd graph, tensor by tensor, normalisation statistics included."""
    model, weights = _Losses(case.model(), case), case.weights.requires_grad_()
    make_replayable(model)
    params: dict[str, Tensor] = dict(model.named_parameters())
    momentum = {name: torch.zeros_like(p) for name, p in params.items()}
    statistics = {name: b for name, b in model.named_buffers() if b.is_floating_point()}
    for t in range(len(case.plan)):
        rows, fields = case.batch(t)
        state = {**params, **statistics}  # functional_call writes the new statistics back into it
        losses = torch.func.functional_call(model, state, (fields,))
        gradients = torch.autograd.grad((weights[rows] * losses).mean(), list(params.values()), create_graph=True)
        statistics = {name: state[name] for name in statistics}
        momentum = {k: MOMENTUM * momentum[k] + g for k, g in zip(params, gradients, strict=True)}
        params = {k: p - RATE * momentum[k] for k, p in params.items()}
    model.eval()
    final = torch.func.functional_call(model, {**params, **statistics}, (case.validation,))
    return torch.autograd.grad(final.mean(), weights)[0]


class _Losses(nn.Module):
    def __init__(self, model: nn.Module, case: Case) -> None:
        super().__init__()
        self.model, self.case_losses = model, case.losses

    def forward(self, fields: dict[str, Tensor]) -> Tensor:
        return self.case_losses(self.model, fields)


def with_higher(case: Case) -> Tensor:
    """The package `higher`."""
    import higher

    model, weights = case.model(), case.weights.requires_grad_()
    optimizer = torch.optim.SGD(model.parameters(), RATE, momentum=MOMENTUM)
    with higher.innerloop_ctx(model, optimizer, track_higher_grads=True) as (fmodel, diffopt):
        for t in range(len(case.plan)):
            rows, fields = case.batch(t)
            diffopt.step((weights[rows] * case.losses(fmodel, fields)).mean())
        fmodel.eval()
        return torch.autograd.grad(case.losses(fmodel, case.validation).mean(), weights)[0]


def with_torchopt(case: Case) -> Tensor:
    """The package `torchopt`."""
    import torchopt

    model, weights = case.model(), case.weights.requires_grad_()
    optimizer = torchopt.MetaSGD(model, lr=RATE, momentum=MOMENTUM)
    for t in range(len(case.plan)):
        rows, fields = case.batch(t)
        optimizer.step((weights[rows] * case.losses(model, fields)).mean())
    model.eval()
    return torch.autograd.grad(case.losses(model, case.validation).mean(), weights)[0]


def make_contender(name: str, tight: int) -> Callable[[Case], Found]:
    """`plain`, `torch loop`, `naive`, `higher`, `torchopt`, `auto, tight memory`, a checkpoint plan, or
    `PLAN xQ`: Q objectives in one replay. `plain, compiled` and `PLAN, compiled`: with compiled steps."""
    others: dict[str, Callable[[Case], Found]] = {
        "torch loop": torch_loop,
        "naive": naive,
        "higher": with_higher,
        "torchopt": with_torchopt,
    }
    if name in others:
        return others[name]
    graphs = Graphs() if is_compiled(name) else None  # made in the warm-up, for all runs
    name = name.removesuffix(COMPILED)
    if name == "plain":
        return lambda case: plain(case, graphs)
    if name == "auto, tight memory":
        return lambda case: ours(case, "auto", tight, graphs=graphs)
    plan, _, objectives = name.partition(" x")
    return lambda case: ours(case, plan, objectives=int(objectives) if objectives else None, graphs=graphs)


def is_compiled(name: str) -> bool:
    """Whether a contender's steps are compiled."""
    return name.endswith(COMPILED)


def missing(name: str) -> str | None:
    """What a contender lacks here, and how to get it: other packages and a compiler are optional."""
    if name in ("higher", "torchopt") and importlib.util.find_spec(name) is None:
        return f"{name} is not installed: pip install 'metagradient[peers]'"
    if is_compiled(name) and not can_compile():
        return f"'{name}' needs a C++ compiler: install g++"
    return None


def keeps_every_graph(name: str) -> bool:
    """Whether a contender's memory grows with every step."""
    return name.removesuffix(COMPILED) in ("naive", "higher", "torchopt", "tape")

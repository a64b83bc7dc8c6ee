"""Runs on a pretended CUDA device: nothing that they need is left on the CPU, and their gradients are those of the CPU."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from pretended import CUDA, pretended_cuda
from torch import Tensor, nn

import metagradient as mg
from metagradient.attribution import TrainedRun, method
from metagradient.data.augmentation import GaussianNoise, RandomShift
from metagradient.errors import UserError
from metagradient.evaluation.batched import train_batched
from metagradient.models import GPT, TwoTower, lora, resnet9
from metagradient.training.run import NonFiniteLoss
from metagradient.unlearning import DeltaGrad, Request, record

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device, which need not be pretended")

N, STEPS = 24, 6
CPU = torch.device("cpu")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def images(n: int = N, seed: int = 0) -> dict[str, Tensor]:
    return {"x": random(n, 1, 8, 8, seed=seed).sigmoid(), "y": torch.arange(n) % 3}


def sentences(n: int = N, seed: int = 0) -> dict[str, Tensor]:
    return {"tokens": torch.randint(7, (n, 6), generator=torch.Generator().manual_seed(seed))}


def pairs(n: int = N, seed: int = 0) -> dict[str, Tensor]:
    return {"x": random(n, 5, seed=seed), "y": random(n, 5, seed=seed + 1)}


def net(dropout: float = 0.0) -> nn.Module:
    layers = nn.Linear(64, 6), nn.Tanh(), nn.Dropout(dropout), nn.Linear(6, 3)
    return nn.Sequential(nn.Flatten(), *layers)


def conv_net() -> nn.Module:
    layers = nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(3, 3))


def gpt() -> nn.Module:
    return GPT(vocab=7, block=5, layers=1, heads=2, width=8)


class Drawing(nn.Module):
    """Draws from torch's own generator."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rand_like(x)


def matrices(name: str, shape: torch.Size) -> bool:
    return len(shape) > 1


def classifier(model: Callable[[], nn.Module] = net, optimizer: mg.Optimizer | None = None, **more: Any) -> mg.Learner:
    return mg.Classifier(model(), optimizer or mg.SGD(0.8, weight_decay=0.01), 0.1, **more)


@dataclass(frozen=True)
class Case:
    learner: Callable[[], mg.Learner] = classifier
    z: mg.Metaparameter | None = None
    data: Callable[..., dict[str, Tensor]] = images
    augment: Any = None
    many: bool = False
    storage: str = "memory"

    def run(self, device: torch.device) -> tuple[Tensor, mg.Metagradients]:
        torch.manual_seed(1)
        learner = self.learner().double().to(device)
        batches = mg.Batches(self.data(), seed=3, batch_size=N // 3, epochs=STEPS // 3, augment=self.augment).to(device)
        z = self.z or mg.DataWeights(1 + 0.3 * random(N).tanh())
        phi = (mg.example_losses if self.many else mg.mean_loss)(self.data(5, seed=9))
        found = mg.metagradient(learner, batches, z, phi, checkpoints="binomial(2)", storage=self.storage)
        return found[z.name], found


MUON = mg.Groups([mg.Group(matrices, mg.Muon()), mg.Group("*", mg.AdamW())])
CASES = {
    # metaparameters
    "weights": Case(),
    "inputs": Case(z=mg.InputPerturbation(0.1 * random(2, 1, 8, 8), index=torch.tensor([7, 4]))),
    "rates": Case(z=mg.LearningRates(torch.tensor([0.1, 0.2, 0.05]), steps=STEPS)),
    "momentum": Case(z=mg.Momentum(torch.full((STEPS,), 0.8))),
    "decay": Case(z=mg.WeightDecay(torch.tensor(0.02))),
    "initial": Case(z=mg.InitialParameters(0.1 * random(64 * 6 + 6 + 18 + 3))),
    "candidates": Case(z=mg.CandidateWeights(torch.zeros(N), step=2, candidates=images(), chunk=7)),
    "drawn candidates": Case(z=mg.CandidateWeights(0.1 * random(N), step=2, candidates=images(), chunk=7, seed=3)),
    "tokens": Case(lambda: mg.LanguageModel(gpt(), mg.AdamW(), 0.1), mg.TokenWeights.ones(sentences()), sentences),
    # optimizers
    "nesterov, masked": Case(
        lambda: classifier(optimizer=mg.SGD(0.8, nesterov=True, weight_decay=0.1), decay=matrices)
    ),
    "adam, clipped": Case(lambda: classifier(optimizer=mg.Adam(), clip_norm=0.1, clip_value=0.2)),
    "adamw, averaged": Case(lambda: classifier(optimizer=mg.AdamW(), average=0.5)),
    "muon": Case(lambda: classifier(optimizer=MUON)),
    "lion": Case(lambda: classifier(optimizer=mg.Lion()), mg.LearningRates(torch.full((STEPS,), 0.01))),
    # batches and learners
    "shifted and noisy": Case(augment=lambda f, g: GaussianNoise()(RandomShift(1)(f, g), g)),
    "dropout": Case(lambda: classifier(lambda: net(0.4))),
    "foreign draws": Case(lambda: classifier(lambda: nn.Sequential(Drawing(), net()))),
    "kept": Case(lambda: classifier(normalize="kept")),
    "micro-batches": Case(lambda: classifier(lambda: net(0.4), micro_batch=3)),
    "batch norm": Case(lambda: classifier(conv_net)),
    "resnet9": Case(lambda: classifier(lambda: resnet9((1, 8, 8), 3, width=2))),
    "adapters": Case(lambda: mg.LanguageModel(lora(gpt(), rank=2, alpha=4.0, targets=["qkv"])), data=sentences),
    "pairs": Case(
        lambda: mg.ContrastiveLearner(TwoTower(nn.Linear(5, 3), nn.Linear(5, 3), temperature=0.3)), data=pairs
    ),
    "numbers": Case(
        lambda: mg.Regressor(nn.Linear(5, 1)), data=lambda *a, **k: {"x": pairs(*a, **k)["x"], "y": random(*a or (N,))}
    ),
    # objectives, checkpoints
    "many objectives": Case(many=True),
    "many objectives, batch norm": Case(lambda: classifier(conv_net), many=True),
    "pinned": Case(storage="pinned"),
    "disk": Case(storage="disk"),
}


SLOW = ("resnet9", "tokens", "adapters", "many objectives, batch norm", "muon")


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in CASES])
def test_a_replay_on_a_device_is_that_on_the_cpu(name: str) -> None:
    expected, _ = CASES[name].run(CPU)
    with pretended_cuda() as device:
        ours, found = CASES[name].run(device)
        assert {x.device for x in (ours, found.objective, *found.state.tensors())} == {CUDA}
        assert float(expected.norm()) > 0
        assert float((ours.cpu() - expected).norm() / expected.norm()) < 1e-12


def scene(device: torch.device) -> tuple[mg.Learner, mg.Batches]:
    torch.manual_seed(1)
    return classifier().double().to(device), mg.Batches(images(), seed=3, batch_size=8, epochs=2).to(device)


def checked(device: torch.device) -> Tensor:
    learner, batches = scene(device)
    z, phi = mg.DataWeights(torch.ones(N)), mg.mean_loss(images(5, seed=9))
    found = mg.metagradient(learner, batches, z, phi)
    rows = mg.finite_differences(learner, batches, z, phi, found, coordinates=1)
    return torch.tensor([row.difference for row in rows])


def attributed(device: torch.device) -> Tensor:
    return method("dropout:64")(TrainedRun.of(*scene(device)), images(4, seed=9)).cpu()


def unlearned(device: torch.device) -> Tensor:
    run = record(*scene(device))
    return DeltaGrad(period=2, burn_in=2)(run, Request("delete", torch.tensor([3, 5]))).state.params.cpu()


def retrained(device: torch.device) -> Tensor:
    weights = torch.ones(3, N).index_fill(1, torch.tensor([2]), 0)
    return train_batched(*scene(device), weights).params.cpu()


@pytest.mark.parametrize("ask", [checked, attributed, unlearned, retrained])
def test_other_questions_are_answered_alike(ask: Callable[[torch.device], Tensor]) -> None:
    expected = ask(CPU)
    with pretended_cuda() as device:
        ours = ask(device)
        assert float((ours - expected).norm()) < 1e-10 * float(expected.norm())


@pytest.mark.parametrize(
    "mixed",
    [
        lambda x, y: x + y,
        lambda x, y: x @ y,
        lambda x, y: x.index_select(0, torch.tensor([1, 0])),
        lambda x, y: torch.where(y > 0, x, x),
        lambda x, y: torch.rand(2, generator=torch.Generator("cuda")),
        lambda x, y: torch.rand(2, device=x.device, generator=torch.Generator()),
        lambda x, y: torch.cat([x, y]),
    ],
)
def test_what_mixes_devices_is_seen(mixed: Callable[[Tensor, Tensor], Tensor]) -> None:
    with pretended_cuda() as device, pytest.raises(RuntimeError, match="device"):
        mixed(torch.ones(2, 2, device=device), torch.ones(2, 2))


def test_what_a_gpu_takes_from_the_cpu_is_none() -> None:
    with pretended_cuda() as device:
        x = torch.ones(2, 2, device=device)
        for made in (
            x * torch.tensor(2.0),
            x[torch.tensor([1, 0])],
            x.new_zeros(3),
            torch.tensor([1.0], device="cuda"),
        ):
            assert made.device == CUDA
        assert x.cpu().device == CPU


def broken(**change: Any) -> dict[str, Tensor]:
    fields = images()
    for name, (row, value) in change.items():
        fields[name][row] = value
    return fields


@pytest.mark.parametrize(
    ("name", "learner", "data"),
    [
        ("a label", classifier, lambda: broken(y=(5, 7))),
        ("a pixel", classifier, lambda: broken(x=(5, torch.nan))),
        ("padding", lambda: mg.LanguageModel(gpt()), lambda: sentences() | {"mask": torch.arange(6).expand(N, 6) != 2}),
    ],
)
def test_what_is_wrong_with_the_data_is_told_alike(name: str, learner: Any, data: Any) -> None:
    def told(device: torch.device) -> str:
        torch.manual_seed(1)
        batches = mg.Batches(data(), seed=3, batch_size=12, epochs=20).to(device)
        with pytest.raises(UserError) as refusal:
            mg.train(learner().double().to(device), batches)
        return str(refusal.value)

    expected = told(CPU)
    with pretended_cuda() as device:
        assert told(device).split(" at step")[0] == expected.split(" at step")[0]


def test_a_run_that_diverges_between_two_looks_is_told_at_its_end() -> None:
    batches = mg.Batches({"x": pairs()["x"], "y": random(N)}, seed=3, batch_size=12, epochs=10)
    with pretended_cuda() as device:
        learner, batches = mg.Regressor(nn.Linear(5, 1), mg.SGD(), 1e200).double().to(device), batches.to(device)
        with pytest.raises(NonFiniteLoss, match="at step 19"):
            mg.train(learner, batches)

"""Models that recompute activations (`torch.utils.checkpoint`) train and replay as the same models that keep them."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from toys import CLASSES, INPUTS, batches, examples, relative

import metagradient as mg
from metagradient.errors import UserError
from metagradient.replay.trial import measure
from metagradient.training import initial_state

OPTIMIZERS = (mg.SGD(momentum=0.9), mg.Adam(eps_root=1e-6))


class Attention(nn.Module):
    """Fused attention over the inputs as a sequence of scalars."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(1, 6)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x.unsqueeze(-1)).unsqueeze(1).chunk(3, dim=-1)
        return F.scaled_dot_product_attention(q, k, v).flatten(1)


def block(kind: str) -> nn.Module:
    middle: dict[str, Callable[[], nn.Module]] = {
        "plain": nn.GELU,
        "dropout": lambda: nn.Sequential(nn.Dropout(0.3), nn.GELU()),
        "batch norm": lambda: nn.BatchNorm1d(6),
        "attention": lambda: nn.Sequential(nn.Linear(6, 4), Attention(), nn.Linear(8, 6)),
    }
    return nn.Sequential(nn.Linear(INPUTS, 6), middle[kind](), nn.Linear(6, 6), nn.Tanh())


class Net(nn.Module):
    """Dropout, then a block that is run again (or not), then more dropout: the block's draws lie between others."""

    def __init__(self, kind: str, recompute: bool, reentrant: bool = False) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.before, self.block, self.after = nn.Dropout(0.2), block(kind), nn.Dropout(0.2)
        self.head = nn.Linear(6, CLASSES)
        self.recompute, self.reentrant = recompute, reentrant
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        x = checkpoint(self.block, x, use_reentrant=self.reentrant) if self.recompute else self.block(x)
        return self.head(self.after(x))


def metagradients(model: nn.Module, optimizer: mg.Optimizer, plan: str) -> mg.Metagradients:
    data, validation = examples(), examples(seed=3)
    z = [mg.DataWeights(torch.rand(10, generator=torch.Generator().manual_seed(2), dtype=torch.float64) + 0.5)]
    learner = mg.Classifier(model, optimizer, 0.3)
    return mg.metagradient(learner, batches(data), z, mg.mean_loss(validation), checkpoints=plan)


@pytest.mark.parametrize("plan", ["tape", "sqrt"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=["sgd", "adam"])
@pytest.mark.parametrize("kind", ["plain", "dropout", "batch norm", "attention"])
def test_recomputed_blocks_are_exact(kind: str, optimizer: mg.Optimizer, plan: str) -> None:
    kept = metagradients(Net(kind, recompute=False), optimizer, plan)
    again = metagradients(Net(kind, recompute=True), optimizer, plan)
    assert relative(again.state.params, kept.state.params) < 1e-13
    assert relative(again["weights"], kept["weights"]) < 1e-11


def test_a_block_within_a_block() -> None:
    class Nested(Net):
        def forward(self, x: Tensor) -> Tensor:
            def outer(x: Tensor) -> Tensor:
                return self.after(checkpoint(self.block, self.before(x), use_reentrant=False))

            return self.head(
                checkpoint(outer, x, use_reentrant=False) if self.recompute else self.after(self.block(self.before(x)))
            )

    kept = metagradients(Nested("dropout", recompute=False), OPTIMIZERS[0], "sqrt")
    again = metagradients(Nested("dropout", recompute=True), OPTIMIZERS[0], "sqrt")
    assert relative(again["weights"], kept["weights"]) < 1e-11


@pytest.mark.parametrize("plan", ["tape", "sqrt"])
@pytest.mark.parametrize("kind", ["plain", "dropout", "attention"])
def test_reentrant_blocks_are_exact(kind: str, plan: str) -> None:
    for optimizer in OPTIMIZERS:
        kept = metagradients(Net(kind, recompute=False), optimizer, plan)
        again = metagradients(Net(kind, recompute=True, reentrant=True), optimizer, plan)
        assert relative(again.state.params, kept.state.params) < 1e-13
        assert relative(again["weights"], kept["weights"]) < 1e-11


def test_a_step_of_reentrant_blocks_keeps_their_inputs_alone() -> None:
    """What a taped step of ten blocks of four wide layers keeps: less than a fifth, where the other kind saves nothing."""

    class Deep(nn.Module):
        def __init__(self, reentrant: bool | None) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.reentrant = nn.Linear(INPUTS, 8), reentrant
            wide = (nn.Linear(8, 200), nn.GELU(), nn.Linear(200, 200), nn.Tanh(), nn.Linear(200, 8))
            self.blocks = nn.ModuleList([nn.Sequential(*copy.deepcopy(wide)) for _ in range(10)]).requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            for block in self.blocks:
                x = x + (block(x) if self.reentrant is None else checkpoint(block, x, use_reentrant=self.reentrant))
            return x[:, :CLASSES]

    def taped(reentrant: bool | None) -> int:
        learner = mg.Classifier(Deep(reentrant), mg.SGD(), 0.1)
        data = {name: x.repeat(20, *[1] * (x.dim() - 1)) for name, x in examples().items()}
        batches = mg.Batches(
            {"x": data["x"].float(), "y": data["y"]}, mg.epoch_plan(200, batch_size=200, epochs=2, seed=0)
        )
        z = [mg.DataWeights(torch.ones(200))]
        return measure(learner, batches, initial_state(learner), z, 0).taped_step

    assert taped(True) < 0.2 * taped(None) < taped(False)


def test_objectives_at_once_through_reentrant_blocks() -> None:
    queries = examples(seed=3)
    found = []
    for recompute in (False, True):
        learner = mg.Classifier(Net("dropout", recompute, reentrant=True), OPTIMIZERS[1], 0.3)
        z = [mg.DataWeights(torch.ones(10, dtype=torch.float64))]
        found.append(mg.metagradient(learner, batches(examples()), z, mg.example_losses(queries))["weights"])
    assert found[0].dim() == 2
    assert relative(found[1], found[0]) < 1e-11


def test_inputs_that_want_no_gradient_and_outputs_that_have_none() -> None:
    class Told(Net):
        def forward(self, x: Tensor) -> Tensor:
            def two(x: Tensor, names: dict[str, Tensor], scale: float) -> tuple[Tensor, Tensor, None]:
                return scale * self.block(x + names["shift"]), x.argmax(1), None

            given = (self.before(x), {"shift": torch.ones(1, dtype=x.dtype)}, 2.0)
            h, _, _ = checkpoint(two, *given, use_reentrant=True) if self.recompute else two(*given)
            return self.head(self.after(h))

    kept, again = (metagradients(Told("plain", recompute), OPTIMIZERS[0], "tape") for recompute in (False, True))
    assert relative(again["weights"], kept["weights"]) < 1e-11


def test_what_a_reentrant_block_cannot_tell_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"tracks statistics: call it with use_reentrant=False"):
        metagradients(Net("batch norm", recompute=True, reentrant=True), OPTIMIZERS[0], "tape")

    class Counting(Net):
        def __init__(self) -> None:
            super().__init__("plain", recompute=True)
            self.register_buffer("seen", torch.zeros((), dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            def counted(x: Tensor) -> Tensor:
                self.seen.add_(1)
                return self.block(x)

            return self.head(checkpoint(counted, x, use_reentrant=True))

    with pytest.raises(UserError, match="tracks statistics"):
        metagradients(Counting(), OPTIMIZERS[0], "tape")

    class Closed(Net):
        def forward(self, x: Tensor) -> Tensor:
            shift = self.block(x)
            return self.head(checkpoint(lambda x: self.block(x) + shift, x, use_reentrant=True))

    with pytest.raises(UserError, match=r"no argument of it: give it as one, or call it with use_reentrant=False"):
        metagradients(Closed("plain", recompute=True), OPTIMIZERS[0], "tape")


def test_torch_is_left_as_it_was() -> None:
    """After a replay, checkpointing outside of one is torch's own."""
    metagradients(Net("plain", recompute=True), OPTIMIZERS[0], "tape")
    model = Net("plain", recompute=True, reentrant=True)
    x = torch.randn(3, INPUTS, dtype=torch.float64, requires_grad=True)
    model(x).sum().backward()
    assert x.grad is not None

"""Models that recompute activations (`torch.utils.checkpoint`) train and replay as the same models that keep them."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from toys import CLASSES, INPUTS, batches, examples, relative

import metagradient as mg
from metagradient.errors import UserError

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


def test_a_reentrant_checkpoint_is_refused_by_name() -> None:
    with pytest.raises(UserError, match="use_reentrant=False"):
        metagradients(Net("plain", recompute=True, reentrant=True), OPTIMIZERS[0], "tape")


def test_torch_is_left_as_it_was() -> None:
    """After a replay, checkpointing outside of one is torch's own."""
    metagradients(Net("plain", recompute=True), OPTIMIZERS[0], "tape")
    model = Net("plain", recompute=True, reentrant=True)
    x = torch.randn(3, INPUTS, dtype=torch.float64, requires_grad=True)
    model(x).sum().backward()
    assert x.grad is not None

"""Fifty architectures as other libraries ship them, each against torch's own training in float64: exact, or refused by name.

The oracles are `plain`: a run of torch's modules that stays in one graph, its parameters plain attributes that each step replaces
(value and metagradient, in training mode), and a run of `backward` and `torch.optim` (the value in evaluation mode, with the
statistics that it left). They share nothing with the replay: no vectors, no recomputation, no substitutes.
`pytest -m slow tests/replay/test_architectures.py -s` prints the table.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import plain
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metagradient as mg
from metagradient.errors import UserError

pytestmark = pytest.mark.slow
ROWS = [[0, 1, 2, 3], [4, 5, 0, 2]]
N, RATE, MOMENTUM = 6, 0.01, 0.9


@dataclass(frozen=True)
class Architecture:
    """A model, what it reads, and the words of its refusal where it is refused."""

    make: Callable[[], nn.Module]
    reads: str = "images"  # or tokens, sequences
    size: int = 32
    refused: str | None = None


def _library(name: str) -> Any:
    return importlib.import_module(name)


def timm(name: str, size: int = 32, refused: str | None = None, **settings: Any) -> Architecture:
    return Architecture(lambda: _library("timm").create_model(name, num_classes=3, **settings), "images", size, refused)


def vision(name: str, size: int = 32, refused: str | None = None, **settings: Any) -> Architecture:
    return Architecture(
        lambda: getattr(_library("torchvision.models"), name)(num_classes=3, **settings), "images", size, refused
    )


def hf(kind: str, auto: str = "AutoModelForSequenceClassification", **config: Any) -> Architecture:
    reads = "images" if "Image" in auto else "tokens"

    def make() -> nn.Module:
        library = _library("transformers")
        settings = {"pad_token_id": 0} if reads == "tokens" else {}
        made = library.AutoConfig.for_model(kind, num_labels=3, **(settings | config))
        return Logits(getattr(library, auto).from_config(made))

    return Architecture(make, reads, config.get("image_size", 32))


class Logits(nn.Module):
    """The logits of a Hugging Face model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x).logits


class Recurrent(nn.Module):
    def __init__(self, cell: type[nn.RNNBase], **settings: Any) -> None:
        super().__init__()
        self.cell, self.out = cell(6, 8, batch_first=True, **settings), nn.LazyLinear(3)
        self(torch.zeros(1, 7, 6))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.cell(x)[0].mean(1))


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(6, 2, 16, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder, self.out = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.encoder(x).mean(1))


class Mean(nn.Module):
    """Layers over [B, channels, ...], the mean of their places, and a head."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers, self.head = nn.Sequential(*layers), nn.LazyLinear(3)
        self.eval()(torch.zeros(2, 3, 8, 8))
        self.train()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x).flatten(2).mean(2))


class Still(nn.Sequential):
    """Layers that stay in evaluation mode."""

    def train(self, mode: bool = True) -> Still:
        return super().train(False)


def tokens(width: int = 16, **more: Any) -> dict[str, Any]:
    return {"vocab_size": 20, "hidden_size": width, "num_hidden_layers": 2, "num_attention_heads": 2} | more


WIDE = {"intermediate_size": 32, "max_position_embeddings": 16}
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
LLAMA = tokens(num_key_value_heads=1, **WIDE)
IMAGE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 32}
SEE = "AutoModelForImageClassification"

ARCHITECTURES: dict[str, Architecture] = {
    # timm
    "timm resnet10t": timm("resnet10t"),
    "timm efficientnet_b0": timm("efficientnet_b0", 64),
    "timm mobilenetv3_small_050": timm("mobilenetv3_small_050", 64),
    "timm convnext_atto": timm("convnext_atto"),
    "timm vit_tiny": timm("vit_tiny_patch16_224", img_size=32, depth=2),
    "timm deit_tiny distilled": timm("deit_tiny_distilled_patch16_224", img_size=32, depth=2),
    "timm swin": timm(
        "swin_tiny_patch4_window7_224",
        32,
        img_size=32,
        window_size=2,
        embed_dim=24,
        depths=(1, 1),
        num_heads=(2, 2),
        drop_path_rate=0.0,
    ),
    "timm mixer": timm("mixer_s32_224", img_size=32),
    "timm resmlp": timm("resmlp_12_224", img_size=32),
    "timm gmlp": timm("gmlp_ti16_224", img_size=32),
    "timm regnetx_002": timm("regnetx_002"),
    "timm regnety_002": timm("regnety_002"),
    "timm densenet121": timm("densenet121", block_config=(2, 2, 2, 2)),
    "timm ghostnet_050": timm("ghostnet_050", 64, drop_rate=0.0),
    "timm repvgg_a0": timm("repvgg_a0"),
    "timm poolformer_s12": timm("poolformer_s12", drop_path_rate=0.0),
    "timm mobilevit_xxs": timm("mobilevit_xxs", 64),
    "timm edgenext_xx_small": timm("edgenext_xx_small", 64),
    "timm levit_128s": timm("levit_128s", 224),
    "timm nf_regnet_b0": timm("nf_regnet_b0", 64),
    "timm skresnet18": timm("skresnet18"),
    "timm lcnet_050": timm("lcnet_050", 64),
    "timm cait": timm("cait_xxs24_224", img_size=32, depth=2),
    "timm xcit": timm("xcit_nano_12_p16_224", 32, img_size=32, depth=2),
    "timm tinynet_e": timm("tinynet_e", 64),
    # torchvision
    "torchvision resnet18": vision("resnet18"),
    "torchvision mobilenet_v2": vision("mobilenet_v2", 64, dropout=0.0),
    "torchvision squeezenet1_1": vision("squeezenet1_1", 64, dropout=0.0),
    "torchvision shufflenet_v2": vision("shufflenet_v2_x0_5", 64),
    "torchvision googlenet": vision("googlenet", 64, aux_logits=False, init_weights=True, dropout=0.0),
    # transformers: texts
    "bert": hf("bert", **tokens(**WIDE, **STILL)),
    "roberta": hf("roberta", **tokens(**WIDE, **STILL)),
    "albert": hf("albert", **tokens(embedding_size=8, classifier_dropout_prob=0.0, **WIDE, **STILL)),
    "electra": hf("electra", **tokens(embedding_size=8, **WIDE, **STILL)),
    "distilbert": hf(
        "distilbert",
        vocab_size=20,
        dim=16,
        n_layers=2,
        n_heads=2,
        hidden_dim=32,
        dropout=0.0,
        attention_dropout=0.0,
        seq_classif_dropout=0.0,
    ),
    "deberta-v2": hf(
        "deberta-v2", **tokens(pooler_hidden_size=16, pooler_dropout=0.0, relative_attention=True, **WIDE, **STILL)
    ),
    "gpt2": hf(
        "gpt2",
        vocab_size=20,
        n_embd=16,
        n_layer=2,
        n_head=2,
        n_positions=16,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    ),
    "gpt_neox": hf("gpt_neox", **tokens(**WIDE)),
    "opt": hf("opt", **tokens(ffn_dim=32, word_embed_proj_dim=16, max_position_embeddings=16, dropout=0.0)),
    "bloom": hf("bloom", vocab_size=20, hidden_size=16, n_layer=2, n_head=2, hidden_dropout=0.0),
    "llama": hf("llama", **LLAMA),
    "mistral": hf("mistral", **LLAMA),
    "qwen2": hf("qwen2", **LLAMA),
    "qwen3": hf("qwen3", **LLAMA, head_dim=8),
    "gemma": hf("gemma", **LLAMA, head_dim=8),
    "phi": hf("phi", **tokens(**WIDE, resid_pdrop=0.0, embd_pdrop=0.0)),
    "mixtral": hf("mixtral", **LLAMA, num_local_experts=2, num_experts_per_tok=2, experts_implementation="eager"),
    # transformers: images
    "vit": hf("vit", SEE, patch_size=8, **IMAGE, **STILL),
    "dinov2": hf("dinov2", SEE, patch_size=8, **IMAGE, **STILL),
    "convnext": hf("convnext", SEE, hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, image_size=32),
    "hf resnet": hf("resnet", SEE, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"),
    "mobilenet_v1": hf("mobilenet_v1", SEE, depth_multiplier=0.25, image_size=64, classifier_dropout_prob=0.0),
    # torch.nn
    "nn.LSTM": Architecture(lambda: Recurrent(nn.LSTM, num_layers=2, bidirectional=True), "sequences"),
    "nn.GRU": Architecture(lambda: Recurrent(nn.GRU), "sequences"),
    "nn.RNN, relu": Architecture(lambda: Recurrent(nn.RNN, nonlinearity="relu"), "sequences"),
    "nn.TransformerEncoder": Architecture(Encoder, "sequences"),
    "hard swish, batch norm by averages": Architecture(
        lambda: Mean(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, momentum=None), nn.Hardswish(), nn.Conv2d(6, 6, 3)), size=8
    ),
    "instance norm, group norm, PReLU": Architecture(
        lambda: Mean(
            nn.Conv2d(3, 6, 3),
            nn.InstanceNorm2d(6, affine=True, track_running_stats=True),
            nn.PReLU(),
            nn.GroupNorm(2, 6),
        ),
        size=8,
    ),
    "weight norm, spectral norm in evaluation": Architecture(
        lambda: Mean(
            nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 6, 3)),
            nn.Tanh(),
            Still(nn.utils.parametrizations.spectral_norm(nn.Conv2d(6, 6, 3))),
        ),
        size=8,
    ),
    "spectral norm": Architecture(
        lambda: Mean(nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 6, 3)), nn.Tanh()),
        size=8,
        refused="_u' under torch.no_grad",
    ),
    "transposed, dilated, local response": Architecture(
        lambda: Mean(nn.ConvTranspose2d(3, 6, 3), nn.CELU(), nn.LocalResponseNorm(2), nn.Conv2d(6, 6, 3, dilation=2)),
        size=8,
    ),
}


def examples(of: Architecture) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(0)
    x = {
        "images": lambda: torch.randn(N, 3, of.size, of.size, generator=g, dtype=torch.float64),
        "sequences": lambda: torch.randn(N, 7, 6, generator=g, dtype=torch.float64),
        "tokens": lambda: torch.randint(1, 20, (N, 7), generator=g),
    }[of.reads]()
    return {"x": x, "y": torch.arange(N) % 3}


def losses(model: nn.Module, fields: dict[str, Tensor]) -> Tensor:
    found = model(fields["x"])
    return F.cross_entropy(found[0] if isinstance(found, tuple) else found, fields["y"], reduction="none")


class Learner(mg.Learner):
    def __init__(self, model: nn.Module) -> None:
        super().__init__(mg.SGD(MOMENTUM), RATE)
        self.model = model

    def losses(self, batch: mg.Batch) -> Tensor:
        return losses(self.model, batch.fields)


def training_loss(fields: dict[str, Tensor]) -> Any:
    """The mean loss in training mode: batch norms read the batch, not their statistics."""

    def objective(learner: mg.Learner) -> Tensor:
        return learner.train().losses(mg.Batch(0, torch.arange(N), fields)).mean()

    return objective


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_architecture_is_exact_or_refused_by_name(name: str) -> None:
    of = ARCHITECTURES[name]
    torch.manual_seed(0)
    try:
        model = of.make().double()
    except ImportError as error:
        pytest.skip(f"an extra: {error}")
    fields = examples(of)
    held_out = {"x": fields["x"].roll(1, 0), "y": fields["y"]}
    g = torch.Generator().manual_seed(1)
    weights = 1 + 0.1 * torch.randn(N, generator=g, dtype=torch.float64)
    run = (fields, ROWS, weights.clone().requires_grad_(), RATE, MOMENTUM)

    def ours(objective: Any) -> mg.Metagradients:
        batches = mg.Batches(fields, torch.tensor(ROWS))
        return mg.metagradient(
            Learner(model), batches, mg.DataWeights(weights), objective, checkpoints="every(1)", memory=2**32
        )

    if of.refused is not None:
        with pytest.raises(UserError, match=of.refused) as refusal:
            ours(mg.mean_loss(held_out))
        print(f"\n| {name} | refused: {refusal.value} |")
        return
    expected = plain.unrolled(model, losses, *run, held_out)
    (slope,) = torch.autograd.grad(expected, run[2])
    found = ours(training_loss(held_out))
    ends = float(plain.objective(plain.trained(model, losses, fields, ROWS, weights, RATE, MOMENTUM), losses, held_out))
    read = float(ours(mg.mean_loss(held_out)).objective)  # with the statistics that the run left
    errors = [
        abs(float(found.objective) / float(expected) - 1),
        float((found["weights"] - slope).norm() / slope.norm()),
        abs(read / ends - 1),
    ]
    size = sum(p.numel() for p in model.parameters())
    print(f"\n| {name} | {size:,} | " + " | ".join(f"{e:.0e}" for e in errors) + " |")
    assert float(slope.norm()) > 0
    assert all(error < 1e-9 for error in errors), errors

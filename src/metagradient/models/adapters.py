"""Low-rank adapters on frozen linear layers."""

import math
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


class LoRALinear(nn.Module):
    """A frozen linear layer plus a trainable low-rank term: `y = W x + b + (alpha / rank) B A x`.

    A is [rank, in], Kaiming-uniform; B is [out, rank], zero, so a fresh adapter changes nothing.

    Raises:
        ValueError: a rank below 1.

    Source: LoRA, arXiv 2106.09685.
    """

    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        if rank < 1:
            raise ValueError(
                f"the rank of an adapter must be at least 1; got {rank}; set for example model.lora.rank=8"
            )
        self.base = base.requires_grad_(False)
        self.a = nn.Parameter(torch.empty(rank, base.in_features).to(base.weight))
        self.b = nn.Parameter(torch.zeros(base.out_features, rank).to(base.weight))
        self.scale = alpha / rank
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out]."""
        return self.base(x) + self.scale * (x @ self.a.T @ self.b.T)


def lora(module: M, rank: int, alpha: float, targets: Sequence[str]) -> M:
    """Freeze a module and put a trainable `LoRALinear` around its linear layers that `targets` name.

    A target is the end of a layer's dotted name: "qkv" or "attention.qkv" match "blocks.0.attention.qkv". The
    module is changed in place and returned; afterwards its only trainable parameters are the adapters.

    Raises:
        ValueError: a target matches no linear layer; those that exist are named.
    """
    layers = {name: m for name, m in module.named_modules() if isinstance(m, nn.Linear)}
    chosen: dict[str, nn.Linear] = {}
    for target in targets:
        found = {name: layer for name, layer in layers.items() if f".{name}".endswith(f".{target}")}
        if not found:
            raise ValueError(f"no linear layer is named {target!r}; targets may be any of {', '.join(layers)}")
        chosen |= found
    if not chosen:
        raise ValueError(f"targets is empty, so nothing would train; name some of {', '.join(layers)}")
    adapters = {name: LoRALinear(layer, rank, alpha) for name, layer in chosen.items()}
    module.requires_grad_(False)  # before the adapters are part of it
    for name, adapter in adapters.items():
        parent, _, child = name.rpartition(".")
        setattr(module.get_submodule(parent), child, adapter)
    return module

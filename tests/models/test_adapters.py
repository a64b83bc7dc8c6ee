"""LoRA: a fresh adapter changes nothing, and nothing but adapters trains."""

import pytest
import torch
from torch import nn

from metagradient.models import GPT, LoRALinear, lora


def gpt() -> GPT:
    torch.manual_seed(0)
    return GPT(vocab=11, block=8, layers=2, heads=2, width=16)


TOKENS = torch.arange(8).repeat(2, 1)


def test_a_fresh_adapter_leaves_the_output_unchanged() -> None:
    assert torch.equal(gpt()(TOKENS), lora(gpt(), rank=4, alpha=8, targets=["qkv", "head"])(TOKENS))


def test_only_the_adapters_of_the_named_layers_train() -> None:
    model = lora(gpt(), rank=4, alpha=8, targets=["qkv"])
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable == {f"blocks.{i}.attention.qkv.{ab}" for i in (0, 1) for ab in ("a", "b")}
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 2 * 4 * (16 + 48)
    model(TOKENS).sum().backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == trainable


def test_a_trained_adapter_is_a_low_rank_change_of_the_weight() -> None:
    base = nn.Linear(6, 5)
    layer = LoRALinear(base, rank=2, alpha=3)
    with torch.no_grad():
        layer.b.normal_()
    x = torch.randn(4, 6)
    change = 3 / 2 * layer.b @ layer.a
    assert torch.linalg.matrix_rank(change) == 2
    torch.testing.assert_close(layer(x), x @ (base.weight + change).T + base.bias)


def test_a_target_matches_whole_names_only() -> None:
    model = lora(gpt(), rank=1, alpha=1, targets=["blocks.1.mlp.0"])
    assert [name for name, m in model.named_modules() if isinstance(m, LoRALinear)] == ["blocks.1.mlp.0"]
    with pytest.raises(ValueError, match=r"no linear layer is named 'kv'; targets may be any of blocks\.0\.att"):
        lora(gpt(), rank=1, alpha=1, targets=["kv"])


def test_a_refused_call_leaves_the_module_trainable() -> None:
    model = gpt()
    for targets in (["qkv", "nowhere"], []):
        with pytest.raises(ValueError):
            lora(model, rank=1, alpha=1, targets=targets)
    with pytest.raises(ValueError, match="at least 1; got 0"):
        lora(model, rank=0, alpha=1, targets=["qkv"])
    assert all(p.requires_grad for p in model.parameters())

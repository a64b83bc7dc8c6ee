"""Hugging Face causal models: they read what the data have, train what they are told to, and say what does not fit."""

import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import metagradient as mg
from metagradient.data import TokenizerSettings, instructions, made_instructions
from metagradient.models import hf_causal

pytest.importorskip("transformers", reason="transformers is an extra")

LLAMA = {
    "model_type": "llama",
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}
GPT2 = {"model_type": "gpt2", "n_embd": 8, "n_layer": 2, "n_head": 2, "resid_pdrop": 0.5}
GEMMA = LLAMA | {"model_type": "gemma", "head_dim": 4, "num_key_value_heads": 1}
SMOLLM2 = os.environ.get("METAGRADIENT_SMOLLM2")


@pytest.mark.parametrize("config", [LLAMA, GPT2, GEMMA], ids=lambda config: config["model_type"])
def test_models_are_causal_and_without_dropout(config: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = hf_causal(30, 6, config=config).train()
    tokens = torch.randint(30, (2, 6))
    logits = model(tokens).logits
    assert logits.shape == (2, 6, 30)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(model(tokens).logits, logits, rtol=0, atol=0)
    torch.testing.assert_close(model(tokens[:, :4]).logits, logits[:, :4])


def test_adapters_alone_are_trained_and_change_nothing_at_first() -> None:
    pytest.importorskip("peft", reason="peft is an extra")
    torch.manual_seed(0)
    plain = hf_causal(30, 6, config=LLAMA)
    torch.manual_seed(0)
    adapted = hf_causal(30, 6, config=LLAMA, lora={"rank": 2, "alpha": 4, "targets": ["q_proj", "v_proj"]})
    tokens = torch.randint(30, (2, 6))
    torch.testing.assert_close(adapted(tokens).logits, plain(tokens).logits)
    trained = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * 2 * 2
    assert all(re.search(r"(q_proj|v_proj)\.lora_[AB]", name) for name in trained)


def _norms_in_double(model: nn.Module) -> None:
    """Transformers' own are computed in float32, whose rounding depends on the order of the sums."""
    for norm in [m for m in model.modules() if "RMSNorm" in type(m).__name__]:
        norm.forward = lambda x, norm=norm: (
            norm.weight * x * (x.square().mean(-1, True) + norm.variance_epsilon).rsqrt()
        )


@pytest.mark.parametrize(("share", "again"), [(1.0, [0, 1, 2, 3]), (0.5, [1, 3]), (0.25, [3])])
def test_a_share_of_the_blocks_is_checkpointed(share: float, again: list[int]) -> None:
    model = hf_causal(30, 6, config=LLAMA | {"num_hidden_layers": 4}, checkpointing=share)
    assert [i for i, block in enumerate(model.model.layers) if block.gradient_checkpointing] == again


@pytest.mark.parametrize(
    "lora", [None, {"rank": 2, "targets": ["q_proj", "v_proj", "down_proj"]}], ids=["whole", "lora"]
)
def test_checkpointing_changes_no_metagradient(lora: dict[str, Any] | None) -> None:
    if lora is not None:
        pytest.importorskip("peft", reason="peft is an extra")
    data = made_instructions(train=20, validation=4, test=2, vocab=261)
    found, inputs = [], []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = hf_causal(261, data.train["tokens"].shape[1] - 1, config=LLAMA, lora=lora, checkpointing=checkpointing)
        _norms_in_double(model)
        learner = mg.LanguageModel(model.double(), mg.Adam(eps_root=1e-6), 0.05)
        calls: list[int] = []
        first = next(m for name, m in model.named_modules() if name.endswith("layers.0.mlp"))
        first.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        batches = mg.Batches(data.train, mg.epoch_plan(20, batch_size=5, epochs=1, seed=0))
        g = mg.metagradient(
            learner, batches, mg.DataWeights(torch.ones(20)), mg.mean_loss(data.validation), checkpoints="sqrt"
        )
        found.append(g["weights"])
        inputs.append(len(calls))
    assert inputs[1] > inputs[0]  # what is inside a block was computed again
    assert bool(found[0].abs().max() > 1e-6)
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-12)


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = hf_causal(30, 6, config=GPT2)
    model.save_pretrained(tmp_path)  # type: ignore[operator]
    tokens = torch.randint(30, (2, 6))
    torch.testing.assert_close(hf_causal(30, 6, name=str(tmp_path))(tokens).logits, model(tokens).logits)
    with pytest.raises(ValueError, match=r"knows 30 tokens and the data's tokenizer 31.*data\.tokenizer\.name"):
        hf_causal(31, 6, name=str(tmp_path))
    with pytest.raises(ValueError, match=r"reads at most 6 tokens and the data have rows of 8: set data\.length=6"):
        hf_causal(30, 7, name=str(tmp_path))


def test_a_file_is_read_once_and_every_model_is_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    hf_causal(30, 6, config=LLAMA).save_pretrained(tmp_path)
    one = hf_causal(30, 6, name=str(tmp_path))
    read = transformers.AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(
        transformers.AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("read again")
    )
    other = hf_causal(30, 6, name=str(tmp_path))
    with torch.no_grad():
        next(one.parameters()).add_(1)
    third = hf_causal(30, 6, name=str(tmp_path))
    assert torch.equal(next(other.parameters()), next(third.parameters()))
    assert not torch.equal(next(one.parameters()), next(third.parameters()))
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", read)
    one.save_pretrained(tmp_path)
    for file in tmp_path.iterdir():
        os.utime(file, ns=(2**61, 2**61))
    assert torch.equal(next(hf_causal(30, 6, name=str(tmp_path)).parameters()), next(one.parameters()))


def test_a_tokenizer_of_other_tokens_is_told(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    hf_causal(300, 6, config=LLAMA).save_pretrained(tmp_path)  # type: ignore[operator]
    hf_causal(290, 6, name=str(tmp_path))
    assert not caplog.text
    hf_causal(30, 6, name=str(tmp_path))
    assert "knows 300 tokens and the data's tokenizer 30" in caplog.text


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"name": "/no/such"}, "model.name=/no/such does not exist"),
        ({"name": "none.gguf"}, "model.name=none.gguf does not exist"),
        ({"name": "{empty}"}, "cannot be loaded"),
        ({"config": {"model_type": "no such"}}, "makes no model"),
        (
            {"lora": {"targets": ["c_attn"]}},
            "no layer is called c_attn; there are down_proj, gate_proj, k_proj, lm_head",
        ),
        ({"lora": {"rank": 0, "targets": ["q_proj"]}}, "set model.lora.rank=8"),
        ({"lora": {"r": 4}}, "model.lora has no r: it takes rank, alpha, targets, dropout"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_one_line(settings: dict[str, Any], told: str, tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="peft is an extra")
    given = {key: str(tmp_path) if value == "{empty}" else value for key, value in settings.items()}
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(told)) as error:
        hf_causal(30, 6, **{"config": LLAMA, **given})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("missing", ["transformers", "peft"])
def test_libraries_that_are_not_there_are_told(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ValueError, match=rf"{missing} cannot be imported.*metagradient\[hf\]"):
        hf_causal(30, 6, config=LLAMA, lora={"targets": ["q_proj"]})


def test_all_linear_layers_by_the_end_of_their_names() -> None:
    pytest.importorskip("peft", reason="peft is an extra")
    adapted: nn.Module = hf_causal(30, 6, config=GPT2, lora={"targets": ["attn.c_proj"]})
    trained = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert len(trained) == 4
    assert all("attn.c_proj" in name for name in trained)


@pytest.mark.slow
@pytest.mark.skipif(SMOLLM2 is None, reason="METAGRADIENT_SMOLLM2 names no folder")
def test_a_gguf_file_reads_and_answers(tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="gguf is an extra")
    assert SMOLLM2 is not None
    name = str(next(Path(SMOLLM2).glob("*.gguf")))
    (tmp_path / "a.jsonl").write_text(
        '{"prompt": "What is the capital of France?", "response": "The capital of France is Paris."}\n' * 4
    )
    data = instructions(str(tmp_path / "a.jsonl"), validation=1, test=1, tokenizer=TokenizerSettings(name))
    tokens, labels = data.test["tokens"], data.test["labels"]
    assert data.tokenizer.decode(labels[labels >= 0].tolist()) == "The capital of France is Paris.<|im_end|>"
    said = data.tokenizer.decode(tokens[0].tolist())
    assert said.endswith(
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\nThe capital of France is Paris.<|im_end|>"
    )
    model = hf_causal(data.tokenizer.size, tokens.shape[1] - 1, name=name)
    with torch.no_grad():
        logits = model(tokens[:, :-1]).logits
    expected = labels[:, 1:]
    assert bool((logits.argmax(-1) == expected)[expected >= 0].float().mean() > 0.9)

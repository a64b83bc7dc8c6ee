"""Per-example gradients of padded texts are those of each text alone, whatever the model and however it is padded."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import metagradient as mg
from metagradient import models
from metagradient.attribution import ExampleGradients
from metagradient.attribution.gradients.targets import drawn
from metagradient.learners.language import heads

VOCABULARY = 23
LENGTHS, PROMPTS = [8, 4, 6, 5], [3, 2, 1, 4]


def texts(width: int = 9, filler: int = 0) -> dict[str, Tensor]:
    """Rows of 4 to 8 tokens, of which 1 or more are targets."""
    tokens = torch.full((4, width), filler)
    mask = torch.arange(width) < torch.tensor(LENGTHS)[:, None]
    tokens[mask] = torch.randint(VOCABULARY, (sum(LENGTHS),), generator=torch.Generator().manual_seed(3))
    targets = mask & (torch.arange(width) >= torch.tensor(PROMPTS)[:, None])
    return {"tokens": tokens, "mask": mask, "labels": torch.where(targets, tokens, -100)}


def huggingface(kind: str, adapters: bool) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    shape = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16}
    shape |= dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    if kind == "llama":
        shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
        shape |= {"num_key_value_heads": 1, "head_dim": 8, "tie_word_embeddings": adapters}
    config = transformers.AutoConfig.for_model(
        kind, vocab_size=VOCABULARY, bos_token_id=1, eos_token_id=2, pad_token_id=None, **shape
    )
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float64)
    if not adapters:
        return model
    peft = pytest.importorskip("peft")
    targets = ["c_attn"] if kind == "gpt2" else ["q_proj", "v_proj"]
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, lora_alpha=4, target_modules=targets))
    with torch.no_grad():
        for name, p in adapted.named_parameters():
            if "lora_B" in name:  # at zero the other half would have no gradient
                p.normal_(std=0.3)
    return adapted


MODELS: dict[str, Callable[[], nn.Module]] = {
    "gpt": lambda: models.GPT(VOCABULARY, 15, layers=1, heads=2, width=8),
    "gpt tied": lambda: models.GPT(VOCABULARY, 15, layers=1, heads=2, width=8, tied=True),
    "gpt2": lambda: huggingface("gpt2", adapters=False),  # Conv1D, positions that all share, a tied head
    "llama": lambda: huggingface("llama", adapters=False),  # RMSNorm
    "gpt2 lora": lambda: huggingface("gpt2", adapters=True),
    "llama lora": lambda: huggingface("llama", adapters=True),
}


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(1)
    found: nn.Module = MODELS[request.param]().double()
    return found


@pytest.fixture(params=["logits", "parts"])
def _divided(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models are also divided, as ones with large vocabularies are."""
    if request.param == "parts":
        monkeypatch.setattr(heads, "LARGE", 1)


def learner_of(model: nn.Module) -> mg.LanguageModel:
    learner = mg.LanguageModel(model, mg.SGD(), 0.1)
    learner.probe(mg.Batches(texts(), torch.tensor([[0, 1, 2, 3]])))
    return learner


def alone(learner: mg.Learner, state: mg.TrainState, i: int) -> Tensor:
    """The gradient [P] of a text by itself, without padding."""
    length = LENGTHS[i]
    fields = {name: x[i : i + 1, :length] for name, x in texts().items()}
    leaf = state.leaf()
    with learner.evaluating(leaf):
        tokens = fields["tokens"]
        found = learner.model(tokens[:, :-1])  # type: ignore[operator]
        logits = (found if isinstance(found, Tensor) else found.logits)[0]
        losses = logits.logsumexp(1) - logits[torch.arange(length - 1), tokens[0, 1:]]
        return torch.autograd.grad(losses[PROMPTS[i] - 1 :].mean(), leaf.params)[0]


def found(learner: mg.Learner, state: mg.TrainState, fields: dict[str, Tensor], **target: object) -> list[Tensor]:
    """[B, P], once for each value of the target."""
    gradients = ExampleGradients(learner, state)
    batch = mg.Batch(0, torch.arange(4), fields)
    return [
        torch.cat([piece.dense(0, p.rows) for p, piece in zip(gradients.parameters, pieces, strict=True)], dim=1)
        for pieces in gradients(batch, **target)  # type: ignore[arg-type]
    ]


@pytest.mark.usefixtures("_divided")
def test_hooks_equal_a_loop_over_unpadded_texts(model: nn.Module) -> None:
    learner = learner_of(model)
    state = mg.initial_state(learner)
    expected = torch.stack([alone(learner, state, i) for i in range(4)])
    for fields in (texts(), texts(width=13, filler=7)):
        (rows,) = found(learner, state, fields)
        torch.testing.assert_close(rows, expected, rtol=1e-9, atol=1e-11)


def test_labels_are_drawn_of_targets_whatever_the_padding(model: nn.Module) -> None:
    learner = learner_of(model)
    state = mg.initial_state(learner)
    one, other = (
        found(learner, state, fields, target=drawn(3, seed=5)) for fields in (texts(), texts(width=13, filler=7))
    )
    assert len(one) == 3
    for x, y in zip(one, other, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-11)


def test_drawn_labels_make_the_gauss_newton_matrix_of_padded_texts() -> None:
    """The mean of many draws against sum_t f_t J_t^T (diag p - p p^T) J_t of the head's bias, whose Jacobian is the identity."""
    torch.manual_seed(1)
    gpt = models.GPT(VOCABULARY, 15, layers=1, heads=2, width=8).double()
    gpt.head = nn.Linear(8, VOCABULARY).double()
    for name, p in gpt.named_parameters():
        p.requires_grad_(name == "head.bias")
    learner = learner_of(gpt)
    state = mg.initial_state(learner)
    batch, draws = mg.Batch(0, torch.arange(4), texts()), 4000
    with torch.no_grad(), learner.evaluating(state):
        p = learner.logits(batch).softmax(-1)
        factors = learner.position_weights(batch)
    expected = torch.einsum("bt,btc->bc", factors, p)
    expected = torch.diag_embed(expected) - torch.einsum("bt,btc,btd->bcd", factors, p, p)

    def values(params: Tensor) -> Tensor:
        with learner.evaluating(mg.TrainState(params, (), state.buffers)):
            return drawn(draws, 0)(learner, batch)  # [S, B]

    tangents = [torch.func.jvp(values, (state.params,), (e,))[1] for e in torch.eye(VOCABULARY, dtype=torch.float64)]
    jacobian = torch.stack(tangents, dim=2)  # [S, B, P]
    for b in range(4):
        rows = jacobian[:, b]
        assert float((rows.T @ rows - expected[b]).norm() / expected[b].norm()) < 0.1

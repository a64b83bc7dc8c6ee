"""Padded sequences: metagradients against an unroll that reads each row alone, without padding."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

import metagradient as mg
from metagradient.errors import UserError
from metagradient.learners.language import heads
from metagradient.models import GPT

N, VOCABULARY = 5, 31
ROWS = [[0, 1, 2], [3, 4, 0], [2, 1, 4]]
RATE, MOMENTUM, K = 0.3, 0.9, 1


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def texts(width: int = 9, filler: int = 0) -> dict[str, Tensor]:
    """Rows of 4 to 8 tokens, of which 1 or more are targets."""
    rng = torch.Generator().manual_seed(3)
    lengths, prompts = [8, 4, 6, 5, 7], [3, 2, 1, 4, 2]
    tokens = torch.full((N, width), filler)
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    tokens[mask] = torch.randint(VOCABULARY, (sum(lengths),), generator=rng)
    targets = mask & (torch.arange(width) >= torch.tensor(prompts)[:, None])
    return {"tokens": tokens, "mask": mask, "labels": torch.where(targets, tokens, -100)}


def gpt() -> nn.Module:
    torch.manual_seed(1)
    return GPT(VOCABULARY, 12, layers=2, heads=2, width=8, tied=True)


def huggingface(kind: str) -> nn.Module:
    """A tiny model with adapters: all else is frozen."""
    transformers, peft = pytest.importorskip("transformers"), pytest.importorskip("peft")
    if kind == "gpt2":
        shape = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16}
        shape |= dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    else:
        shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
        shape |= {"num_key_value_heads": 1, "head_dim": 8}
    config = transformers.AutoConfig.for_model(
        kind, vocab_size=VOCABULARY, bos_token_id=1, eos_token_id=2, pad_token_id=0, **shape
    )
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float64)
    targets = ["c_attn"] if kind == "gpt2" else ["q_proj", "v_proj"]
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, lora_alpha=4, target_modules=targets))
    with torch.no_grad():
        for name, p in adapted.named_parameters():
            if "lora_B" in name:  # at zero the other half would have no gradient
                p.normal_(std=0.3)
    return adapted


MODELS = {
    "gpt": gpt,
    **{kind: lambda kind=kind: huggingface(kind) for kind in ("gpt2", "llama", "gemma", "gemma2")},
}


@pytest.fixture(params=MODELS)
def model(request) -> nn.Module:
    return MODELS[request.param]()


@pytest.fixture(params=["logits", "parts"])
def divided(request, monkeypatch) -> bool:
    """Whether the model is divided, as ones with large vocabularies are."""
    if request.param == "parts":
        monkeypatch.setattr(heads, "LARGE", 1)
    return request.param == "parts"


def row_loss(model: nn.Module, params: dict[str, Tensor], fields: dict[str, Tensor], i: int, u: Tensor) -> Tensor:
    """(1 / L_i) sum_j u_j l_ij of row i, from its own tokens alone."""
    length = int(fields["mask"][i].sum())
    tokens = fields["tokens"][i, :length]
    found = functional_call(model, params, (tokens[None, :-1],))
    logits = (found if isinstance(found, Tensor) else found.logits)[0]
    losses = logits.logsumexp(1) - logits[torch.arange(length - 1), tokens[1:]]
    there = fields["labels"][i, 1:length] != -100
    return (losses[there] * u).mean()


def unrolled(model: nn.Module, fields: dict[str, Tensor], query: dict[str, Tensor]) -> dict[str, Tensor]:
    """Metagradients of the mean query loss in weights, token weights and candidate weights: one graph, dictionaries."""
    params = {n: p.detach().clone().requires_grad_() for n, p in model.named_parameters() if p.requires_grad}
    counts = [(int((row[1:] != -100).sum())) for row in fields["labels"]]
    weights, candidates = torch.ones(N, requires_grad=True), torch.zeros(N, requires_grad=True)
    u = [torch.ones(c, requires_grad=True) for c in counts]
    velocity = {n: torch.zeros_like(p) for n, p in params.items()}
    for t, rows in enumerate(ROWS):
        loss = torch.stack([weights[i] * row_loss(model, params, fields, i, u[i]) for i in rows]).mean()
        if t == K:
            loss = loss + sum(
                candidates[i] * row_loss(model, params, fields, i, torch.ones(counts[i])) for i in range(N)
            )
        gradients = torch.autograd.grad(loss, list(params.values()), create_graph=True)
        for name, g in zip(list(params), gradients, strict=True):
            velocity[name] = MOMENTUM * velocity[name] + g
            params[name] = params[name] - RATE * velocity[name]
    objective = torch.stack([row_loss(model, params, query, i, torch.ones(())) for i in range(len(query["tokens"]))])
    found = torch.autograd.grad(objective.mean(), [weights, candidates, *u])
    return {"weights": found[0], "candidates": found[1], "token_weights": torch.cat(found[2:])}


def replayed(model: nn.Module, fields: dict[str, Tensor], query: dict[str, Tensor], **settings) -> mg.Metagradients:
    batches = mg.Batches(fields, torch.tensor(ROWS))
    learner = mg.LanguageModel(model, mg.SGD(momentum=MOMENTUM), RATE, **settings)
    z = [
        mg.DataWeights(torch.ones(N)),
        mg.TokenWeights.ones(fields),
        mg.CandidateWeights(torch.zeros(N), step=K, candidates=fields, chunk=2),
    ]
    return mg.metagradient(learner, batches, z, mg.mean_loss(query))


def query() -> dict[str, Tensor]:
    fields = texts()
    return {name: x.flip(0)[:3] for name, x in fields.items()}


def test_every_weight_agrees_with_an_unroll_of_single_rows(model, divided):
    with sdpa_kernel(SDPBackend.MATH):
        expected = unrolled(model, texts(), query())
    found = replayed(model, texts(), query())
    for name, x in expected.items():
        assert float((found[name] - x).norm() / x.norm()) < 1e-9, name
    by_row = mg.TokenWeights.ones(texts()).split(found["token_weights"])
    torch.testing.assert_close(torch.stack([x.sum() for x in by_row]), found["weights"], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("change", [{"width": 12}, {"filler": 7}, {"width": 16 - 4, "filler": 30}])
def test_padding_changes_nothing(change, divided):
    one, other = replayed(gpt(), texts(), query()), replayed(gpt(), texts(**change), query())
    for name in ("weights", "token_weights", "candidates"):
        torch.testing.assert_close(one[name], other[name], rtol=1e-10, atol=1e-13)


def test_micro_batches_change_nothing(divided):
    one, other = replayed(gpt(), texts(), query()), replayed(gpt(), texts(), query(), micro_batch=1)
    for name in ("weights", "token_weights", "candidates"):
        torch.testing.assert_close(one[name], other[name], rtol=1e-10, atol=1e-13)


def test_sums_in_place_of_means(divided):
    fields = texts()
    learner = mg.LanguageModel(gpt(), reduction="sum")
    learner.probe(mg.Batches(fields, torch.tensor(ROWS)))
    batch = mg.Batch(0, torch.arange(N), fields)
    each = learner.token_losses(batch)
    torch.testing.assert_close(learner.losses(batch), each.sum(1))
    mean = mg.LanguageModel(gpt())
    counts = (fields["labels"] != -100).sum(1)
    torch.testing.assert_close(mean.losses(batch), each.sum(1) / counts)


def test_a_divided_model_makes_no_logits(monkeypatch):
    monkeypatch.setattr(heads, "LARGE", 1)
    learner = mg.LanguageModel(gpt())
    learner.probe(mg.Batches(texts(), torch.tensor(ROWS)))
    monkeypatch.setattr(learner.model.head, "forward", lambda x: pytest.fail("the head was called"))
    learner.losses(mg.Batch(0, torch.arange(N), texts()))


def test_a_row_without_targets_contributes_nothing_and_is_named(caplog):
    fields = texts()
    fields["labels"][2] = -100
    learner = mg.LanguageModel(gpt())
    with caplog.at_level("INFO"):
        learner.probe(mg.Batches(fields, torch.tensor(ROWS)))
    assert "1 of 5 rows have no token to predict and contribute nothing: row 2" in caplog.text
    losses = learner.losses(mg.Batch(0, torch.arange(N), fields))
    assert float(losses[2].detach()) == 0
    assert bool(losses.isfinite().all())
    assert learner.has_label(fields).tolist() == [True, True, False, True, True]


def altered(**fields: Tensor) -> dict[str, Tensor]:
    return texts() | fields


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"x": torch.zeros(2, 3)}, "reads the field tokens"),
        (altered(tokens=torch.zeros(N, 9)), "reads token numbers"),
        (altered(mask=texts()["mask"].flip(1)), "pad at the end"),
        (altered(labels=texts()["tokens"].roll(-1, 1)), "not shifted"),
        (altered(labels=torch.full((N, 9), -100)), "no row has a token to predict"),
    ],
)
def test_odd_fields_are_told(fields, said):
    with pytest.raises(UserError, match=said):
        mg.LanguageModel(gpt()).probe(mg.Batches(fields, torch.tensor([[0, 1]])))


def test_token_weights_of_other_rows_are_refused():
    shorter = texts()
    shorter["labels"][0, 5:] = -100
    with pytest.raises(UserError, match=r"do not fit|other target tokens"):
        mg.metagradient(
            mg.LanguageModel(gpt()),
            mg.Batches(texts(), torch.tensor(ROWS)),
            [mg.TokenWeights.ones(shorter)],
            mg.mean_loss(query()),
        )


def test_micro_batches_draw_the_dropout_of_the_whole_batch(divided):
    """Whatever the length of their own longest row."""
    data = mg.Batches(texts(), torch.tensor(ROWS))
    ends = [
        mg.train(mg.LanguageModel(nn.Sequential(gpt(), nn.Dropout(0.3)), micro_batch=size), data) for size in (None, 1)
    ]
    torch.testing.assert_close(ends[1].params, ends[0].params, rtol=1e-10, atol=1e-13)

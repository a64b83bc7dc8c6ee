"""GPT: causal, twice differentiable, and the same map as torch's own attention."""

import pytest
import torch
from torch.nn import functional as F

from metagradient.models import GPT, SentenceClassifier


def small(tied: bool = False) -> GPT:
    torch.manual_seed(0)
    return GPT(vocab=11, block=8, layers=2, heads=2, width=16, tied=tied).double()


@pytest.mark.parametrize("changed", range(8))
def test_changing_a_token_leaves_every_earlier_logit_unchanged(changed: int) -> None:
    model = small()
    tokens = torch.randint(11, (3, 8), generator=torch.Generator().manual_seed(1))
    other = tokens.clone()
    other[:, changed] = (other[:, changed] + 1) % 11
    here, there = model(tokens), model(other)
    assert torch.equal(here[:, :changed], there[:, :changed])
    assert (here[:, changed:] != there[:, changed:]).any(-1).all()


def test_attention_written_out_equals_the_fused_one() -> None:
    attention = small().blocks[0].attention
    x = torch.randn(3, 5, 16, dtype=torch.double)
    q, k, v = attention.qkv(x).chunk(3, -1)
    q, k, v = (t.reshape(3, 5, 2, 8).transpose(1, 2) for t in (q, k, v))
    fused = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(3, 5, 16)
    torch.testing.assert_close(attention(x), attention.out(fused))


def test_second_derivative_agrees_with_finite_differences() -> None:
    model = small()
    weight = model.blocks[0].attention.qkv.weight
    tokens = torch.randint(11, (2, 6), generator=torch.Generator().manual_seed(1))

    def gradient() -> torch.Tensor:
        logits = model(tokens)[:, :-1].flatten(0, 1)
        loss = F.cross_entropy(logits, tokens[:, 1:].flatten())
        return torch.autograd.grad(loss, weight, create_graph=True)[0]

    v = torch.randn(weight.shape, generator=torch.Generator().manual_seed(2), dtype=torch.double)
    (exact,) = torch.autograd.grad(gradient(), weight, v)
    step, sides = 1e-5, []
    for h in (step, -2 * step):
        weight.data.add_(v, alpha=h)
        sides.append(gradient().detach())
    torch.testing.assert_close(exact, (sides[0] - sides[1]) / (2 * step), rtol=1e-6, atol=1e-9)


def test_tying_shares_the_embedding_with_the_output_map() -> None:
    tied, free = small(tied=True), small()
    assert tied.head.weight is tied.tokens.weight
    saved = sum(p.numel() for p in free.parameters()) - sum(p.numel() for p in tied.parameters())
    assert saved == 11 * 16


def test_bad_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"width=10, heads=4; .*model\.width=8"):
        GPT(vocab=3, heads=4, width=10)
    with pytest.raises(ValueError, match=r"at most 8 tokens; got 9"):
        small()(torch.zeros(1, 9, dtype=torch.long))


def test_a_sentence_classifier_reads_words_and_no_padding() -> None:
    torch.manual_seed(0)
    model = SentenceClassifier((6,), 3, vocab=9, layers=1, heads=2, width=8).double()
    torch.nn.init.normal_(model.head.weight)
    words = torch.tensor([[3, 5, 2]])
    padded = torch.cat([words, torch.zeros(1, 3, dtype=torch.long)], dim=1)
    expected = model.head(model.states(words).mean(1))
    torch.testing.assert_close(model(padded), expected)
    assert not torch.allclose(model(padded), model(padded.roll(1, 1)))
    assert bool(torch.isfinite(model(torch.zeros(1, 6, dtype=torch.long))).all())  # a sentence without words

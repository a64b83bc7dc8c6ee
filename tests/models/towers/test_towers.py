"""The towers compute what torch's own layers compute with the same weights."""

import pytest
import torch
from torch import Tensor, nn

from metagradient.models import BagOfWords, TextTransformer, TwoTower, VisionTransformer, image_text_model
from metagradient.models.towers.transformer import Block


def of_torch(block: Block, width: int, heads: int) -> nn.TransformerEncoderLayer:
    layer = nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True).double()
    pairs = {
        layer.self_attn.in_proj_weight: block.qkv.weight,
        layer.self_attn.in_proj_bias: block.qkv.bias,
        layer.self_attn.out_proj.weight: block.out.weight,
        layer.self_attn.out_proj.bias: block.out.bias,
        layer.linear1.weight: block.mlp[0].weight,
        layer.linear1.bias: block.mlp[0].bias,
        layer.linear2.weight: block.mlp[2].weight,
        layer.linear2.bias: block.mlp[2].bias,
    }
    with torch.no_grad():
        for theirs, ours in pairs.items():
            assert isinstance(ours, Tensor)
            theirs.copy_(ours)
    return layer.train()


def test_a_block_is_torchs_encoder_layer_and_does_not_attend_to_padding() -> None:
    torch.manual_seed(0)
    block, x = Block(8, 2, 3).double(), torch.randn(4, 5, 8).double()
    there = torch.arange(5) < torch.tensor([5, 3, 1, 4])[:, None]
    layer = of_torch(block, 8, 2)
    torch.testing.assert_close(block(x), layer(x), rtol=1e-12, atol=1e-12)
    ours, theirs = block(x, there), layer(x, src_key_padding_mask=~there)
    torch.testing.assert_close(ours[there], theirs[there], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("tower", [BagOfWords(9, 4), TextTransformer(9, 4, length=8, width=8, heads=2)], ids=type)
def test_padding_says_nothing_and_an_empty_text_is_a_vector(tower: nn.Module) -> None:
    tower = tower.double()
    short, padded = torch.tensor([[3, 1]]), torch.tensor([[3, 1, 0, 0, 0], [0, 0, 0, 0, 0]])
    torch.testing.assert_close(tower(padded)[:1], tower(short), rtol=1e-12, atol=1e-12)
    assert bool(tower(padded).isfinite().all())
    order = float((tower(torch.tensor([[1, 3]])) - tower(short)).detach().abs().max())
    assert (order > 1e-6) == isinstance(tower, TextTransformer)


def test_patches_are_those_of_a_strided_convolution() -> None:
    torch.manual_seed(0)
    tower, images = VisionTransformer((3, 8, 12), 4, patch=4, width=8, layers=1, heads=2), torch.randn(2, 3, 8, 12)
    seen: list[Tensor] = []
    tower.embed.register_forward_hook(lambda module, given, found: seen.append(found))
    tower(images)
    theirs = nn.functional.conv2d(images, tower.embed.weight.view(8, 3, 4, 4), tower.embed.bias, stride=4)
    torch.testing.assert_close(seen[0], theirs.flatten(2).transpose(1, 2))


@pytest.mark.parametrize("image", ["resnet9", "vit", "mlp"])
@pytest.mark.parametrize("text", ["bag_of_words", "transformer"])
def test_towers_by_name_meet_in_one_space(image: str, text: str) -> None:
    model = image_text_model((3, 8, 16), 9, 4, image, text, outputs=6)
    a, b, scale = model(torch.randn(5, 3, 8, 16), torch.randint(0, 9, (5, 4)))
    assert a.shape == b.shape == (5, 6)
    torch.testing.assert_close((a * a).sum(1).detach(), torch.ones(5))
    assert float(scale.detach()) == pytest.approx(1 / 0.07, rel=1e-6)


def test_a_bias_is_learned_and_given_as_a_fourth() -> None:
    model = TwoTower(nn.Linear(2, 2), nn.Linear(2, 2), temperature=0.1, bias=-10.0)
    *_, scale, bias = model(torch.ones(1, 2), torch.ones(1, 2))
    assert float(scale.detach()) == pytest.approx(10)
    assert float(bias.detach()) == -10
    assert "bias" in dict(model.named_parameters())


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: VisionTransformer((3, 8, 8), patch=3), "patch=3 must divide the images' 8x8 pixels"),
        (lambda: VisionTransformer((3, 8, 8), width=6, heads=4), "heads=4 must divide the width 6"),
        (lambda: image_text_model((3, 8, 8), 9, 4, "vgg"), r"model\.image must be one of resnet9, vit, mlp"),
        (lambda: image_text_model((3, 8, 8), 9, 4, text_options={"depth": 2}), r"model\.text_options=.*depth"),
        (lambda: TextTransformer(9, length=2)(torch.zeros(1, 3, dtype=torch.int64)), "at most 2 tokens; got 3"),
    ],
)
def test_settings_that_do_not_fit_are_told(make: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()  # type: ignore[operator]

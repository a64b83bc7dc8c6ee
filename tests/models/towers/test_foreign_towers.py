"""Other libraries' models of pairs: their own embeddings, read at the end of each text, and trained by the one step."""

import sys
from typing import Any

import pytest
import torch
from torch import Tensor

import metagradient as mg
from metagradient.models import hf_clip, open_clip
from metagradient.models.towers.foreign import _DEVIATION, _MEAN, of_open_clip

VOCAB, LENGTH = 19, 4
TOKENS = torch.tensor([[5, 3, 0, 0], [2, 2, 7, 18], [0, 0, 0, 0]])
IMAGES = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
SIZES = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
CONFIG = {"projection_dim": 4, "vision_config": {**SIZES, "patch_size": 4}, "text_config": SIZES}


def normalised() -> Tensor:
    return (IMAGES - torch.tensor(_MEAN).view(3, 1, 1)) / torch.tensor(_DEVIATION).view(3, 1, 1)


def of_transformers() -> Any:
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    return hf_clip((3, 8, 8), VOCAB, LENGTH, config=CONFIG)


def of_open() -> Any:
    pytest.importorskip("open_clip")
    from open_clip.model import CLIP

    torch.manual_seed(0)
    text = {"context_length": LENGTH + 2, "vocab_size": VOCAB + 1, "width": 8, "heads": 2, "layers": 1}
    vision = {"layers": 1, "width": 8, "head_width": 4, "patch_size": 4, "image_size": 8}
    return of_open_clip(CLIP(4, vision, text), "model.name=small", VOCAB, LENGTH)


def test_transformers_sees_texts_that_end_where_ours_do() -> None:
    model, end = of_transformers(), VOCAB
    _, texts, _ = model(IMAGES, TOKENS)
    for text, tokens in zip(texts, ([4, 2, end], [1, 1, 6, 17, end], [end]), strict=True):
        alone = model.network(
            input_ids=torch.tensor([tokens]),
            pixel_values=normalised()[:1],
            attention_mask=torch.ones(1, len(tokens)).long(),
        )
        torch.testing.assert_close(text, alone.text_embeds[0])
    a, b, scale = model(IMAGES, TOKENS)
    theirs = model.network(input_ids=torch.tensor([[4, 2, end]]), pixel_values=normalised())
    torch.testing.assert_close(scale * a @ b[:1].T, theirs.logits_per_image)


def test_open_clip_sees_texts_that_end_where_ours_do() -> None:
    model, end = of_open(), VOCAB
    a, b, scale = model(IMAGES, TOKENS)
    padded = torch.tensor([[4, 2, end, 0, 0, 0], [1, 1, 6, 17, end, 0], [end, 0, 0, 0, 0, 0]])
    theirs = model.network(normalised(), padded)
    torch.testing.assert_close((a, b, scale), (theirs[0], theirs[1], theirs[2]))


@pytest.mark.parametrize("make", [of_transformers, of_open])
def test_runs_are_differentiated(make: Any) -> None:
    """Data weights through two steps, against central differences."""
    data = {"x": IMAGES.double(), "y": TOKENS}
    learner = mg.ContrastiveLearner(make().double(), mg.SGD(0.9), 0.1)
    batches, phi = mg.Batches(data, mg.full_batch_plan(3, 2)), mg.mean_loss(data)
    weights = torch.tensor([1.0, 0.5, 2.0]).double()
    gradient = mg.metagradient(learner, batches, mg.DataWeights(weights), phi)["weights"]
    direction, h = torch.tensor([1.0, -1.0, 0.5]).double(), 1e-5

    def after(step: float) -> float:
        with (
            torch.no_grad(),
            learner.evaluating(mg.train(learner, batches, [mg.DataWeights(weights + step * direction)])),
        ):
            return float(phi(learner))

    assert float(gradient @ direction) == pytest.approx((after(h) - after(-h)) / (2 * h), rel=1e-5)


def test_what_does_not_fit_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    with pytest.raises(ValueError, match=r"has 5 tokens, and the data 18: set data\.tokens"):
        hf_clip(
            (3, 8, 8), VOCAB, LENGTH, config={**CONFIG, "text_config": {**SIZES, "vocab_size": 5, "eos_token_id": 4}}
        )
    with pytest.raises(ValueError, match=r"set data\.length=2"):
        hf_clip((3, 8, 8), VOCAB, LENGTH, config={**CONFIG, "text_config": {**SIZES, "max_position_embeddings": 3}})
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # read when it was imported
    with pytest.raises(ValueError, match=r"model\.name=nowhere/at-all cannot be made into a CLIP"):
        hf_clip((3, 8, 8), VOCAB, LENGTH, name="nowhere/at-all")


def test_a_library_that_is_missing_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ValueError, match=r"pip install 'metagradient\[clip\]'"):
        open_clip((3, 8, 8), VOCAB, LENGTH)

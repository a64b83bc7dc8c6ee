"""The files in conf/model build with the two keywords that the data decide."""

from pathlib import Path

import pytest
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf

OF_TEXTS = ("gpt", "sentence_classifier")
FILES = sorted((Path(__file__).parents[2] / "conf" / "model").glob("*.yaml"))
OF_TABLES = ("table_mlp",)
OF_PAIRS = ("hf_clip", "image_text", "open_clip")
FOREIGN = ("custom", "timm", "hf_image_classifier", "hf_text_classifier", "hf_causal")
IMAGES = [file for file in FILES if file.stem not in (*OF_TEXTS, *OF_TABLES, *OF_PAIRS, *FOREIGN)]


@pytest.mark.parametrize("file", IMAGES, ids=lambda file: file.stem)
@pytest.mark.parametrize("input_shape", [(1, 8, 8), (3, 32, 32)])
def test_every_group_file_maps_images_to_logits(file: Path, input_shape: tuple[int, ...]) -> None:
    model = instantiate(OmegaConf.load(file), input_shape=input_shape, classes=7)
    assert model(torch.rand(2, *input_shape)).shape == (2, 7)


def test_models_of_texts_build() -> None:
    gpt, sentences = (OmegaConf.load(file) for file in FILES if file.stem in OF_TEXTS)
    assert instantiate(gpt, vocab=11, block=6)(torch.zeros(2, 6, dtype=torch.int64)).shape == (2, 6, 11)
    sentences.vocab = 11
    assert instantiate(sentences, input_shape=(6,), classes=3)(torch.zeros(2, 6, dtype=torch.int64)).shape == (2, 3)


def test_a_causal_model_maps_tokens_to_logits() -> None:
    pytest.importorskip("transformers", reason="transformers is an extra")
    node = OmegaConf.load(next(file for file in FILES if file.stem == "hf_causal"))
    model = instantiate(node, vocab=11, block=6)
    assert model(torch.zeros(2, 6, dtype=torch.int64)).logits.shape == (2, 6, 11)


@pytest.mark.parametrize("input_shape", [(8, 8), (1, 8, 8), (3, 32, 32)])
def test_timm_models_map_images_to_logits(input_shape: tuple[int, ...]) -> None:
    pytest.importorskip("timm", reason="timm is an extra", exc_type=ImportError)
    node = OmegaConf.load(next(file for file in FILES if file.stem == "timm"))
    model = instantiate(node, input_shape=input_shape, classes=7, image_size=32)
    assert model(torch.rand(2, *input_shape)).shape == (2, 7)
    with pytest.raises(InstantiationException, match="timm has no model 'resnet10tt'; near it"):
        instantiate(node, input_shape=input_shape, classes=7, name="resnet10tt")


@pytest.mark.parametrize("lora", [None, {"rank": 2, "targets": ["query", "value"]}])
def test_huggingface_classifiers_map_images_and_texts_to_logits(lora: dict[str, object] | None) -> None:
    pytest.importorskip("transformers", reason="transformers is an extra")
    if lora is not None:
        pytest.importorskip("peft", reason="peft is an extra")
    images, texts = (
        OmegaConf.load(next(f for f in FILES if f.stem == f"hf_{kind}_classifier")) for kind in ("image", "text")
    )
    if lora is None:  # the names of a ViT's projections differ
        model = instantiate(images, input_shape=(1, 8, 8), classes=7)
        assert model(torch.rand(2, 1, 8, 8)).shape == (2, 7)
    texts.vocab = 11
    reader = instantiate(texts, input_shape=(6,), classes=3, lora=lora).eval()
    tokens = torch.tensor([[3, 4, 5, 0, 0, 0], [3, 4, 5, 6, 7, 8]])
    logits = reader(tokens)
    assert logits.shape == (2, 3)
    torch.testing.assert_close(reader(tokens[:1, :3]), logits[:1])  # padding changes nothing
    trained = sum(p.numel() for p in reader.parameters() if p.requires_grad)
    assert lora is None or trained < 0.2 * sum(p.numel() for p in reader.parameters())
    with pytest.raises(InstantiationException, match="reads at most 64 tokens"):
        instantiate(texts, input_shape=(65,), classes=3)

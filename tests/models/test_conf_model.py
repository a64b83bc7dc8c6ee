"""The files in conf/model build with the two keywords that the data decide."""

from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

OF_TEXTS = ("gpt", "sentence_classifier")
FILES = sorted((Path(__file__).parents[2] / "conf" / "model").glob("*.yaml"))
IMAGES = [file for file in FILES if file.stem not in OF_TEXTS]


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

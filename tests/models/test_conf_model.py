"""The files in conf/model build with the two keywords that the data decide."""

from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

FILES = sorted((Path(__file__).parents[2] / "conf" / "model").glob("*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
@pytest.mark.parametrize("input_shape", [(1, 8, 8), (3, 32, 32)])
def test_every_group_file_maps_images_to_logits(file: Path, input_shape: tuple[int, ...]) -> None:
    model = instantiate(OmegaConf.load(file), input_shape=input_shape, classes=7)
    assert model(torch.rand(2, *input_shape)).shape == (2, 7)

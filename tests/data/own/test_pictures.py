"""Folders of images as programs leave them, and pixels that mean the same in every image."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metagradient.data import Splits, image_folder
from metagradient.data.own.formats.images import decoded, pixels


def grey(value: int, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8), value, dtype=np.uint8)).save(file)


def greys(splits: Splits, name: str) -> list[int]:
    return sorted((getattr(splits, name)["x"][:, 0, 0, 0] * 255).round().int().tolist())


def test_a_test_split_that_the_folders_lack_is_drawn_from_the_training_folder(tmp_path: Path) -> None:
    for i in range(20):
        grey(i, tmp_path / "train" / "ab"[i % 2] / f"{i}.png")
        grey(100 + i, tmp_path / "val" / "ab"[i % 2] / f"{i}.png")
    splits = image_folder(str(tmp_path), size=8)
    assert splits.classes == ("a", "b")
    assert greys(splits, "validation") == list(range(100, 120))
    assert sorted(greys(splits, "train") + greys(splits, "test")) == list(range(20))
    assert len(greys(splits, "test")) == 4


def test_what_programs_hide_and_empty_folders_are_no_classes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for i in range(20):
        grey(i, tmp_path / "ab"[i % 2] / f"{i}.png")
    for hidden in ("__MACOSX/0.png", ".ipynb_checkpoints/0.png", "a/.ipynb_checkpoints/0.png", "b/._0.png"):
        grey(200, tmp_path / hidden)
    (tmp_path / "notes").mkdir()
    with caplog.at_level(logging.WARNING):
        splits = image_folder(str(tmp_path), size=8)
    assert splits.classes == ("a", "b")
    assert sorted(g for name in ("train", "validation", "test") for g in greys(splits, name)) == list(range(20))
    assert "folders without images are no classes: notes" in caplog.text
    (tmp_path / "none" / "a").mkdir(parents=True)
    (tmp_path / "none" / "b").mkdir()
    with pytest.raises(ValueError, match="has no images"):
        image_folder(str(tmp_path / "none"))


def test_splits_of_a_divided_source_stay_with_their_images_where_one_is_broken(tmp_path: Path) -> None:
    for i in range(10):
        grey(i, tmp_path / "train" / "ab"[i % 2] / f"{i}.png")
        grey(100 + i, tmp_path / "val" / "ab"[i % 2] / f"{i}.png")
        grey(200 + i, tmp_path / "test" / "ab"[i % 2] / f"{i}.png")
    (tmp_path / "train" / "a" / "0.png").write_text("no image")
    splits = image_folder(str(tmp_path), size=8)
    assert greys(splits, "train") == list(range(1, 10))
    assert greys(splits, "validation") == list(range(100, 110))
    assert greys(splits, "test") == list(range(200, 210))
    assert torch.equal(splits.test["y"], (splits.test["x"][:, 0, 0, 0] * 255).round().long() % 2)


@pytest.mark.parametrize(
    ("dtype", "value", "fraction"),
    [(np.uint16, 30000, 30000 / 65535), (np.int32, 300, 300 / 65535), (np.int32, 2**30, 0.5), (np.float32, 0.25, 0.25)],
)
def test_grey_of_more_than_a_byte_is_not_divided_by_its_own_maximum(
    dtype: type[np.generic], value: float, fraction: float, tmp_path: Path
) -> None:
    values = np.full((8, 8), value, dtype=dtype)
    values[0, 0] = 0
    Image.fromarray(values).save(tmp_path / "a.tiff")
    read = pixels(decoded(tmp_path / "a.tiff", 8), "L")
    assert read[0, 0, 0] == 0
    np.testing.assert_allclose(read[0, 1:], fraction, rtol=1e-6)
    np.testing.assert_array_equal(pixels(decoded(tmp_path / "a.tiff", 8), "RGB"), np.repeat(read, 3, axis=0))


def test_floats_beyond_one_are_clipped(tmp_path: Path) -> None:
    Image.fromarray(np.array([[-1.0, np.nan], [0.5, 7.0]], dtype=np.float32)).save(tmp_path / "a.tiff")
    assert pixels(decoded(tmp_path / "a.tiff", 2), "L").tolist() == [[[0, 0], [0.5, 1]]]


def test_images_stand_upright(tmp_path: Path) -> None:
    upright = np.arange(64, dtype=np.uint8).reshape(8, 8)
    lying = Image.fromarray(np.rot90(upright).copy())  # a quarter turn against the clock
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter with the clock
    lying.save(tmp_path / "a.png", exif=exif)
    read = (pixels(decoded(tmp_path / "a.png", 8), "L")[0] * 255).round()
    np.testing.assert_array_equal(read, upright)

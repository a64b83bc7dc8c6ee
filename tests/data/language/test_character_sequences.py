"""Character sequences: cut from the right split, without overlap, with sources planted where they are said to be."""

from pathlib import Path

import pytest
import torch

from metagradient.data import TextSplits, characters


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import datasets

    path = tmp_path_factory.mktemp("text") / "play"
    path.mkdir()
    texts = {"train": "ABCDEFGHIJ\n" * 200, "test": "0123456789 " * 60}
    for split, text in texts.items():
        datasets.Dataset.from_dict({"text": [text]}).to_parquet(path / f"{split}-00000-of-00001.parquet")
    return path


def test_sequences_of_the_right_split(folder: Path) -> None:
    splits = characters(str(folder), train=40, validation=10, test=12, length=10)
    assert isinstance(splits, TextSplits)
    assert set(splits.describe(splits.train["tokens"])) == {"ABCDEFGHIJ⏎"}
    assert set(splits.describe(splits.test["tokens"])) == {"0123456789 "}
    assert [len(t["tokens"]) for t in (splits.train, splits.validation, splits.test)] == [40, 10, 12]
    assert bool((splits.sources == -1).all())


def test_planted_sources_speak_their_own_words(folder: Path) -> None:
    splits = characters(str(folder), train=40, validation=5, test=20, length=30 - 1, planted=3, copies=4, seed=1)
    assert splits.sources.tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [-1] * 28
    assert splits.query_sources.tolist() == [0] * 5 + [1] * 5 + [2] * 5 + [-1] * 5
    for source in range(3):
        said = splits.describe(splits.train["tokens"][splits.sources == source])
        asked = splits.describe(splits.test["tokens"][splits.query_sources == source])
        words = {w for text in said for w in text.split()[:-1]}  # the last word may be cut
        assert len(words) <= 4
        assert {w for text in asked for w in text.split()[:-1]} <= words
    again = characters(str(folder), train=40, validation=5, test=20, length=30 - 1, planted=3, copies=4, seed=1)
    assert torch.equal(splits.train["tokens"], again.train["tokens"])


def test_bad_settings_are_told(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match="/no/such"):
        characters("/no/such/folder")
    with pytest.raises(ValueError, match=r"data\.train"):
        characters(str(folder), train=4000)
    with pytest.raises(ValueError, match=r"data\.planted"):
        characters(str(folder), train=40, validation=1, test=20, length=10, planted=5)

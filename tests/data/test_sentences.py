"""Sentences: disjoint rows, a vocabulary of the training rows' most frequent words, known and flipped labels."""

from pathlib import Path

import pytest
import torch

from metagradient.data import LabelNoise, SentenceSplits, sentences

ROWS = [(f"good fine w{i}", 1) if i % 2 else (f"bad bad w{i} and so on", 0) for i in range(40)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    import datasets

    path = tmp_path_factory.mktemp("text") / "reviews"
    path.mkdir()
    columns = {"sentence": [text for text, _ in ROWS], "label": [label for _, label in ROWS]}
    table = datasets.Dataset.from_dict(columns).cast_column(
        "label", datasets.ClassLabel(names=["negative", "positive"])
    )
    table.to_parquet(path / "train-00000-of-00001.parquet")
    return str(path)


def test_rows_are_disjoint_and_read_as_written(folder: str) -> None:
    splits = sentences(folder, 20, 10, 10, length=3, words=100)
    assert isinstance(splits, SentenceSplits)
    assert splits.classes == ("negative", "positive")
    originals = {" ".join(text.split()[:3]): label for text, label in ROWS}
    said = splits.describe(splits.train["x"])
    assert [originals[text] for text in said] == splits.train["y"].tolist()
    numbered = {text.split()[2] for text in said}  # w0, w1, ...: each row's own word
    assert len(numbered) == 20
    # Words of other rows are unknown: the vocabulary is that of the training rows.
    assert all(
        text.split()[2] == "?" for part in (splits.validation, splits.test) for text in splits.describe(part["x"])
    )


def test_the_most_frequent_words_are_kept_and_the_rest_is_padding(folder: str) -> None:
    splits = sentences(folder, 30, 5, 5, length=8, words=4)
    assert splits.vocabulary[:2] == ("", "?")
    assert splits.vocabulary[2] == "bad"
    lengths = (splits.train["x"] != 0).sum(1)
    assert sorted(set(lengths.tolist())) == [3, 6]


def test_flipped_labels_are_known_and_validation_stays_clean(folder: str) -> None:
    clean, noisy = (sentences(folder, 20, 10, 10, noise=LabelNoise("symmetric", f)) for f in (0.0, 0.25))
    assert noisy.truth is not None
    assert int(noisy.truth.wrong.sum()) == 5
    assert torch.equal(noisy.truth.wrong, noisy.train["y"] != clean.train["y"])
    assert torch.equal(noisy.validation["y"], clean.validation["y"])


def test_bad_settings_are_told(folder: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        sentences(str(tmp_path / "nowhere"), 20, 10, 10)
    with pytest.raises(ValueError, match="no word beside"):
        sentences(folder, 20, 10, 10, words=2)
    with pytest.raises(ValueError, match="is 60 rows, but"):
        sentences(folder, 40, 10, 10)

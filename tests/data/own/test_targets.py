"""What a target is, told by what its column holds; and what is said of odd rows before anything trains."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from metagradient.data import LabelNoise, Splits, array_file, class_numbers, table_file, text_file

N = 120
RNG = np.random.default_rng(0)
PRICE = RNG.normal(300.0, 40.0, N)
A, B = RNG.integers(0, 2, (2, N))


def table(tmp_path: Path, target: str | list[str], edit: dict[str, Any] | None = None, **settings: Any) -> Splits:
    columns = {
        "size": RNG.normal(0, 1, N),
        "price": PRICE,
        "count": np.arange(N),
        "stars": np.arange(N) % 5 + 1.0,
        "a": A,
        "b": B,
    }
    pd.DataFrame(columns | {"kind": np.where(A, "x", "y")} | (edit or {})).to_csv(tmp_path / "t.csv", index=False)
    return table_file(str(tmp_path / "t.csv"), target, **settings)


def all_y(splits: Splits) -> torch.Tensor:
    return torch.cat([t["y"] for t in (splits.train, splits.validation, splits.test)])


@pytest.mark.parametrize(
    ("target", "task", "read", "classes", "shape"),
    [
        ("price", None, "numbers", (), (N,)),
        ("count", None, "numbers", (), (N,)),  # as many values as rows
        ("count", "classes", "classes", tuple(map(str, range(N))), (N,)),
        ("stars", None, "classes", ("1", "2", "3", "4", "5"), (N,)),
        ("stars", "numbers", "numbers", (), (N,)),
        ("kind", None, "classes", ("x", "y"), (N,)),
        ("a", "labels", "labels", ("a",), (N, 1)),
        (["a", "b"], None, "labels", ("a", "b"), (N, 2)),
        (["price", "a"], None, "numbers", (), (N, 2)),
        (["a", "b"], "numbers", "numbers", (), (N, 2)),
    ],
)
def test_a_column_says_what_it_is_or_is_told(
    tmp_path: Path, target: Any, task: Any, read: str, classes: tuple[str, ...], shape: tuple[int, ...]
) -> None:
    splits = table(tmp_path, target, task=task)
    assert (splits.task, splits.classes) == (read, classes)
    assert tuple(all_y(splits).shape) == shape
    assert not {target} & {*splits.features} if isinstance(target, str) else not {*target} & {*splits.features}


def test_numbers_keep_their_units_and_their_rows(tmp_path: Path) -> None:
    splits = table(tmp_path, ["price", "stars"], standardize=False, drop=["kind"])
    rows = splits.train["x"][:, splits.features.index("count")].long()
    want = np.stack([PRICE, np.arange(N) % 5 + 1.0], axis=1)[rows.numpy()]
    torch.testing.assert_close(splits.train["y"], torch.from_numpy(want).float())
    assert splits.outputs == 2
    assert splits.target_names(torch.tensor([[1.5, 2.0]])) == ["1.5; 2"]
    said = splits.target_names(splits.train["y"])
    assert torch.equal(torch.tensor([[float(v) for v in each.split("; ")] for each in said]), splits.train["y"])
    assert splits.target_names(torch.tensor([[0.1, 1234567.0]])) == ["0.1; 1234567"]


def test_labels_in_words(tmp_path: Path) -> None:
    splits = table(tmp_path, ["a", "b"])
    assert splits.target_names(torch.tensor([[1.0, 0.0], [1, 1], [0, 0]])) == ["a", "a; b", "none"]


@pytest.mark.parametrize(
    ("target", "settings", "edit", "message"),
    [
        ("kind", {"task": "numbers"}, {}, r"data\.target=kind holds words, which are no numbers"),
        ("price", {"task": "labels"}, {}, r"outside \[0, 1\] in 120 rows \(rows 0, 1, 2, 3, 4, \.\.\.\)"),
        ("price", {"task": "number"}, {}, r"data\.task must be one of classes, numbers, labels"),
        ("price", {}, {"price": np.where(np.arange(N) == 7, np.inf, PRICE)}, r"not finite in 1 rows \(rows 7\)"),
        ("price", {}, {"price": np.where(np.arange(N) == 7, 1e39, PRICE)}, r"as float32, is not finite.*\(rows 7\)"),
        (["price", "a"], {}, {"price": np.where(np.arange(N) == 7, 1e39, PRICE)}, r"as float32, is not finite"),
        ("price", {}, {"price": 1.5}, r"has one value alone \(1\.5\)"),
        ("name", {}, {"name": [f"n{i}" for i in range(N)]}, "takes 120 values in 120 rows, which is no set of classes"),
        (["a", "kind"], {}, {}, r"data\.target=\[a,kind\]: column kind holds words"),
        (["a", "b"], {"task": "classes"}, {}, r"is no shares of classes"),
        (["a", "a"], {}, {}, r"must name one or more different columns"),
        ("price", {"stratify": True}, {}, r"data\.stratify=true keeps classes.*numbers"),
        ("price", {"noise": LabelNoise("symmetric", 0.1)}, {}, r"data\.noise flips class numbers"),
        (
            "stars",
            {},
            {"size": np.where(np.arange(N) == 9, np.inf, 0)},
            r"column size is infinite in 1 rows \(rows 9\)",
        ),
    ],
)
def test_what_does_not_fit_names_what_to_set(
    tmp_path: Path, target: Any, settings: dict[str, Any], edit: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        table(tmp_path, target, edit, **settings)


def arrays(tmp_path: Path, y: np.ndarray, **settings: Any) -> Splits:
    np.savez(tmp_path / "a.npz", x=RNG.normal(size=(len(y), 3)), y=y)
    return array_file(str(tmp_path / "a.npz"), **settings)


def test_arrays_are_read_like_columns(tmp_path: Path) -> None:
    labels = np.arange(N) % 3
    plain = arrays(tmp_path, labels)
    for same in (labels[:, None], labels.astype(np.float32), np.eye(3)[labels], np.eye(3, dtype=bool)[labels]):
        read = arrays(tmp_path, same)
        assert torch.equal(all_y(read), all_y(plain))
        assert read.classes == plain.classes == ("0", "1", "2")
    gaps = arrays(tmp_path, np.array([0, 1, 5])[labels])
    assert torch.equal(all_y(gaps), all_y(plain))
    assert gaps.classes == ("0", "1", "5")
    soft = 0.8 * np.eye(3)[labels] + 0.2 / 3
    read = arrays(tmp_path, soft, stratify=True)
    assert (read.task, read.classes, all_y(read).shape) == ("classes", ("0", "1", "2"), (N, 3))
    assert read.target_names(torch.from_numpy(soft[:3])) == ["0", "1", "2"]
    assert arrays(tmp_path, np.stack([A, B], 1)).task == "labels"
    assert arrays(tmp_path, PRICE).task == "numbers"
    assert arrays(tmp_path, np.stack([PRICE, A], 1)).task == "numbers"
    with pytest.raises(ValueError, match=r"\[n, \.\.\.\] and y \[n\] or \[n, C\] are needed"):
        arrays(tmp_path, np.zeros((N, 2, 2)))


def test_texts_may_be_rated(tmp_path: Path) -> None:
    said = [f"word{i % 7} film" for i in range(N)]
    pd.DataFrame({"text": said, "score": PRICE}).to_csv(tmp_path / "t.csv", index=False)
    assert text_file(str(tmp_path / "t.csv"), "score").task == "numbers"
    with pytest.raises(ValueError, match=r"data\.text=text is data\.target as well"):
        text_file(str(tmp_path / "t.csv"), "text", task="classes")


def test_words_and_gaps_become_class_numbers() -> None:
    y, classes = class_numbers(["cat", "dog", "cat", "ant"])
    assert (y.tolist(), classes) == ([1, 2, 1, 0], ("ant", "cat", "dog"))
    assert class_numbers(torch.tensor([5, 0, 1]))[0].tolist() == [2, 0, 1]
    assert class_numbers(["dog"], classes)[0].tolist() == [2]
    with pytest.raises(ValueError, match="cow are none of the classes ant, cat, dog"):
        class_numbers(["dog", "cow"], classes)


def test_copies_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Ten different inputs: all other training rows are copies, and all test rows too."""
    x, y = np.repeat(np.eye(10), 12, axis=0), np.arange(N) % 2
    np.savez(tmp_path / "a.npz", x=x, y=y)
    with caplog.at_level(logging.WARNING):
        array_file(str(tmp_path / "a.npz"))
    assert "74 of 84 training rows are copies of another one, " in caplog.text
    assert "36 validation and test rows are copies of training rows" in caplog.text


def test_columns_that_give_the_target_away_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    edit = {"code": np.where(A, 17, 3), "euros": 0.9 * PRICE + 3, "noise": RNG.integers(0, 2, N)}
    with caplog.at_level(logging.WARNING):
        table(tmp_path, "kind", edit, drop=["a"])
    assert "column code says in every row what data.target=kind says: set data.drop=[code]" in caplog.text
    assert "column noise" not in caplog.text
    with caplog.at_level(logging.WARNING):
        table(tmp_path, "price", edit)
    assert "column euros says in every row what data.target=price says" in caplog.text
    assert caplog.text.count("says in every row") == 2


def test_classes_are_named_with_their_training_rows(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    part = np.where(np.arange(N) < 80, "train", "test")
    with caplog.at_level(logging.INFO):
        table(tmp_path, "kind", {"part": part, "kind": ["mid", *["low"] * 99, *["high"] * 20]}, split="part")
        table(tmp_path, "count", {"part": part, "count": np.arange(N) % 12}, split="part", task="classes")
    assert "3 classes: low 79, mid 1, high 0" in caplog.text
    assert "12 classes: 0 7, 1 7, 2 7, 3 7, 4 7, 5 7, 6 7, 7 7, 8 6, 9 6, ...\n" in caplog.text


def test_classes_that_are_fractions_keep_their_digits(tmp_path: Path) -> None:
    kinds = np.where(A, 0.12345671, 0.12345672)
    assert arrays(tmp_path, kinds, task="classes").classes == ("0.12345671", "0.12345672")


def test_classes_without_training_rows_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    part = np.where(np.arange(N) < 80, "train", "test")
    kind = np.where(np.arange(N) == 100, "rare", np.where(A, "x", "y"))
    with caplog.at_level(logging.WARNING):
        table(tmp_path, "kind", {"part": part, "kind": kind}, split="part", drop=["a"])
    assert "class rare has 1 validation and test rows and no training row" in caplog.text
    with pytest.raises(ValueError, match="every training row is of class x: there is nothing to tell apart"):
        table(tmp_path, "kind", {"part": part, "kind": np.where(np.arange(N) < 80, "x", "y")}, split="part")
    with pytest.raises(ValueError, match=r"every training row has the target 1\.5"):
        table(tmp_path, "price", {"part": part, "price": np.where(np.arange(N) < 80, 1.5, PRICE)}, split="part")
    with caplog.at_level(logging.WARNING):
        table(tmp_path, ["a", "b"], {"part": part, "a": np.arange(N) >= 80}, split="part")
    assert "label a is 0 in every training row" in caplog.text

"""Files and folders as people have them: read, split and told; or refused in one line that names the setting."""

import io
import logging
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
from PIL import Image
from safetensors.numpy import save_file

from metagradient.data import Splits, array_file, image_folder, table_file, text_file

N = 200


def frame() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    age = rng.normal(40, 10, N)
    return pd.DataFrame(
        {
            "age": np.where(np.arange(N) % 20 == 0, np.nan, age),
            "height": rng.normal(170, 8, N),
            "city": rng.choice(["Oslo", "Bern", "Lima"], N),
            "member": rng.integers(0, 2, N).astype(bool),
            "when": np.where(np.arange(N) % 4 == 0, "test", np.where(np.arange(N) % 4 == 1, "val", "train")),
            "family": np.arange(N) // 5,
            "income": np.where(age > 42, "high", "low"),
        }
    )


WRITERS: dict[str, Any] = {
    "a.csv": lambda f, p: f.to_csv(p, index=False),
    "a.csv.gz": lambda f, p: f.to_csv(p, index=False),
    "a.tsv": lambda f, p: f.to_csv(p, index=False, sep="\t"),
    "a.parquet": lambda f, p: f.to_parquet(p),
    "a.jsonl": lambda f, p: f.to_json(p, orient="records", lines=True),
}
DROP = ["when", "family"]


@pytest.mark.parametrize("name", WRITERS)
def test_a_table_is_read_the_same_from_every_kind_of_file(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    WRITERS[name](frame(), tmp_path / name)
    with caplog.at_level(logging.WARNING):
        splits = table_file(str(tmp_path / name), "income", drop=DROP, seed=3)
    assert splits.features == (
        "age",
        "height",
        "city = Bern",
        "city = Lima",
        "city = Oslo",
        "member = False",
        "member = True",
    )
    assert splits.classes == ("high", "low")
    assert [len(t["y"]) for t in (splits.train, splits.validation, splits.test)] == [140, 20, 40]
    assert "column age: 10 missing values are set to the training median" in caplog.text
    numbers = splits.train["x"][:, :2]
    torch.testing.assert_close(numbers.mean(0), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(numbers.std(0, unbiased=False), torch.ones(2), atol=1e-5, rtol=0)
    assert torch.equal(splits.train["x"][:, 2:5].sum(1), torch.ones(140))


def rows_of(splits: Splits) -> list[set[float]]:
    """The heights of each split, which tell the rows apart."""
    return [{round(float(v), 5) for v in t["x"][:, 1]} for t in (splits.train, splits.validation, splits.test)]


@pytest.fixture
def csv(tmp_path: Path) -> str:
    frame().to_csv(tmp_path / "people.csv", index=False)
    return str(tmp_path / "people.csv")


def test_splits_by_share_are_disjoint_and_drawn_from_the_seed(csv: str) -> None:
    one, again, other = (table_file(csv, "income", drop=DROP, standardize=False, seed=s) for s in (0, 0, 1))
    train, validation, test = rows_of(one)
    assert not (train & validation)
    assert not (train & test)
    assert not (validation & test)
    assert len(train | validation | test) == N
    assert rows_of(one) == rows_of(again) != rows_of(other)


def test_splits_by_column_group_and_class(csv: str) -> None:
    named = table_file(csv, "income", split="when", drop=["family"], standardize=False)
    assert [len(t["y"]) for t in (named.train, named.validation, named.test)] == [100, 50, 50]
    data = frame()
    family = {round(float(np.float32(h)), 5): f for h, f in zip(data["height"], data["family"], strict=True)}
    grouped = table_file(csv, "income", group="family", drop=["when"], standardize=False)
    families = [{family[h] for h in rows} for rows in rows_of(grouped)]
    assert not (families[0] & families[1])
    assert not (families[0] & families[2])
    assert not (families[1] & families[2])
    even = table_file(csv, "income", drop=DROP, stratify=True)
    whole = float((data["income"] == "high").mean())
    for split in (even.train, even.validation, even.test):
        assert abs(float((split["y"] == 0).float().mean()) - whole) <= 1 / len(split["y"])


@pytest.mark.parametrize(
    ("edit", "settings", "message"),
    [
        ({}, {"target": "incom"}, r"data\.target=incom: no such column; did you mean data\.target=income\?"),
        (
            {},
            {"missing": "refuse"},
            r"column age is missing in 10 rows: set data\.missing=impute, or data\.drop=\[age\]",
        ),
        ({"height": np.inf}, {}, "column height is infinite in 200 rows"),
        ({"name": [f"n{i}" for i in range(N)]}, {}, r"column name has 140 different values.*data\.drop=\[name\]"),
        ({"income": "low"}, {}, r"has one value alone \(low\)"),
        ({}, {"split": "city"}, r"data\.split=city says bern, lima, oslo"),
        ({}, {"test": 0.5, "validation": 0.5}, "cannot be divided"),
        ({}, {"test": 1.5}, r"data\.test is a share"),
        ({"tags": [[1, 2]] * N}, {"jsonl": True}, r"column tags holds lists, .* set data\.drop=\[tags\]"),
        ({"tags": [{"a": 1}] * N}, {"jsonl": True}, r"column tags holds dicts, .* set data\.drop=\[tags\]"),
        ({}, {"train": 10.5}, r"data\.train is a number of rows, or null, not 10\.5"),
        ({"height": 1e300}, {"standardize": False}, r"column height is not finite, as float32, in 140 rows \(rows "),
        ({}, {"drop": ["ages"]}, r"data\.drop=ages: no such column; did you mean data\.drop=age\?"),
    ],
)
def test_tables_that_do_not_fit_name_what_to_set(
    edit: dict[str, Any], settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    given: dict[str, Any] = {"target": "income", "drop": DROP} | settings
    name = "a.jsonl" if given.pop("jsonl", False) else "a.csv"
    WRITERS[name](frame().assign(**edit), tmp_path / name)
    with pytest.raises(ValueError, match=message):
        table_file(str(tmp_path / name), **given)


def test_files_that_are_none_are_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"data\.path=.*does not exist"):
        table_file(str(tmp_path / "nothing.csv"), "y")
    (tmp_path / "a.docx").write_text("x")
    with pytest.raises(ValueError, match="files are read by their ending"):
        table_file(str(tmp_path / "a.docx"), "y")
    (tmp_path / "a.parquet").write_text("no parquet")
    with pytest.raises(ValueError, match="cannot be read as parquet"):
        table_file(str(tmp_path / "a.parquet"), "y")
    (tmp_path / "empty.csv").write_text("a,b\n")
    with pytest.raises(ValueError, match="has no rows"):
        table_file(str(tmp_path / "empty.csv"), "b")


def test_rows_without_a_label_are_left_out_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = frame()
    data.loc[:9, "income"] = None
    data.to_csv(tmp_path / "a.csv", index=False)
    splits = table_file(str(tmp_path / "a.csv"), "income", drop=DROP)
    assert sum(len(t["y"]) for t in (splits.train, splits.validation, splits.test)) == N - 10
    assert "10 of 200 rows have no income and are left out" in caplog.text


def test_libsvm_files(tmp_path: Path) -> None:
    lines = [f"{'+1' if i % 3 else '-1'} 1:{i / N} {2 + i % 5}:1" for i in range(N)]
    (tmp_path / "a.libsvm").write_text("\n".join(lines) + "\n")
    splits = table_file(str(tmp_path / "a.libsvm"), "target", standardize=False)
    assert splits.classes == ("-1", "1")
    assert splits.train["x"].shape == (140, 6)


def test_texts_are_words_of_the_training_rows(tmp_path: Path) -> None:
    said = [f"{'good' if i % 2 else 'bad'} film number{i}" for i in range(60)]
    pd.DataFrame({"review": said, "stars": [5 if i % 2 else 1 for i in range(60)]}).to_csv(
        tmp_path / "r.csv", index=False
    )
    splits = text_file(str(tmp_path / "r.csv"), "stars", text="review", length=4, words=5)
    assert splits.classes == ("1", "5")
    assert {"good", "bad", "film"} > set(splits.vocabulary[2:4])
    assert splits.train["x"].shape == (42, 4)
    others = {f"number{row}" for name in ("validation", "test") for row in splits.origins[name].places}
    whole = text_file(str(tmp_path / "r.csv"), "stars", text="review", words=100).vocabulary
    assert len(whole) == 2 + 3 + 42  # of each training row the word of its own
    assert not others & {*whole}
    word = splits.vocabulary.index("good")
    assert torch.equal((splits.train["x"] == word).any(1).long(), splits.train["y"])


@pytest.mark.parametrize("ending", ["npz", "safetensors"])
def test_arrays_of_images_and_tables(ending: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (50, 6, 5, 3), dtype=np.uint8), np.arange(50) % 3 + 7
    path = tmp_path / f"a.{ending}"
    if ending == "npz":
        np.savez(path, images=x, labels=y)
    else:
        save_file({"images": x, "labels": y}, path)
    splits = array_file(str(path), x="images", y="labels", stratify=True)
    assert splits.kind == "image"
    assert splits.train["x"].shape == (35, 3, 6, 5)
    assert float(splits.train["x"].max()) <= 1
    assert splits.classes == ("7", "8", "9")
    with pytest.raises(ValueError, match=r"data\.x=x: no such array; there are: images, labels"):
        array_file(str(path))


def test_arrays_that_are_not_finite_are_named(tmp_path: Path) -> None:
    x = np.zeros((20, 3), dtype=np.float32)
    x[7, 1] = np.nan
    np.savez(tmp_path / "a.npz", x=x, y=np.arange(20) % 2)
    with pytest.raises(ValueError, match="not finite in 1 rows, 7 among them"):
        array_file(str(tmp_path / "a.npz"))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.full((20, 3), "a"), r"data\.x=x is <U1 \[20, 3\]: inputs are numbers"),
        (np.ones((20, 3), dtype=complex), r"data\.x=x is complex128 \[20, 3\]"),
        (np.array(1.0), r"x \[n, \.\.\.\] and y \[n\] or \[n, C\] are needed, not \[\] and \[20\]"),
        (np.full((20, 3), 1e300), "not finite in 20 rows, 0, 1, 2, 3, 4 among them, as float32"),
    ],
)
def test_arrays_that_are_no_inputs_are_told(x: np.ndarray, message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=x, y=np.arange(20) % 2)
    with pytest.raises(ValueError, match=message):
        array_file(str(tmp_path / "a.npz"))


def test_arrays_of_a_type_that_numpy_has_not_are_told(tmp_path: Path) -> None:
    held = {"x": torch.ones(20, 3, dtype=torch.bfloat16), "y": torch.arange(20) % 2}
    safetensors.torch.save_file(held, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"bfloat16.*save the arrays as float32"):
        array_file(str(tmp_path / "a.safetensors"))


def picture(mode: str, size: tuple[int, int]) -> Image.Image:
    pixels = np.random.default_rng(size[0]).integers(0, 256, (*size[::-1], 4), dtype=np.uint8)
    return Image.fromarray(pixels, "RGBA").convert(mode)


def test_images_of_every_mode_and_broken_ones(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for i in range(24):
        folder = tmp_path / ("cats", "dogs")[i % 2]
        folder.mkdir(exist_ok=True)
        mode = ("RGB", "RGBA", "L", "CMYK", "P", "1")[i % 6]
        ending = "tiff" if mode == "CMYK" else "png"
        picture(mode, (20 + i, 30 - i)).save(folder / f"{i}.{ending}")
    (tmp_path / "cats" / "broken.png").write_bytes((tmp_path / "cats" / "0.png").read_bytes()[:200])
    (tmp_path / "dogs" / "page.jpg").write_text("<html>")
    splits = image_folder(str(tmp_path), size=16, stratify=True)
    assert splits.train["x"].shape[1:] == (3, 16, 16)
    assert sum(len(t["y"]) for t in (splits.train, splits.validation, splits.test)) == 24
    assert splits.classes == ("cats", "dogs")
    assert "2 files are no images or cut short, and left out" in caplog.text
    assert "page.jpg" in caplog.text


def test_grey_images_stay_grey_and_given_folders_are_kept(tmp_path: Path) -> None:
    for split, count in (("train", 6), ("val", 2), ("test", 4)):
        for i in range(count):
            folder = tmp_path / split / f"class{i % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 8), 40 * (i % 2) + 10, dtype=np.uint8)).save(folder / f"{i}.png")
    splits = image_folder(str(tmp_path), size=8)
    assert [len(t["y"]) for t in (splits.train, splits.validation, splits.test)] == [6, 2, 4]
    assert splits.train["x"].shape[1] == 1
    assert torch.equal(splits.train["x"][:, 0, 0, 0] > 0.1, splits.train["y"].bool())
    with pytest.raises(ValueError, match="0 folders of classes"):
        image_folder(str(tmp_path / "train" / "class0"))


def encoded(picture_: Image.Image) -> bytes:
    out = io.BytesIO()
    picture_.save(out, "PNG")
    return out.getvalue()


@pytest.mark.parametrize("layout", ["feature", "bytes", "paths", "saved"])
def test_images_in_a_table_are_those_of_a_folder(layout: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One data set as a folder of classes and as a table, in the folder's order of its rows; row 5 is broken."""
    kinds, pictures = ["cats", "dogs"], [picture(("RGB", "L", "RGBA")[i % 3], (20 + i, 30 - i)) for i in range(24)]
    for i, each in enumerate(pictures):
        file = tmp_path / "folder" / kinds[i // 12] / f"{i:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encoded(each) if i != 5 else b"no image")
    labels = [i // 12 for i in range(24)]
    contents = [encoded(each) if i != 5 else b"no image" for i, each in enumerate(pictures)]
    target = tmp_path / "a.parquet"
    if layout in ("feature", "saved"):
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=kinds)})
        rows = {"image": [{"bytes": c, "path": None} for c in contents], "label": labels}
        table = datasets.Dataset.from_dict(rows, features=features)
        target = tmp_path / "saved" if layout == "saved" else target
        table.save_to_disk(target) if layout == "saved" else table.to_parquet(target)
    elif layout == "bytes":
        pd.DataFrame({"image": contents, "label": [kinds[i] for i in labels]}).to_parquet(target)
    else:
        paths = [{"bytes": None, "path": f"folder/{kinds[i // 12]}/{i:02}.png"} for i in range(24)]
        pd.DataFrame({"image": paths, "label": [kinds[i] for i in labels]}).to_parquet(target)
    expected = image_folder(str(tmp_path / "folder"), size=16, seed=4)
    caplog.clear()
    splits = image_folder(str(target), size=16, seed=4)
    assert splits.classes == expected.classes
    for name in ("train", "validation", "test"):
        for key in ("x", "y"):
            assert torch.equal(getattr(splits, name)[key], getattr(expected, name)[key])
    assert "1 rows are no images or cut short, and left out: 5" in caplog.text


def test_images_of_a_divided_table_keep_its_splits(tmp_path: Path) -> None:
    for split, count, grey in (("train", 40, 0), ("test", 10, 100)):
        rows = [encoded(Image.fromarray(np.full((8, 8), grey + i, dtype=np.uint8))) for i in range(count)]
        frame_ = pd.DataFrame({"img": rows, "kind": [None if i == 0 else "ab"[i % 2] for i in range(count)]})
        frame_.to_parquet(tmp_path / f"{split}.parquet")
    splits = image_folder(str(tmp_path), size=8, image="img", target="kind", validation=0.25)
    greys = [sorted((t["x"][:, 0, 0, 0] * 255).round().int().tolist()) for t in (splits.train, splits.validation)]
    assert len(greys[1]) == 10
    assert sorted(greys[0] + greys[1]) == list(range(1, 40))
    test = (splits.test["x"][:, 0, 0, 0] * 255).round().int()
    assert sorted(test.tolist()) == list(range(101, 110))
    assert torch.equal(splits.test["y"], test % 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image": "img"}, r"data\.image=img: no such column; did you mean data\.image=image\?"),
        ({"image": "kind"}, r"data\.image=kind holds .*string, and no images"),
        ({"target": "labels"}, r"data\.target=labels: no such column; there are: kind"),
    ],
)
def test_tables_without_images_are_told(settings: dict[str, str], message: str, tmp_path: Path) -> None:
    pd.DataFrame({"image": [b"x"], "kind": ["a"]}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=message):
        image_folder(str(tmp_path / "a.parquet"), **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("layout", ["folder", "saved"])
def test_images_that_are_decoded_when_asked_for_are_those_in_memory(layout: str, tmp_path: Path) -> None:
    kinds, pictures = ["cats", "dogs"], [picture(("RGB", "L")[i % 2], (20 + i, 30 - i)) for i in range(24)]
    contents = [encoded(each) if i != 5 else b"no image" for i, each in enumerate(pictures)]
    path = tmp_path / layout
    if layout == "saved":
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=kinds)})
        rows = {"image": [{"bytes": c, "path": None} for c in contents], "label": [i // 12 for i in range(24)]}
        datasets.Dataset.from_dict(rows, features=features).save_to_disk(path)
    else:
        for i, content in enumerate(contents):
            file = path / kinds[i // 12] / f"{i:02}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
    held, asked = (image_folder(str(path), size=8, workers=workers) for workers in (None, 0))
    for name in ("train", "validation", "test"):
        one, other = getattr(held, name), getattr(asked, name)
        assert torch.equal(one["y"], other["y"])
        assert torch.equal(one["x"], torch.stack([other["x"][i] for i in range(len(other["x"]))]))
        assert one["x"].shape == other["x"].shape


def test_images_that_cannot_be_asked_for_one_by_one_are_told(tmp_path: Path) -> None:
    rows = {"image": [encoded(picture("L", (8, 8)))] * 20, "label": ["a", "b"] * 10}
    pd.DataFrame(rows).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"data.workers=null, or datasets.load_dataset"):
        image_folder(str(tmp_path / "a.parquet"), workers=1)
    datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"data.standardize=true needs the images in memory"):
        image_folder(str(tmp_path / "saved"), workers=1, standardize=True)
    with pytest.raises(ValueError, match="0 or more, or null, not -1"):
        image_folder(str(tmp_path / "saved"), workers=-1)

"""Results can be joined to the user's rows, and the chosen rows are the user's own, to the letter."""

import json
import logging
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from metagradient.data import LabelNoise, Splits, array_file, image_folder, table_file, text_file
from metagradient.data.own.chosen import write_chosen
from metagradient.data.own.verbatim import own_words

N = 40
NUMBERS = [f"{i:04d}" for i in range(N)]


def people() -> pd.DataFrame:
    """Of every row, `age` says its number; the third has no label, and is left out."""
    kinds: list[str | None] = ["high" if i % 2 else "low" for i in range(N)]
    kinds[2] = None
    return pd.DataFrame(
        {
            "number": NUMBERS,
            "age": np.arange(N) * 1.0,
            "joined": [f"0{i % 9 + 1}/02/1999" for i in range(N)],
            "income": kinds,
        }
    )


def write(frame: pd.DataFrame, path: Path) -> str:
    if ".jsonl" in path.name:
        frame.to_json(path, orient="records", lines=True)
    elif path.suffix == ".parquet":
        frame.iloc[::-1].iloc[::-1].set_index(pd.Index(np.arange(N) + 500)).to_parquet(path)  # an index of its own
    else:
        frame.to_csv(path, index=False, sep="\t" if ".tsv" in path.name else ",")
    return str(path)


FILES = ["a.csv", "a.csv.gz", "a.tsv", "a.jsonl", "a.jsonl.gz", "a.parquet"]


@pytest.mark.parametrize("name", FILES)
def test_every_example_says_its_row_and_id(name: str, tmp_path: Path) -> None:
    path = write(people(), tmp_path / name)
    splits = table_file(path, "income", id="number", drop=["joined"], standardize=False)
    assert splits.features == ("age",)  # the id is no feature
    seen = []
    for split in ("train", "validation", "test"):
        origin = splits.origins[split]
        assert origin.places.tolist() == [int(age) for age in getattr(splits, split)["x"][:, 0]]
        assert origin.header == ["row", "id"]
        assert origin.cells(0) == [origin.places[0], NUMBERS[origin.places[0]]]
        assert origin.ids is not None
        assert origin.ids.tolist() == [NUMBERS[i] for i in origin.places]
        seen += origin.places.tolist()
    assert sorted(seen) == [i for i in range(N) if i != 2]


@pytest.mark.parametrize("name", FILES)
def test_rows_are_shown_as_the_file_has_them(name: str, tmp_path: Path) -> None:
    """Not as they were standardised, and dates as they were spelt."""
    data = people()
    data.loc[5, "joined"] = None
    splits = table_file(write(data, tmp_path / name), "income", drop=["number"])
    places = splits.origins["train"].places.tolist()
    wanted = ["" if i == 5 else f"0{i % 9 + 1}/02/1999" for i in places]
    assert own_words(splits, "train", range(len(places))) == [
        f"age = {i * 1.0}, joined = {day}" for i, day in zip(places, wanted, strict=True)
    ]


def chosen(splits: Splits, folder: Path) -> tuple[Path, list[int], dict[int, float]]:
    """The file that is written, the rows that ought to be there, and what was learned of each."""
    places = splits.origins["train"].places
    kept = places % 3 > 0
    path = write_chosen(splits, kept, places / 8, "weight", folder)
    assert path is not None
    rows = sorted(places[kept].tolist())
    return path, rows, {row: row / 8 for row in rows}


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.tsv"])
def test_chosen_cells_are_the_files_own_text(name: str, tmp_path: Path) -> None:
    splits = table_file(write(people(), tmp_path / name), "income", drop=["joined", "number"])
    path, rows, weights = chosen(splits, tmp_path / "artifacts")
    between = "\t" if "tsv" in name else ","
    written = people().astype(str).to_numpy()
    assert path.name == f"chosen.{name.split('.')[1]}"
    assert path.read_text().splitlines() == [
        between.join(["number", "age", "joined", "income", "weight"]),
        *(between.join([*written[i], str(weights[i])]) for i in rows),
    ]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_chosen_objects_are_the_files_own(name: str, tmp_path: Path) -> None:
    data = people().assign(weight=7)  # a column of the name is already there
    path, rows, weights = chosen(
        table_file(write(data, tmp_path / name), "income", drop=["joined", "number"]), tmp_path
    )
    written = json.loads(data.to_json(orient="records"))
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {**written[i], "learned_weight": weights[i]} for i in rows
    ]


def test_chosen_rows_of_parquet_keep_their_types(tmp_path: Path) -> None:
    columns = {
        "of": pa.array(np.arange(N), pa.int16()),
        "tags": pa.array([[i, i] for i in range(N)]),
        "kind": pa.array([str(i % 2) for i in range(N)]).dictionary_encode(),
    }
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    path, rows, weights = chosen(table_file(str(tmp_path / "a.parquet"), "kind", drop=["tags"]), tmp_path / "out")
    table, source = pq.read_table(path), pq.read_table(tmp_path / "a.parquet")
    assert table.drop(["weight"]).equals(source.take(rows))
    assert table["weight"].to_pylist() == [weights[i] for i in rows]


def test_chosen_lines_of_libsvm_can_be_read_again(tmp_path: Path) -> None:
    lines = ["# a comment", "", *(f"{i % 2} 1:{i} # said" for i in range(N))]
    (tmp_path / "a.svm").write_text("\n".join(lines) + "\n")
    path, rows, weights = chosen(table_file(str(tmp_path / "a.svm"), "target", standardize=False), tmp_path / "out")
    assert path.read_text().splitlines() == [f"{i % 2} 1:{i} # said # weight={weights[i]}" for i in rows]
    again = table_file(str(path), "target", standardize=False)
    read = [x for table in (again.train, again.validation, again.test) for x in table["x"][:, 0].tolist()]
    assert sorted(read) == [float(i) for i in rows]


@pytest.mark.parametrize("ending", ["npz", "safetensors"])
def test_arrays_and_their_names(ending: str, tmp_path: Path) -> None:
    held = {"x": np.arange(N)[:, None] * 1.0, "y": np.arange(N) % 2, "key": np.arange(N) + 100, "size": np.zeros(3)}
    file = tmp_path / f"a.{ending}"
    if ending == "npz":
        np.savez(file, **held)
    else:
        from safetensors.numpy import save_file

        save_file(held, file)
    splits = array_file(str(file), id="key")
    origin = splits.origins["train"]
    assert origin.places.tolist() == splits.train["x"][:, 0].tolist()
    assert origin.cells(0) == [origin.places[0], str(origin.places[0] + 100)]
    path, rows, weights = chosen(splits, tmp_path / "out")
    if ending == "npz":
        found = dict(np.load(path))
    else:
        from safetensors.numpy import load_file

        found = load_file(path)
    assert found["x"][:, 0].tolist() == rows
    assert found["weight"].tolist() == list(weights.values())
    assert found["size"].shape == (3,)
    with pytest.raises(ValueError, match=r"data\.id=size has shape \[3\]"):
        array_file(str(file), id="size")


def test_chosen_arrays_are_those_that_were_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Though there are more arrays of another length, and a test set of the same."""
    inputs = np.arange(N)[:, None] * 1.0
    held = {"x": inputs, "y": np.arange(N) % 2, "note": np.arange(N), "x_test": -inputs, "size": np.zeros(())}
    held |= {f"other{i}": np.arange(N // 2) for i in range(5)}
    np.savez(tmp_path / "a.npz", **held)  # type: ignore[arg-type]
    splits = array_file(str(tmp_path / "a.npz"))
    path, rows, _ = chosen(splits, tmp_path / "out")
    found = dict(np.load(path))
    assert found["x"][:, 0].tolist() == found["note"].tolist() == rows
    assert found["y"].tolist() == [i % 2 for i in rows]
    for name in ("x_test", "size", "other0"):
        assert np.array_equal(found[name], held[name])
    (tmp_path / "a.npz").write_text("gone")
    assert write_chosen(splits, np.ones(28, dtype=bool), np.ones(28), "weight", tmp_path / "late") is None
    assert "chosen.npz is not written: data.path=" in caplog.text
    assert not list((tmp_path / "late").iterdir())


@pytest.mark.parametrize("name", ["a.parquet", "parts.csv", "saved"])
def test_ids_are_spelt_as_they_are_where_some_are_missing(name: str, tmp_path: Path) -> None:
    """Whole numbers, which are no 12.0; and zeros at the front, in a folder that is called like a file."""
    numbers = pd.array([None, *range(1, N)], dtype="Int64")
    frame = people().assign(key=numbers)
    path, wanted = tmp_path / name, ["", *map(str, range(1, N))]
    if name == "saved":
        datasets.Dataset.from_pandas(frame, preserve_index=False).save_to_disk(path)
    elif name == "a.parquet":
        frame.to_parquet(path)
    else:
        path.mkdir()
        frame.assign(key=[f"0{i}" for i in range(N)]).to_csv(path / "a.csv", index=False)
        wanted = [f"0{i}" for i in range(N)]
    origin = table_file(str(path), "income", id="key", drop=["joined", "number"]).origins["train"]
    assert origin.ids is not None
    assert origin.ids.tolist() == [wanted[i] for i in origin.places]


def test_images_are_known_by_their_files(tmp_path: Path) -> None:
    for i in range(20):
        folder = tmp_path / "pictures" / ("cats", "dogs")[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4), 10 * i, dtype=np.uint8)).save(folder / f"{i}.png")
    splits = image_folder(str(tmp_path / "pictures"), size=4, noise=LabelNoise("symmetric", 0.5))
    origin = splits.origins["train"]
    assert origin.header == ["file"]
    for file, x in zip(origin.places, splits.train["x"], strict=True):
        with Image.open(tmp_path / "pictures" / str(file)) as picture:
            assert picture.getpixel((0, 0)) == round(255 * float(x[0, 0, 0]))
    kept = np.arange(len(origin.places)) % 2 == 0
    path = write_chosen(splits, kept, np.arange(len(kept)) * 0.5, "weight", tmp_path)
    assert path is not None
    table = pd.read_csv(path)
    assert table["file"].tolist() == sorted(origin.places[kept])
    assert dict(zip(origin.places, np.arange(len(kept)) * 0.5, strict=True))[table["file"][0]] == table["weight"][0]


def test_texts_know_their_rows_and_names_given_twice_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    said = [f"{'good' if i % 2 else 'bad'} film{i}" for i in range(60)]
    frame = pd.DataFrame({"text": said, "stars": [i % 2 for i in range(60)], "key": ["same"] * 2 + said[2:]})
    frame.astype({"stars": "Int64"}).assign(stars=lambda f: f["stars"].where(f.index != 7)).to_csv(
        tmp_path / "r.csv", index=False
    )  # a row without a label counts as well
    splits = text_file(str(tmp_path / "r.csv"), "stars", id="key")
    origin, shown = splits.origins["train"], splits.describe(splits.train["x"])
    assert [said[i] for i in origin.places] == shown
    assert own_words(splits, "train", [0, 5, 3]) == [said[i] for i in origin.places[[0, 5, 3]]]
    assert "59 rows by 58 values: not all rows are told apart, same stands for several" in caplog.text
    with caplog.at_level(logging.WARNING), pytest.raises(ValueError, match=r"did you mean data\.id=key\?"):
        text_file(str(tmp_path / "r.csv"), "stars", id="keys")


def test_data_that_are_not_the_users_leave_nothing(tmp_path: Path) -> None:
    from metagradient.data import digits

    splits = digits(train=20, validation=5, test=5)
    assert splits.origins == {}
    assert write_chosen(splits, np.ones(20, dtype=bool), np.ones(20), "weight", tmp_path) is None
    assert not list(tmp_path.iterdir())

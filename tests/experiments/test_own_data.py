"""Files of a user's own through the command line: no preset of ours comes with them, and one line says what is missing."""

import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
from console import run_in
from PIL import Image

import metagradient as mg
from metagradient.data import table_file

QUICK = (
    "debug=fast",
    "logger.mode=disabled",
    "trainer.threads=1",
    "data.train=null",
    "data.validation=0.2",
    "data.test=0.2",
)
CASES = {
    "selection": ("data=table", "data.path=people.csv", "data.target=income", "data.id=name", "model=linear"),
    "poisoning": ("data=images", "data.path=pictures", "data.size=8", "model=linear"),
    "attribution": (
        "data=text",
        "data.path=reviews.csv",
        "data.target=stars",
        "data.text=review",
        "data.length=6",
        "data.words=20",
    ),
    "schedule": ("data=arrays", "data.path=arrays.npz", "model=mlp", "schedule_free=false"),
}
SENTENCES = ("model=sentence_classifier", "model.width=8", "model.heads=2", "model.layers=1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng, n = tmp_path_factory.mktemp("own"), np.random.default_rng(0), 300
    age = rng.normal(40, 10, n)
    names = [f"{'@n=-'[i % 4]}{i:04d}" for i in range(n)]  # ids that a spreadsheet would take for formulas, too
    people = {
        "name": names,
        "age": age,
        "city": rng.choice(["Oslo", "Bern"], n),
        "income": np.where(age > 42, "high", "low"),
    }
    pd.DataFrame(people).to_csv(folder / "people.csv", index=False)
    said = [f"{'good' if i % 2 else 'bad'} {rng.choice(['plot', 'scene'])}" for i in range(n)]
    pd.DataFrame({"review": said, "stars": [5 if i % 2 else 1 for i in range(n)]}).to_csv(
        folder / "reviews.csv", index=False
    )
    for i in range(n):
        place = folder / "pictures" / ("dark", "light")[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray((rng.integers(0, 120, (9, 8, 3)) + 100 * (i % 2)).astype(np.uint8)).save(place / f"{i}.png")
    np.savez(folder / "arrays.npz", x=rng.integers(0, 256, (n, 6, 6), dtype=np.uint8), y=np.arange(n) % 3)
    return folder


@pytest.mark.parametrize("experiment", [pytest.param(c, marks=[pytest.mark.slow] * (c != "selection")) for c in CASES])
def test_an_experiment_runs_on_a_file_of_ones_own(
    experiment: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = SENTENCES if experiment == "attribution" else ()
    done = run_in(folder, experiment, *QUICK, *CASES[experiment], *models)
    assert done.status == 0, done.err
    (directory,) = folder.glob(f"outputs/{experiment}/*")
    monkeypatch.chdir(folder)  # where its paths begin
    saved = mg.load(directory)
    assert saved.metrics["status"] == "finished"
    assert saved.config.data.noise.fraction == 0  # no preset's label noise
    splits = saved.data()
    assert len(splits.train["y"]) == 180
    if experiment == "selection":
        joined(folder / "people.csv", saved)
    if experiment == "attribution":
        top = pd.read_csv(saved.artifacts["top_examples.csv"])
        source = pd.read_csv(folder / "reviews.csv")
        whole = [f"{source['stars'][i]}: {source['review'][i]}" for i in top["train_row"]]
        assert top["train_is"].tolist() == whole
        assert set(top["query_row"]) == set(splits.origins["test"].places[: len(top["query"].unique())])
        assert pd.read_csv(saved.artifacts["train_rows.csv"])["row"].tolist() == splits.origins["train"].places.tolist()


def joined(file: Path, saved: Any) -> None:
    """selection.csv beside the file's rows, and the rows chosen of it."""
    source, table = pd.read_csv(file, dtype=str), pd.read_csv(saved.artifacts["selection.csv"], dtype=str)
    assert list(table) == ["index", "row", "id", "label", "weight", "kept"]
    rows = table["row"].astype(int)
    assert source["income"][rows].tolist() == table["label"].tolist()
    assert source["name"][rows].tolist() == table["id"].tolist()
    kept = table[table["kept"] == "True"].sort_values("row", key=lambda row: row.astype(int))
    chosen = pd.read_csv(saved.artifacts["chosen.csv"], dtype=str)
    assert chosen["weight"].tolist() == kept["weight"].tolist()
    assert chosen.drop(columns="weight").equals(source.iloc[kept["row"].astype(int)].reset_index(drop=True))
    page = saved.artifacts["report.html"].read_text()
    assert '["id","n0001"]' in page


def test_what_is_missing_is_asked_for(folder: Path) -> None:
    cases = {
        ("data=table", "data.path=people.csv"): "data.target",
        ("data=table", "data.path=people.csv", "data.target=incme"): "did you mean data.target=income?",
        ("data=images", "data.path=people.csv"): "one folder for each class",
        ("data=arrays", "data.path=nowhere.npz"): "does not exist",
    }
    for overrides, message in cases.items():
        done = run_in(folder, "selection", *QUICK, *overrides)
        assert done.status == 2
        assert message in done.err


CODES = ("data.id=name", "data=table", "data.path=people.csv", "data.target=income", "data.encode=codes")


@pytest.mark.slow
def test_categories_are_embedded(folder: Path, tmp_path: Path) -> None:
    """Through influence functions and exact scores, which know the embeddings; and refused where codes would be numbers."""
    for experiment in ("attribution", "unlearning"):
        extra = ("method=deltagrad_guarded",) if experiment == "unlearning" else ()  # no convex loss
        overrides = (*QUICK, *CODES, f"data.path={folder / 'people.csv'}", "model=table_mlp", *extra)
        done = run_in(tmp_path, experiment, *overrides)
        assert done.status == 0, done.err
    refused = run_in(folder, "selection", *QUICK, *CODES, "model=mlp")
    assert refused.status == 2
    assert "set model=table_mlp" in refused.err
    moved = run_in(folder, "poisoning", *QUICK, *CODES, "model=table_mlp")
    assert moved.status == 2
    assert "codes cannot be moved" in moved.err


def test_a_saved_data_set_with_splits_of_its_own(folder: Path, tmp_path: Path) -> None:
    rows = pd.read_csv(folder / "people.csv").drop(columns="name")
    parts = {"train": rows.iloc[:200], "test": rows.iloc[200:]}
    held = {name: datasets.Dataset.from_pandas(part, preserve_index=False) for name, part in parts.items()}
    datasets.DatasetDict(held).save_to_disk(tmp_path / "people")
    done = run_in(tmp_path, "selection", *QUICK, "data=table", "data.path=people", "data.target=income", "model=linear")
    assert done.status == 0, done.err
    (directory,) = tmp_path.glob("outputs/selection/*")
    log = (directory / "run.log").read_text()
    assert "the source has no validation rows: 40 of its training rows are" in log


@pytest.mark.slow
def test_higgs_with_the_papers_preset(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 700)
    rows = np.column_stack([y, rng.normal(size=(700, 28)) + 0.5 * y[:, None]])
    with gzip.open(tmp_path / "HIGGS.csv.gz", "wt") as file:
        np.savetxt(file, rows, delimiter=",", fmt="%.18e")
    small = ("data.official=100", "learner.batch_size=100", "learner.epochs=60", "sets=1", "logger.mode=disabled")
    done = run_in(tmp_path, "unlearning", "experiment=higgs_logistic", "data.path=HIGGS.csv.gz", *small)
    assert done.status == 0, done.err
    (directory,) = tmp_path.glob("outputs/unlearning/*")
    metrics = mg.load(directory).metrics
    assert metrics["result/error_ratio"] > 5  # 360 steps, 320 of them exact
    assert metrics["result/test_accuracy"] > 0.8
    missing = run_in(tmp_path, "unlearning", "experiment=higgs_logistic", "data.path=no.csv.gz")
    assert missing.status == 2
    assert "download HIGGS.csv.gz from https://archive.ics.uci.edu" in missing.err


@pytest.mark.parametrize(
    "experiment",
    [
        "selection",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("attribution", "unlearning", "schedule", "smoothness")
        ),
    ],
)
def test_images_read_when_asked_for_give_what_those_in_memory_give(
    folder: Path, tmp_path: Path, experiment: str
) -> None:
    found = []
    for workers in ("null", "1"):
        here = tmp_path / workers
        here.mkdir()
        data = (
            "data=images",
            f"data.path={folder / 'pictures'}",
            "data.size=8",
            "model=linear",
            f"data.workers={workers}",
        )
        done = run_in(here, experiment, *QUICK, *data)
        assert done.status == 0, done.err
        (metrics,) = here.glob("outputs/*/*/metrics.json")
        told = json.loads(metrics.read_text())
        clocks = ("seconds", "speedup", "retrain_instead", "share_of_a_loop", "trainings_of_time", "peak", "predicted")
        found.append({k: v for k, v in told.items() if k.startswith("result/") and not any(c in k for c in clocks)})
    assert found[0] == found[1]


def test_images_read_when_asked_for_cannot_be_poisoned(folder: Path) -> None:
    done = run_in(folder, "poisoning", *QUICK, *CASES["poisoning"], "data.workers=0")
    assert done.status == 2
    assert "set data.workers=null" in done.err


PEOPLE = ("data=table", "data.path=people.csv", "data.target=income")


@pytest.mark.slow
@pytest.mark.parametrize("by", ["id", "row"])
def test_rows_are_forgotten_by_the_name_that_their_file_gives_them(folder: Path, by: str) -> None:
    """By id or by number of the file, not by place in the shuffled training set; rows of other splits are refused."""
    names = ("data.id=name",) if by == "id" else ("data.drop=[name]",)
    table = table_file(str(folder / "people.csv"), "income", id="name", validation=0.2, test=0.2)
    trained, tested = table.origins["train"], table.origins["test"]
    chosen = sorted(trained.places[:5].tolist())
    called = pd.read_csv(folder / "people.csv", dtype=str)["name"]
    spelled = [called[row] if by == "id" else str(row) for row in chosen]
    (folder / "rows.txt").write_text("\n".join(spelled))
    done = run_in(folder, "unlearning", *QUICK, *PEOPLE, *names, "delete.rows=file", "delete.file=rows.txt")
    assert done.status == 0, done.err
    newest = max(folder.glob("outputs/unlearning/*"), key=lambda each: each.stat().st_mtime)
    rows = pd.read_csv(newest / "artifacts" / "rows_0.csv")
    assert sorted(rows["row"]) == chosen
    assert rows["index"].tolist() != rows["row"].tolist()
    if by == "id":
        assert sorted(rows["id"]) == sorted(spelled)
    asked = called[tested.places[0]] if by == "id" else str(tested.places[0])
    for line, says in ((asked, "is one of the test rows"), ("n9999" if by == "id" else "9999", f"no row has the {by}")):
        (folder / "rows.txt").write_text(line)
        done = run_in(folder, "unlearning", *QUICK, *PEOPLE, *names, "delete.rows=file", "delete.file=rows.txt")
        assert done.status == 2
        assert says in done.err


def test_a_model_of_numbers_refuses_words(folder: Path) -> None:
    done = run_in(folder, "attribution", *QUICK, *CASES["attribution"], "model=mlp")
    assert done.status == 2
    assert "set model=sentence_classifier" in done.err

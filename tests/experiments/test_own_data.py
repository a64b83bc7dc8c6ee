"""Files of a user's own through the command line: no preset of ours comes with them, and one line says what is missing."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from console import run_in
from PIL import Image

import metagradient as mg

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
    names = [f"n{i:04d}" for i in range(n)]
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


@pytest.mark.parametrize("experiment", CASES)
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

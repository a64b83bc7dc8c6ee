"""Every experiment on every kind of data that it makes sense for, from files; where it makes none, one line says so."""

import gzip
import itertools
import json
from functools import cache
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
from console import run_in
from PIL import Image

import metagradient as mg
from metagradient.evaluation import MEASURES

EXPERIMENTS = ("selection", "poisoning", "schedule", "attribution", "smoothness", "unlearning")
KINDS = ("a9a", "covtype", "rcv1", "mnist", "cifar10", "sst2", "shakespeare", "prices", "tags")
REFUSED = {  # what an experiment does not take, and what its one line must say
    **{(e, "shakespeare"): "texts without labels" for e in EXPERIMENTS if e not in ("attribution", "selection")},
    ("poisoning", "sst2"): "words, which cannot be moved",
    ("poisoning", "prices"): "targets that are numbers",
    ("poisoning", "tags"): "targets that are labels",
}
TINY = ["model.layers=1", "model.width=8", "model.heads=2"]
OWN = ["model=linear", "data.train=null", "data.validation=80", "data.test=60"]
SETTINGS = {  # models that fit, and small ones
    "prices": ["data=table", "data.target=price", "learner.loss=huber", *OWN],
    "tags": ["data=table", "data.target=[sweet,round]", *OWN],
    "sst2": ["model=sentence_classifier", *TINY, "data.length=8", "data.words=40"],
    "shakespeare": ["model=gpt", *TINY, "data.length=12", "data.planted=2", "data.copies=10"],
}
QUICK = ("debug=fast", "logger.mode=disabled", "trainer.threads=1")


def write(kind: str, folder: Path) -> None:
    """A small data set in the layout that `data=kind` reads, with classes that can be told apart."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    if kind == "a9a":
        for name, count in (("a9a", 480), ("a9a.t", 120)):
            rows = [
                (y, sorted(rng.choice(60, 8, replace=False) + (1 if y < 0 else 60))) for y in rng.choice([-1, 1], count)
            ]
            lines = [f"{y:+d} " + " ".join(f"{i}:1" for i in columns) for y, columns in rows]
            (folder / name).write_text("\n".join(lines) + "\n")
    elif kind in ("prices", "tags"):
        x = rng.normal(size=(400, 4))
        y = x @ rng.normal(size=(4, 2)) + 0.3 * rng.normal(size=(400, 2))
        targets = {"price": 250 + 80 * y[:, 0]} if kind == "prices" else {"sweet": y[:, 0] > 0, "round": y[:, 1] > 0.5}
        frame = pd.DataFrame({**{f"x{i}": x[:, i] for i in range(4)}, **targets})
        frame.astype(dict.fromkeys(targets, float)).to_csv(folder / "table.csv", index=False)
    elif kind == "covtype":
        labels = rng.integers(1, 8, 600)
        features = rng.integers(0, 255, (600, 54)) + 300 * (np.arange(54)[None] % 7 == labels[:, None] - 1)
        with gzip.open(folder / "covtype.data.gz", "wt") as file:
            np.savetxt(file, np.column_stack([features, labels]), fmt="%d", delimiter=",")
    elif kind == "rcv1":
        stories = {"lyrl2004_vectors_train.dat.gz": range(1, 481), "lyrl2004_vectors_test_pt0.dat.gz": range(481, 601)}
        members = [story for numbers in stories.values() for story in numbers if story % 2]
        for name, numbers in stories.items():
            with gzip.open(folder / name, "wt") as file:
                for story in numbers:
                    terms = sorted(rng.choice(40, 6, replace=False) + (1 if story % 2 else 41))
                    file.write(f"{story}  " + " ".join(f"{t}:{rng.random():.3f}" for t in terms) + "\n")
        with gzip.open(folder / "rcv1-v2.topics.qrels.gz", "wt") as file:
            file.writelines(f"CCAT {story} 1\n" for story in members)
    elif kind in ("mnist", "cifar10"):
        names = [str(i) for i in range(10)] if kind == "mnist" else ["airplane", "bird", "cat", "dog"]
        shape, column = ((28, 28), "image") if kind == "mnist" else ((32, 32, 3), "img")
        for split, count in (("train", 480), ("test", 60)):
            labels = rng.integers(0, len(names), count).tolist()
            pictures = []
            for label in labels:
                pixels = rng.integers(0, 120, shape).astype(np.uint8)
                pixels[2 * label : 2 * label + 3] = 250
                pictures.append(Image.fromarray(pixels))
            table = datasets.Dataset.from_dict({column: pictures, "label": labels}).cast_column(
                column, datasets.Image()
            )
            table = table.cast_column("label", datasets.ClassLabel(names=names))
            table.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    elif kind == "sst2":
        good, bad = ["fine", "warm", "witty", "bright"], ["dull", "cold", "tired", "grey"]
        labels = rng.integers(0, 2, 480).tolist()
        said = [" ".join(rng.choice(good if y else bad, 6)) + f" film {i % 5}" for i, y in enumerate(labels)]
        datasets.Dataset.from_dict({"sentence": said, "label": labels}).to_parquet(folder / "train.parquet")
    else:
        text = "to be or not to be that is the question " * 400
        for split in ("train", "test"):
            datasets.Dataset.from_dict({"text": [text]}).to_parquet(folder / f"{split}.parquet")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> object:
    root = tmp_path_factory.mktemp("kinds")

    @cache
    def folder(kind: str) -> Path:
        write(kind, root / kind)
        return root / kind

    return folder


FIRST = {  # each experiment and each kind that is not much like another
    ("selection", "covtype"),
    ("selection", "shakespeare"),
    ("poisoning", "mnist"),
    ("schedule", "prices"),
    ("attribution", "tags"),
    ("smoothness", "a9a"),
    ("unlearning", "sst2"),
}
PAIRS = [
    pair if pair in FIRST or pair in REFUSED else pytest.param(*pair, marks=pytest.mark.slow)
    for pair in itertools.product(EXPERIMENTS, KINDS)
]


@pytest.mark.parametrize(("experiment", "kind"), PAIRS)
def test_each_experiment_on_each_kind_of_data(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    files,
    experiment: str,
    kind: str,  # type: ignore[no-untyped-def]
) -> None:
    monkeypatch.setenv("METAGRADIENT_CACHE", str(tmp_path / "cache"))
    own = kind in ("prices", "tags")
    where = [f"data.path={files(kind)}/table.csv"] if own else [f"data={kind}", f"data.path={files(kind)}"]
    settings = [*where, *QUICK]
    settings += SETTINGS.get(kind, [])
    if kind == "shakespeare" and experiment == "attribution":
        settings.append("labels=1")
    if own and experiment == "attribution":
        settings.append("methods=[exact,dropout:4,gradient_dot]")
    if kind == "sst2" and experiment == "unlearning":
        settings.append("method=deltagrad_guarded")  # no convex loss
    done = run_in(tmp_path, experiment, *settings)
    refusal = REFUSED.get((experiment, kind))
    if refusal is not None:
        assert done.status == 2, done.err
        (line,) = [line for line in done.err.splitlines() if line.startswith(f"metagradient {experiment}: ")]
        assert refusal in line
        return
    assert done.status == 0, done.err
    (run,) = (tmp_path / "outputs" / experiment).iterdir()
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["status"] == "finished"
    if own:
        measure = {"prices": "r2", "tags": "label_accuracy"}[kind]
        least = -1 if experiment in ("schedule", "smoothness") else 0.6  # they train for a few steps only
        assert least < metrics[f"result/test_{measure}"] <= 1
        assert not [key for key in metrics if "accuracy" in key.replace("label_accuracy", "")]
    if own and experiment == "attribution":  # the model that was saved predicts in the target's own units
        saved = mg.load(run)
        test, learner = saved.data().test, saved.learner()
        found = MEASURES["numbers" if kind == "prices" else "labels"](learner, mg.initial_state(learner), test)
        assert found == pytest.approx(metrics[f"result/test_{measure}"], abs=1e-5)
    assert "Traceback" not in (run / "run.log").read_text()
    assert list((run / "figures").glob("*.png"))


@pytest.mark.parametrize(
    ("experiment", "kind", "setting", "message"),
    [
        ("unlearning", "prices", "delete.rows=class", "delete.rows=class needs classes, and these targets are numbers"),
        ("unlearning", "tags", "klom.models=2", "klom.models needs classes, and these targets are labels"),
        ("attribution", "prices", "brittleness=[1]", "set brittleness=[]"),
        ("selection", "prices", "data.noise.fraction=0.1", "set data.noise.fraction=0"),
        ("smoothness", "tags", "learner.loss=squared", "set learner.loss=null"),
        ("schedule", "tags", "learner.label_smoothing=0.1", "set learner.label_smoothing=0"),
    ],
)
def test_what_needs_classes_is_refused_elsewhere(
    tmp_path: Path,
    files,
    experiment: str,
    kind: str,
    setting: str,
    message: str,  # type: ignore[no-untyped-def]
) -> None:
    done = run_in(tmp_path, experiment, f"data.path={files(kind)}/table.csv", *QUICK, *SETTINGS[kind], setting)
    assert done.status == 2
    assert message in done.err


@pytest.mark.parametrize("experiment", ["selection", "attribution"])
def test_a_preset_does_not_leak_into_other_data(tmp_path: Path, files, experiment: str) -> None:  # type: ignore[no-untyped-def]
    """`digits_noisy` flips 40 % of the labels: of digits, and of nothing else."""
    done = run_in(tmp_path, experiment, "data=a9a", f"data.path={files('a9a')}", "--cfg", "job")
    assert done.status == 0
    assert "fraction: 0.0" in done.out
    assert "without the preset digits" in done.err
    none = run_in(tmp_path, "selection", "experiment=null", "--cfg", "job")
    assert none.status == 0
    assert "fraction: 0.0" in none.out
    assert "fraction: 0.4" in run_in(tmp_path, "selection", "--cfg", "job").out

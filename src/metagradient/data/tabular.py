"""Tables of features: a9a (LIBSVM files), and scikit-learn's covtype and rcv1.

Each is read from a local folder of the original files, or by scikit-learn's fetcher, which downloads and keeps them.
"""

import gzip
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metagradient.data.corruption import LabelNoise
from metagradient.data.splits import Splits, Table, corrupt, draw, standardise

_SLOPES = ("elevation", "aspect", "slope", "to water", "above water", "to roads", "shade at 9", "shade at noon")
_FEATURES: dict[str, tuple[str, ...]] = {
    "a9a": tuple(f"feature {i}" for i in range(1, 124)),
    "covtype": (
        *_SLOPES,
        "shade at 15",
        "to fire points",
        *(f"wilderness {i}" for i in range(1, 5)),
        *(f"soil {i}" for i in range(1, 41)),
    ),
    "rcv1": (),
}
"""Names of the columns, where they are known."""


def a9a(
    path: str,
    train: int = 32561,
    validation: int = 0,
    test: int | None = None,
    noise: LabelNoise | None = None,
    standardize: bool = False,
    seed: int = 0,
) -> Splits:
    """LIBSVM's a9a (Adult): 123 binary features, income above 50,000 dollars or not.

    `path`: a folder with the files a9a (training and validation rows) and a9a.t (test rows).

    Raises:
        FileNotFoundError: a folder without them.
        ValueError: other contents.
    """
    files = [Path(path).expanduser() / name for name in ("a9a", "a9a.t")]
    for file in files:
        if not file.exists():
            raise FileNotFoundError(
                f"data.path={path} has no file {file.name}; download a9a and a9a.t from "
                "https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/binary.html into a folder and set data.path to it"
            )
    pool, official = (_libsvm(file, features=123) for file in files)
    rows = draw(len(pool["y"]), {"train": train, "validation": validation}, seed, str(files[0]))
    held_out = draw(len(official["y"]), {"test": test}, seed, str(files[1]))
    tables = {split: _take(pool, r) for split, r in rows.items()}
    return _finished("a9a", tables, _take(official, held_out["test"]), ("-1", "+1"), noise, standardize, seed)


def covtype(
    path: str | None = None,
    train: int = 522910,
    validation: int = 0,
    test: int | None = None,
    noise: LabelNoise | None = None,
    standardize: bool = False,
    seed: int = 0,
) -> Splits:
    """Forest cover types (UCI): 54 features, each scaled to [0, 1] by its training range; seven classes.

    `path`: a folder with covtype.data.gz; None: scikit-learn fetches it. Splits are random, drawn from `seed`.

    Raises:
        FileNotFoundError: a folder without the files.
        ConnectionError: the set is not in scikit-learn's cache and cannot be downloaded.
        ValueError: other contents, or too few rows.
    """
    if path is None:
        x, y = _fetched("covtype", lambda datasets: datasets.fetch_covtype(return_X_y=True))
    else:
        table = np.loadtxt(_open(path, "covtype.data.gz"), delimiter=",", dtype=np.float32, ndmin=2)
        if table.shape[1] != 55:
            raise ValueError(f"data.path={path}: covtype.data.gz needs 55 columns, it has {table.shape[1]}")
        x, y = table[:, :-1], table[:, -1]
    if not set(np.unique(y)) <= set(range(1, 8)):
        odd = sorted(set(np.unique(y)) - set(range(1, 8)))[:5]
        raise ValueError(
            f"covtype's cover types are 1 .. 7; its last column also has {', '.join(f'{v:g}' for v in odd)}"
        )
    whole = {"x": torch.tensor(x, dtype=torch.float32), "y": torch.tensor(y).long() - 1}
    rows = draw(len(whole["y"]), {"train": train, "validation": validation, "test": test}, seed, "covtype")
    tables = {split: _take(whole, r) for split, r in rows.items()}
    low, high = tables["train"]["x"].amin(0), tables["train"]["x"].amax(0)
    span = torch.where(high > low, high - low, 1.0)
    tables = {split: table | {"x": (table["x"] - low) / span} for split, table in tables.items()}
    test_table = tables.pop("test")
    return _finished("covtype", tables, test_table, tuple(map(str, range(1, 8))), noise, standardize, seed)


def rcv1(
    path: str | None = None,
    features: int = 2000,
    train: int = 20242,
    validation: int = 0,
    test: int | None = 20000,
    noise: LabelNoise | None = None,
    standardize: bool = False,
    seed: int = 0,
) -> Splits:
    """Reuters news (RCV1): is a story of topic CCAT? The `features` terms that most training stories have, densely.

    `path`: a folder with lyrl2004_vectors_train.dat.gz, lyrl2004_vectors_test_pt0.dat.gz and rcv1-v2.topics.qrels.gz;
    None: scikit-learn fetches all 804,414 stories. Splits are random rows of the train and the test file.

    Raises:
        FileNotFoundError: a folder without the files.
        ConnectionError: the set is not in scikit-learn's cache and cannot be downloaded.
        ValueError: other contents, or too few rows.
    """
    if path is None:
        pool = _fetched("rcv1", lambda datasets: _ccat(datasets.fetch_rcv1(subset="train")))
        official = _fetched("rcv1", lambda datasets: _ccat(datasets.fetch_rcv1(subset="test")))
    else:
        topics = _members(_open(path, "rcv1-v2.topics.qrels.gz"), "CCAT")
        names = ("lyrl2004_vectors_train.dat.gz", "lyrl2004_vectors_test_pt0.dat.gz")
        pool, official = (_stories(_open(path, name), topics) for name in names)
    rows = draw(pool[0].shape[0], {"train": train, "validation": validation}, seed, "rcv1's training stories")
    held_out = draw(official[0].shape[0], {"test": test}, seed, "rcv1's test stories")
    frequency = np.bincount(pool[0][rows["train"].numpy()].indices, minlength=pool[0].shape[1])
    terms = np.sort(frequency.argsort(kind="stable")[::-1][:features])

    def table(part: Any, chosen: Tensor) -> Table:
        x = part[0][chosen.numpy()][:, terms].toarray().astype(np.float32)
        return {"x": torch.from_numpy(x), "y": torch.from_numpy(part[1])[chosen].long()}

    tables = {split: table(pool, r) for split, r in rows.items()}
    return _finished("rcv1", tables, table(official, held_out["test"]), ("other", "CCAT"), noise, standardize, seed)


def _finished(
    name: str,
    tables: dict[str, Table],
    test: Table,
    classes: tuple[str, ...],
    noise: LabelNoise | None,
    standardize: bool,
    seed: int,
) -> Splits:
    whole = Splits(name, tables["train"], tables["validation"], test, classes, kind="table", features=_FEATURES[name])
    splits = corrupt(whole, noise, seed)
    return standardise(splits) if standardize else splits


def _take(table: Table, rows: Tensor) -> Table:
    return {key: values[rows] for key, values in table.items()}


def _libsvm(file: Path, features: int) -> Table:
    from sklearn.datasets import load_svmlight_file

    try:
        x, y = load_svmlight_file(str(file), n_features=features, dtype=np.float32)
    except ValueError as error:
        raise ValueError(f"{file} is no LIBSVM file of {features} features: {error}") from error
    if not set(np.unique(y)) <= {-1.0, 1.0}:
        raise ValueError(f"{file} needs the labels -1 and +1, it has {sorted(set(np.unique(y)))[:5]}")
    return {"x": torch.from_numpy(x.toarray()), "y": torch.from_numpy(y > 0).long()}


def _open(path: str, name: str) -> Any:
    file = Path(path).expanduser() / name
    if not file.exists():
        raise FileNotFoundError(f"data.path={path} has no file {name}; leave data.path=null to fetch it")
    return gzip.open(file, "rt", encoding="utf-8")


def _fetched(name: str, fetch: Callable[[Any], Any]) -> Any:
    from sklearn import datasets

    try:
        return fetch(datasets)
    except OSError as error:  # URLError is one
        raise ConnectionError(
            f"{name} is not in scikit-learn's cache and cannot be downloaded ({type(error).__name__}); give a folder "
            "with its files: data.path=..., or use data=digits"
        ) from error


def _ccat(bunch: Any) -> tuple[Any, np.ndarray]:
    column = list(bunch.target_names).index("CCAT")
    return bunch.data, bunch.target[:, column].toarray().ravel().astype(np.int64)


def _members(file: Any, topic: str) -> set[int]:
    """The stories of a topic, from lines `topic story 1`."""
    with file:
        return {int(story) for name, story, _ in (line.split() for line in file) if name == topic}


def _stories(file: Any, topic: set[int]) -> tuple[Any, np.ndarray]:
    """Sparse features [n, 47236] and membership [n] of the stories in lines `story  term:weight ...`."""
    from scipy.sparse import csr_matrix

    def entries() -> Iterator[tuple[int, list[tuple[int, float]]]]:
        with file:
            for line in file:
                story, *terms = line.split()
                yield int(story), [(int(t) - 1, float(w)) for t, w in (term.split(":") for term in terms)]

    stories, starts, columns, weights = [], [0], [], []
    for story, terms in entries():
        stories.append(story)
        columns += [t for t, _ in terms]
        weights += [w for _, w in terms]
        starts.append(len(columns))
    x = csr_matrix((np.array(weights, np.float32), np.array(columns), np.array(starts)), (len(stories), 47236))
    return x, np.array([story in topic for story in stories], dtype=np.int64)

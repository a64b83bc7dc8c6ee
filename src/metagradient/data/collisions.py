"""HIGGS (UCI): 11 million simulated collisions, read in chunks into one array."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import torch

from metagradient.data.corruption import LabelNoise
from metagradient.data.own.formats.files import must_fit
from metagradient.data.splits import Splits, Table, corrupt, draw, standardise

_FEATURES = (
    *("lepton pT", "lepton eta", "lepton phi", "missing energy", "missing energy phi"),
    *(f"jet {i} {what}" for i in range(1, 5) for what in ("pT", "eta", "phi", "b-tag")),
    *("m_jj", "m_jjj", "m_lv", "m_jlv", "m_bb", "m_wbb", "m_wwbb"),
)
_MEMORY = (0.16, 0.45)
"""Bytes of float32 for each byte of the file: 8 GB of text, 2.8 GB compressed, 1.2 GB."""


def higgs(
    path: str,
    train: int | None = None,
    validation: int = 0,
    test: int | None = None,
    official: int = 500_000,
    noise: LabelNoise | None = None,
    standardize: bool = False,
    seed: int = 0,
    chunk: int = 100_000,
) -> Splits:
    """HIGGS: 28 features of a collision, signal or background. Its last 500,000 rows are the test set.

    The file is read in chunks into float32 [n, 28]: 1.2 GiB of the whole of it, and a chunk. With train=None the training
    rows are that memory itself; a number draws rows at random, which are copied.

    Args:
        path: HIGGS.csv.gz or HIGGS.csv, label first, without a header.
        train: training rows; None: all but those of validation and test.
        validation: rows drawn from the training rows.
        test: rows drawn from the test set; None: all of it.
        official: the last rows of the file, which are the test set.
        noise: on training labels.
        standardize: mean 0 and variance 1 per feature, by the training rows.
        seed: of the rows drawn and of the noise.
        chunk: rows that are read at once.

    Raises:
        FileNotFoundError: no such file.
        ValueError: other contents, or too few rows.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(
            f"data.path={path} does not exist: download HIGGS.csv.gz from https://archive.ics.uci.edu/dataset/280/higgs (2.6 GiB) and "
            "set data.path to it"
        )
    must_fit(file.stat().st_size * _MEMORY[file.suffix == ".gz"], path, "use a machine with more")
    x, y = _read(file, chunk)
    pool = len(y) - official
    if official < 1 or pool < 1:
        raise ValueError(f"data.official={official} of {len(y)} rows cannot be the test set: set data.official=500000")
    held_out = None if test is None else draw(official, {"test": test}, seed, "HIGGS's test set")["test"] + pool
    rows = draw(pool, {"validation": validation, "train": train}, seed, "HIGGS's training rows")
    if train is None:  # a stretch of the one array: rows in random order would be a second one
        _to_the_end(x, y, rows["validation"].numpy(), pool)
        left = pool - validation
        tables = {"train": _stretch(x, y, 0, left), "validation": _stretch(x, y, left, pool)}
    else:
        tables = {name: _chosen(x, y, r) for name, r in rows.items()}
    test_table = _stretch(x, y, pool, len(y)) if held_out is None else _chosen(x, y, held_out)
    splits = Splits(
        "higgs",
        tables["train"],
        tables["validation"],
        test_table,
        ("background", "signal"),
        kind="table",
        features=_FEATURES,
    )
    splits = corrupt(splits, noise, seed)
    return standardise(splits) if standardize else splits


def _read(file: Path, chunk: int) -> tuple[np.ndarray, np.ndarray]:
    """Features float32 [n, 28] and labels int64 [n]."""
    import pandas as pd

    width = len(_FEATURES)
    x, labels = np.empty((0, width), dtype=np.float32), []
    try:
        with _opened(file) as text:
            for part in pd.read_csv(text, header=None, dtype=np.float32, chunksize=chunk):
                values = part.to_numpy()
                if values.shape[1] != width + 1:
                    raise ValueError(
                        f"{width + 1} columns are needed, a label and {width} features, not {values.shape[1]}"
                    )
                odd = np.flatnonzero(~(np.isfinite(values).all(1) & np.isin(values[:, 0], (0, 1))))
                if len(odd):
                    raise ValueError(f"row {len(x) + odd[0]} is no label 0 or 1 and {width} finite numbers")
                start = len(x)
                x.resize((start + len(values), width), refcheck=False)  # in place: the pages move, nothing is copied
                x[start:] = values[:, 1:]
                labels.append(values[:, 0].astype(np.int64))
    except (ValueError, EOFError, OSError) as error:  # pandas' parser errors are ValueErrors
        raise ValueError(f"data.path={file} is not HIGGS.csv.gz: {str(error).splitlines()[0]}") from error
    return x, np.concatenate(labels)


@contextmanager
def _opened(file: Path) -> Iterator[IO[bytes] | gzip.GzipFile]:
    """The file's text, with a progress bar over its bytes: the whole of it takes minutes."""
    from rich.console import Console
    from rich.progress import open as followed

    bar = followed(file, "rb", description=f"reading {file.name}", transient=True, console=Console(stderr=True))
    with bar as raw:
        if file.suffix != ".gz":
            yield raw
            return
        with gzip.open(raw, "rb") as text:
            yield text


def _to_the_end(x: np.ndarray, y: np.ndarray, rows: np.ndarray, n: int) -> None:
    """Let some of the first `n` rows change places with the last of these, in place."""
    last = n - len(rows)
    moved, free = rows[rows < last], np.setdiff1d(np.arange(last, n), rows)
    for values in (x, y):
        values[np.concatenate([moved, free])] = values[np.concatenate([free, moved])]


def _stretch(x: np.ndarray, y: np.ndarray, start: int, stop: int) -> Table:
    return {"x": torch.from_numpy(x)[start:stop], "y": torch.from_numpy(y)[start:stop]}


def _chosen(x: np.ndarray, y: np.ndarray, rows: torch.Tensor) -> Table:
    return {"x": torch.from_numpy(x)[rows], "y": torch.from_numpy(y)[rows]}

"""The training rows that a run chose, in the user's own format: every column as it was, and the weight of each row."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from metagradient.data.language.splits import TextSplits
from metagradient.data.own.arrays import ARRAYS, read_arrays
from metagradient.data.own.formats.files import ending
from metagradient.data.own.formats.places import split_of
from metagradient.data.own.reading import read_frame
from metagradient.data.own.rows import GIVEN
from metagradient.data.own.verbatim import delimited, json_lines, lines
from metagradient.data.splits import Splits
from metagradient.files import replacing, write_csv

log = logging.getLogger(__name__)


def write_chosen(splits: Splits, kept: np.ndarray, values: np.ndarray, name: str, folder: Path) -> Path | None:
    """Write the kept training examples of the user's file to folder/chosen.*, in the file's order.

    CSV, TSV, JSON Lines, Parquet, LIBSVM and arrays stay what they are, uncompressed; other sources become Parquet, a
    folder of images a list of its files.

    Args:
        splits: the data; those that have no source of the user's leave nothing.
        kept: bool [n], of the training examples.
        values: [n], what was learned of each.
        name: of that: weight or count.
        folder: where to write.

    Returns:
        The file, or None: no source of the user's, or it could not be written, which is said.
    """
    if not splits.source or "train" not in splits.origins:
        return None
    places = splits.origins["train"].places
    order = np.argsort(places, kind="stable")
    order = order[kept[order]]
    rows, learned = places[order], values[order].tolist()
    if places.dtype.kind != "i":
        cells = zip(rows.tolist(), learned, strict=True)
        write_csv(path := folder / "chosen.csv", ["file", name], cells, verbatim=("file",))
        return path
    return _written(splits.source, rows, name, learned, folder / "chosen", splits.arrays)


def write_chosen_texts(splits: TextSplits, kept: np.ndarray, values: np.ndarray, name: str, folder: Path) -> list[Path]:
    """The same of texts: folder/chosen.*, or of several files chosen_<source>.* for each that has kept rows.

    Args:
        splits: the data; those that have no files of the user's leave nothing.
        kept: bool [n], of the training rows.
        values: [n], what was learned of each.
        name: of that: weight or count.
        folder: where to write.

    Returns:
        The files that could be written.
    """
    if not splits.files or "train" not in splits.origins:
        return []
    places, sources = splits.origins["train"].places, splits.sources.numpy()
    several, found = len(np.unique(sources)) > 1, []
    for number in np.unique(sources[kept]):
        own = np.flatnonzero(kept & (sources == number))
        own = own[np.argsort(places[own], kind="stable")]
        called = re.sub(r"[^\w.-]+", "_", splits.source_names[number])
        path = folder / (f"chosen_{called}" if several else "chosen")
        found.append(_written(splits.files[number], places[own], name, values[own].tolist(), path, ()))
    return [path for path in found if path is not None]


def _written(
    file: str, rows: np.ndarray, name: str, learned: list[Any], path: Path, arrays: Sequence[str]
) -> Path | None:
    """Some rows of a file, at `path` with the file's ending; None where they could not be written, which is said."""
    source = Path(file).expanduser()
    kind = ending(source) if source.is_file() else ""
    write, known = _WRITERS.get(kind, _frame), kind in _WRITERS or kind in ARRAYS
    path = path.with_name(f"{path.name}{kind if known else '.parquet'}")
    try:
        with replacing(path) as draft:
            if kind in ARRAYS:
                _arrays(source, rows, name, learned, draft, arrays)
            else:
                write(source, rows, name, learned, draft)
    except Exception as error:  # what was learned stands elsewhere as well, and a run of hours shall not end here
        log.warning("%s is not written: %s", path.name, (str(error).splitlines() or [type(error).__name__])[0])
        return None
    return path


def _unused(name: str, taken: Collection[str]) -> str:
    """A name for a further column."""
    while name in taken:
        name = f"learned_{name}"
    return name


def _delimited(source: Path, rows: np.ndarray, name: str, learned: Sequence[float], path: Path) -> None:
    frame = delimited(source).iloc[rows]
    frame = frame.assign(**{_unused(name, frame.columns): [str(value) for value in learned]})
    frame.to_csv(path, sep="\t" if ending(source) == ".tsv" else ",", index=False)


def _json_lines(source: Path, rows: np.ndarray, name: str, learned: Sequence[float], path: Path) -> None:
    of_row = dict(zip(rows.tolist(), learned, strict=True))
    with path.open("w", encoding="utf-8") as out:
        for i, row in enumerate(json_lines(source)):
            if i in of_row:
                out.write(json.dumps(row | {_unused(name, row): of_row[i]}, ensure_ascii=False) + "\n")


def _libsvm(source: Path, rows: np.ndarray, name: str, learned: Sequence[float], path: Path) -> None:
    """The value stands in a comment, which readers of the format skip."""
    written = [line for line in lines(source) if line.partition("#")[0].strip()]
    text = (f"{written[i]} # {name}={value}\n" for i, value in zip(rows.tolist(), learned, strict=True))
    path.write_text("".join(text), encoding="utf-8")


def _parquet(source: Path, rows: np.ndarray, name: str, learned: Sequence[float], path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(source).take(pa.array(rows))
    pq.write_table(table.append_column(_unused(name, table.column_names), pa.array(learned)), path)


def _arrays(
    source: Path, rows: np.ndarray, name: str, learned: Sequence[float], path: Path, own: Sequence[str]
) -> None:
    """The arrays that were read, `own`, and those as long give the chosen rows; others, `x_test` among them, stay as they are."""
    held = read_arrays(source)
    n = len(held[own[0]])
    divided = {
        key for key, x in held.items() if x.ndim and len(x) == n and split_of(key) not in ("validation", "test")
    }.union(own)
    chosen = {key: np.ascontiguousarray(x[rows]) if key in divided else x for key, x in held.items()}
    chosen[_unused(name, held)] = np.array(learned)
    if ending(source) == ".npz":
        with path.open("wb") as out:
            np.savez(out, **chosen)  # type: ignore[arg-type]
    else:
        save_file(chosen, path)


def _frame(source: Path, rows: np.ndarray, name: str, learned: Sequence[float], path: Path) -> None:
    frame = read_frame(str(source), needs=None).iloc[rows].drop(columns=GIVEN, errors="ignore")
    frame.assign(**{_unused(name, frame.columns): learned}).to_parquet(path, index=False)


_WRITERS = {
    ".csv": _delimited,
    ".tsv": _delimited,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".parquet": _parquet,
    ".libsvm": _libsvm,
    ".svm": _libsvm,
}

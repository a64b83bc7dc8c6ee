"""One file of rows, or one Arrow data set, as a data frame; and how large it will be."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import re
import warnings
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    import datasets
    import pandas as pd
    import pyarrow as pa

ENDINGS = (".csv", ".tsv", ".parquet", ".jsonl", ".ndjson", ".libsvm", ".svm")
"""Of the files that hold rows; each may be compressed."""

OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_COMPRESSED = (*OPENERS, ".zst")
_SAMPLE = 2**20
_CHUNK = 50_000
_HEAD = 100
_SEPARATORS = {".csv": ";\t|", ".tsv": ";,|"}
_NAMELESS_INDEX = re.compile(r"__index_level_\d+__")


def ending(file: Path) -> str:
    """`.csv` of a.csv and of a.csv.gz."""
    return next((s for s in reversed(file.suffixes) if s not in _COMPRESSED), "").lower()


def frame_of(rows: Path | datasets.Dataset, without: Collection[str] = ()) -> pd.DataFrame:
    """All rows, numbered from 0; columns of `datasets.ClassLabel` as categories with the classes' names, -1 as missing.

    Args:
        rows: a file of a known ending, or an Arrow data set.
        without: columns that an Arrow data set or a Parquet file need not read.

    Raises:
        ValueError: a file that cannot be read.
    """
    if isinstance(rows, Path):
        import pandas as pd

        try:
            if not rows.stat().st_size:
                raise pd.errors.EmptyDataError
            frame = _frame_of_file(rows, without)
            names = class_names(schema(rows)) if ending(rows) == ".parquet" else {}
        except pd.errors.EmptyDataError as error:
            raise ValueError(f"data.path={rows} has no rows") from error
        except UnicodeDecodeError as error:
            raise ValueError(f"data.path={rows} is not UTF-8 text: save it as UTF-8") from error
        except Exception as error:
            kind, said = ending(rows)[1:], (str(error).splitlines() or [type(error).__name__])[0]
            said = said.replace("Error tokenizing data. ", "").replace("C error: ", "")
            raise ValueError(f"data.path={rows} cannot be read as {kind}: {said}") from error
    else:
        table = rows.remove_columns([name for name in rows.column_names if name in without]).with_format("arrow")[:]
        names, order, whole = class_names(schema(rows)), table.column_names, _whole_numbers(table)
        table = table.drop_columns(list(whole)) if whole else table
        frame = table.to_pandas(split_blocks=True, self_destruct=True)
        frame = frame.assign(**whole)[order] if whole else frame
    frame.columns = [str(name) for name in frame.columns]
    for name in names.keys() & set(frame.columns):
        frame[name] = _named(frame[name], names[name])
    return frame.reset_index(drop=True)


def _frame_of_file(file: Path, without: Collection[str]) -> pd.DataFrame:
    import pandas as pd  # a third of a second that other data need not pay

    kind = ending(file)
    if kind in (".libsvm", ".svm"):
        return _libsvm(file)
    if kind == ".parquet":
        return _of_parquet(file, without)
    if kind in (".jsonl", ".ndjson"):
        # as it is written: "01" and "1" are two words, and a date is one
        dates: dict[str, Any] = {"convert_dates": False} if int(pd.__version__.split(".")[0]) < 3 else {}
        return pd.read_json(file, lines=True, dtype=False, convert_axes=False, **dates)
    return _delimited(file)


def _of_parquet(file: Path, without: Collection[str]) -> pd.DataFrame:
    """Column by column, since a table of all of them and its frame would be two copies; an index with a name is a column."""
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(file) as source:
        kept = source.schema_arrow
        columns = {}
        for name in [n for n in kept.names if not _NAMELESS_INDEX.fullmatch(n) and n not in without]:
            table = source.read(columns=[name])
            whole = _whole_numbers(table)
            columns[name] = whole[name] if whole else table.column(0).to_pandas()
            pa.default_memory_pool().release_unused()  # which it would keep for the next column, and the next
    return pd.DataFrame(columns, copy=False)


def _whole_numbers(table: pa.Table) -> dict[str, pd.Series]:
    """The columns of integers some of which are missing; `to_pandas` makes floats of them, and 12.0 of an id 12."""
    import pandas as pd
    import pyarrow.types as types

    return {
        name: table.column(name).to_pandas(types_mapper={table.field(name).type: pd.Int64Dtype()}.get)
        for name in table.column_names
        if types.is_integer(table.field(name).type) and table.column(name).null_count
    }


def _separator(file: Path) -> str:
    return "\t" if ending(file) == ".tsv" else ","


def _trailing(file: Path, separator: str) -> bool:
    """Whether rows end in a separator that the header lacks: without being told, pandas takes their first cell for an index."""
    import pandas as pd

    head = pd.read_csv(file, sep=separator, nrows=_HEAD)
    if head.empty or not head.iloc[:, -1].isna().all():
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pd.errors.ParserWarning)
        return not pd.read_csv(file, sep=separator, nrows=_HEAD, index_col=False).iloc[:, -1].isna().all()


def read_delimited(file: Path, **settings: Any) -> Any:
    """`pandas.read_csv` of a CSV or TSV file, whose rows may end in a separator."""
    import pandas as pd

    separator = _separator(file)
    index = False if _trailing(file, separator) else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pd.errors.ParserWarning)
        return pd.read_csv(file, sep=separator, index_col=index, **settings)


def _delimited(file: Path) -> pd.DataFrame:
    """Chunk by chunk: the parser's own pieces and their frame would be two copies.

    A column of numbers in some chunks and of words in others is one of words, and read again as such.
    """
    import pandas as pd

    header, kind = [str(name) for name in pd.read_csv(file, sep=_separator(file), nrows=0)], ending(file)
    if len(header) == 1 and any(other in header[0] for other in _SEPARATORS[kind]):
        separated = "commas" if kind == ".csv" else "tabs"
        raise ValueError(f"there is one column alone, '{header[0]}': {kind} files are separated by {separated}")
    _refuse_double(file)
    pieces: dict[str, list[pd.Series]] = {}
    for chunk in read_delimited(file, chunksize=_CHUNK):
        for name, values in chunk.items():
            pieces.setdefault(str(name), []).append(values.copy())
    mixed = [name for name, parts in pieces.items() if len({pd.api.types.is_numeric_dtype(p) for p in parts}) > 1]
    columns = {name: pd.concat(pieces.pop(name), ignore_index=True) for name in list(pieces)}
    if mixed:
        columns |= dict(read_delimited(file, usecols=mixed, dtype=str).items())
    return pd.DataFrame(columns, copy=False)


def _refuse_double(file: Path) -> None:
    """Columns of one name, which pandas would number."""
    import pandas as pd

    first = pd.read_csv(file, sep=_separator(file), nrows=1, header=None, dtype=str, keep_default_na=False)
    names = first.iloc[0].tolist() if len(first) else []
    twice = [name for i, name in enumerate(names) if name and name in names[:i]]
    if twice:
        raise ValueError(f"two columns are named '{twice[0]}': rename one")


def _libsvm(path: Path) -> pd.DataFrame:
    import pandas as pd
    from sklearn.datasets import load_svmlight_file

    x, y = load_svmlight_file(str(path))
    must_fit(12 * x.shape[0] * x.shape[1], str(path))
    frame = pd.DataFrame(x.toarray(), columns=[f"x{i}" for i in range(x.shape[1])])
    frame["target"] = y
    return frame


def _named(codes: pd.Series, names: list[str]) -> pd.Series:
    import pandas as pd

    numbers = codes.fillna(-1).astype("int64")
    return pd.Series(pd.Categorical.from_codes(numbers.where(numbers >= 0, -1), names), codes.index, name=codes.name)


def schema(rows: Path | datasets.Dataset) -> pa.Schema:
    """The Arrow schema of a Parquet file or a data set."""
    import pyarrow.parquet as pq

    return pq.read_schema(rows) if isinstance(rows, Path) else rows.features.arrow_schema


def class_names(of: pa.Schema) -> dict[str, list[str]]:
    """The classes' names of each `datasets.ClassLabel` column, which `datasets` writes into a schema's metadata."""
    kept = (of.metadata or {}).get(b"huggingface")
    features = json.loads(kept).get("info", {}).get("features", {}) if kept else {}
    return {
        name: feature["names"]
        for name, feature in features.items()
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and feature.get("names")
    }


def values_of(rows: Path | datasets.Dataset, column: str, chunk: int = 64) -> Iterator[Any]:
    """The values of one column of a Parquet file or a data set, `chunk` of them in memory."""
    import pyarrow.parquet as pq

    if isinstance(rows, Path):
        with pq.ParquetFile(rows) as file:
            for batch in file.iter_batches(chunk, columns=[column]):
                yield from batch.column(0).to_pylist()
    else:
        for batch in rows.select_columns([column]).with_format("arrow").iter(chunk):
            yield from batch.column(0).to_pylist()


def bytes_of(rows: Path | datasets.Dataset) -> float:
    """About the memory of the rows as a data frame and as float32 tensors beside it."""
    import pyarrow.parquet as pq

    if not isinstance(rows, Path):
        return 1.5 * rows.data.nbytes
    try:
        if ending(rows) == ".parquet":
            meta = pq.read_metadata(rows)
            held = sum(meta.row_group(i).total_byte_size for i in range(meta.num_row_groups))
            return 1.5 * max(8 * meta.num_rows * meta.num_columns, held)
        # a number of n characters takes 8 bytes and 4 more: about as many as its text and half of it
        return 1.5 * rows.stat().st_size * _expansion(rows)
    except (OSError, EOFError, ValueError, lzma.LZMAError):
        return 0.0  # reading it will say what is wrong


def _expansion(file: Path) -> float:
    """Bytes of text for each byte of the file, by its beginning."""
    opener = OPENERS.get(file.suffix)
    if opener is None:
        return 1.0
    with file.open("rb") as raw, opener(raw) as text:
        return len(text.read(_SAMPLE)) / max(raw.tell(), 1)


def must_fit(needed: float, path: str, instead: str = "read fewer columns or rows") -> None:
    """Refuse what does not fit in free memory.

    Raises:
        ValueError: it does not; how much it is, and what to do.
    """
    free = psutil.virtual_memory().available
    if needed > free:
        raise ValueError(
            f"data.path={path} would take about {needed / 2**30:.1f} GiB of memory, and {free / 2**30:.1f} are free: {instead}, or "
            "ask for the rows one batch at a time in the library, mg.Batches(dataset, plan)"
        )

"""Rows that a file names: by the user's ids, by their place in the user's own file, or by their place in the training set."""

from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from metagradient.data import Splits
from metagradient.data.origins import Origin
from metagradient.errors import UserError

_TOLD = 5


def named_rows(settings: DictConfig, splits: Splits) -> Tensor:
    """The training rows, int64 [k], that `delete.file` names one a line.

    Lines are ids where the data have them (`data.id`), else row numbers of the user's own file (or paths in a folder of
    images), as all that a run leaves calls them; of data that are not from a file, places in the training set.

    Raises:
        UserError: no such file, a line that names nothing, or a row that was not trained on.
    """
    lines, origin = _lines(settings.file), splits.origins.get("train")
    if origin is None:
        return torch.tensor(_numbers(lines, settings.file))
    what, own = _names(origin)
    if what == "row":
        lines = [str(number) for number in _numbers(lines, settings.file)]
    places: dict[str, list[int]] = {}
    for place, name in enumerate(own):
        places.setdefault(name, []).append(place)
    lost = [line for line in lines if line not in places]
    if lost:
        raise UserError(f"{settings.file}: {_where(lost[0], splits, what)}{_more(lost)}")
    return torch.tensor([place for line in lines for place in places[line]])


def called(splits: Splits) -> str:
    """What the lines of the file are taken for."""
    origin = splits.origins.get("train")
    return "place in the training set" if origin is None else _names(origin)[0]


def _names(origin: Origin) -> tuple[str, list[str]]:
    """What lines are called, and the name of each training row."""
    named: np.ndarray = origin.places if origin.ids is None else origin.ids
    return origin.header[-1], [str(name) for name in named]


def _where(line: str, splits: Splits, what: str) -> str:
    for split in ("validation", "test"):
        if split in splits.origins and line in _names(splits.origins[split])[1]:
            return f"the {what} {line} is one of the {split} rows, which the model never saw"
    return f"no row has the {what} {line}"


def _more(lost: list[str]) -> str:
    rest = lost[1:_TOLD]
    return f"; nor is {', '.join(rest)} a training row{' ...' if len(lost) > _TOLD else ''}" if rest else ""


def _lines(file: str | None) -> list[str]:
    if file is None:
        raise UserError("delete.rows=file needs a file that names a row a line: set delete.file=rows.txt")
    try:
        text = Path(file).expanduser().read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"delete.file={file} is not UTF-8 text: save it as UTF-8") from error
    except OSError as error:
        raise UserError(f"delete.file={file} cannot be read ({error.strerror}): give a text file of rows") from error
    found = [line for raw in text.splitlines() if (line := raw.strip())]
    if not found:
        raise UserError(f"delete.file={file} is empty")
    return found


def _numbers(lines: list[str], file: str) -> list[int]:
    words = [word for line in lines for word in line.split()]
    wrong = next((word for word in words if not (word.isascii() and word.isdigit() and len(word) < 19)), None)
    if wrong is not None:
        raise UserError(
            f"{file} must hold row numbers, one a line, not {wrong!r}; rows are named by an id where data.id=COLUMN says so"
        )
    return [int(word) for word in words]

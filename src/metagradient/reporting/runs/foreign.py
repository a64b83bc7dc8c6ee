"""Files of run directories that came from anybody: read within limits and executed never, or refused in one line."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import yaml

from metagradient.errors import UserError

LARGEST = 2**20  # bytes of a file of settings or results; those of a run have some thousands
MOST = 2000  # settings or results of a run; it has some hundreds
_LONGEST = 10_000  # characters of a number, or of text without quotes
_DEEPEST = 50  # levels of settings; a run's have five
_HUGE = 1e150  # its square is a number still
_KINDS = {dict: "a mapping", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _at_once(path: str, flags: int) -> int:
    """Opens without waiting for somebody at the other end of a pipe."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """A regular file to read from; a pipe or a device is refused rather than waited for.

    Raises:
        FileNotFoundError: nothing is there.
        UserError: anything else is there, or it cannot be read.
    """
    try:
        with open(path, "rb", opener=_at_once) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise UserError(f"{path} is a pipe or a device, not a file")
            yield file
    except FileNotFoundError as error:
        if path.is_symlink():
            raise UserError(f"{path} is a link that leads nowhere") from error
        raise
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error})") from error


def content(path: Path, largest: int = LARGEST) -> bytes:
    """All bytes of a file. Raises as `opened` does, and UserError where it has more than `largest`."""
    with opened(path) as file:
        data = file.read(largest + 1)
    if len(data) > largest:
        raise UserError(f"{path} has more than {largest / 2**20:g} MiB, far more than a run writes there")
    return data


def settings_of(path: Path) -> dict[str, Any]:
    """The settings in a YAML file, {} where there is none: mappings, lists, text, numbers, true, false, null.

    Anchors are refused: a few lines of them are an endless tree, or a larger one than memory.

    Raises:
        UserError: it cannot be read, or holds anything else.
    """
    try:
        text = content(path).decode("utf-8")
    except FileNotFoundError:
        return {}
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not text in UTF-8") from error
    try:
        _check_events(text)
        node = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path} is no YAML of settings ({_short(error)})") from error
    return _mapping(path, "", {} if node is None else node)


def _check_events(text: str) -> None:
    """Refuse what would be long in the making before it is made."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"it refers to an anchor, *{event.anchor}, which no run writes")
        if getattr(event, "tag", None) is not None:
            raise ValueError(f"it has the tag {event.tag}, which no run writes")
        if (
            isinstance(event, yaml.ScalarEvent) and event.implicit[0] and len(event.value) > _LONGEST
        ):  # perhaps a number
            raise ValueError(f"a word of {len(event.value)} characters")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise ValueError(f"nested more than {_DEEPEST} deep")


def _mapping(path: Path, name: str, node: Any) -> dict[str, Any]:
    if not isinstance(node, dict):
        which = f"{path}: {_short(name)}" if name else str(path)
        raise UserError(f"{which} must be a mapping of settings, not {_kind(node)}")
    return {str(_plain(path, name, key)): _plain(path, str(key), value) for key, value in node.items()}


def _plain(path: Path, name: str, node: Any) -> Any:
    if isinstance(node, dict):
        return _mapping(path, name, node)
    if isinstance(node, list):
        return [_plain(path, name, value) for value in node]
    if node is None or isinstance(node, str | bool | float):
        return node
    if isinstance(node, int) and abs(node) < 2**64:
        return node
    raise UserError(f"{path}: {_short(name)} holds {_kind(node)}, which no setting is")


def part(path: Path, settings: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    """The settings of `path` below these keys, {} where there are none. Raises UserError where they are no mapping."""
    node: Any = settings
    for i, key in enumerate(keys, 1):
        node = node.get(key)
        if node is None:
            return {}
        node = _mapping(path, ".".join(keys[:i]), node)
    return node


def overrides_of(path: Path, settings: Mapping[str, Any] | None = None) -> tuple[str, ...]:
    """The overrides that Hydra kept in a hydra.yaml or multirun.yaml. Raises UserError where it cannot be read.

    Args:
        path: the file.
        settings: what it holds, where it has been read already.
    """
    task = part(path, settings_of(path) if settings is None else settings, "hydra", "overrides").get("task") or []
    if not isinstance(task, list):
        raise UserError(f"{path}: hydra.overrides.task must be a list, not {_kind(task)}")
    return tuple(map(str, task))


def metrics_of(path: Path) -> dict[str, Any]:
    """The flat object in a metrics.json, {} where there is none: numbers, text, true, false, null by name.

    Raises:
        UserError: it cannot be read, or holds anything else.
    """

    def no_number(word: str) -> float:
        raise ValueError(f"{word} is no JSON")

    try:
        metrics = json.loads(content(path), parse_constant=no_number)
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is no JSON of results ({_short(error)})") from error
    if not isinstance(metrics, dict):
        raise UserError(f"{path} must hold results by name, not {_kind(metrics)}")
    if len(metrics) > MOST:
        raise UserError(f"{path} holds {len(metrics)} results, far more than a run has")
    for name, value in metrics.items():
        if isinstance(value, dict | list):
            raise UserError(f"{path}: {_short(name)} must be a number or text, not {_kind(value)}")
        if isinstance(value, int | float) and not abs(value) < _HUGE:
            raise UserError(f"{path}: {_short(name)} is beyond {_HUGE:g}, which no result is")
    return metrics


def _kind(value: Any) -> str:
    return "null" if value is None else _KINDS.get(type(value), f"a {type(value).__name__}")


def _short(text: object, most: int = 120) -> str:
    """On one line, and not more than can be read."""
    line = " ".join(str(text).split())
    return line if len(line) <= most else f"{line[:most]}..."

"""Turns what Hydra and OmegaConf raise at bad input into one line: what was wrong, and what to type instead."""

import errno
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from difflib import SequenceMatcher
from typing import Any

from metagradient.cli.help import SCHEMA, composer, parser
from metagradient.errors import UserError

TYPES = {
    "Float": "a number",
    "Integer": "a whole number",
    "bool": "true or false",
    "Boolean": "true or false",
    "Path": "a path",
}

_FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
_CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST)
_EXTRAS = {"hydra/launcher": ("joblib", "slurm"), "hydra/sweeper": ("optuna",)}


def bad_input(error: BaseException) -> str | None:
    """The line for an error that a run raised, if it (or one that it was raised from) blames the input; else None."""
    for cause in _causes(error):
        if isinstance(cause, UserError):
            return _one_line(str(cause))
        if isinstance(cause, OSError) and cause.errno in _CLOSED and cause.filename is not None:
            return f"{cause.filename}: {cause.strerror}; give a place that this user can read and write"
        if isinstance(cause, FileNotFoundError):
            missing = cause.filename
            return f"no such file or folder: {missing}" if missing is not None else _one_line(str(cause))
    return None


def no_room(error: BaseException) -> str | None:
    """The line for an error that says that a disk is full, however it is said; else None."""
    current: BaseException | None = error
    while current is not None:
        full = isinstance(current, OSError) and current.errno in _FULL
        if full or re.search(rf"os error ({'|'.join(map(str, _FULL))})\b", str(current)):
            where = f" at {current.filename}" if isinstance(current, OSError) and current.filename else ""
            return f"there is no room to write{where}: make some, then go on with resume=true"
        current = current.__cause__ or current.__context__
    return None


def last_line(error: BaseException) -> str:
    """`Class: message` on one line, as at the end of a traceback."""
    message = _one_line(str(error))
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def flags_first(arguments: Sequence[str]) -> list[str]:
    """The arguments with Hydra's flags before the overrides: argparse reads overrides in one place only."""
    actions = {flag: action for action in parser()._actions for flag in action.option_strings}
    flags: list[str] = []
    rest: list[str] = []
    items = iter(arguments)
    for item in items:
        name, equals, _ = item.partition("=")
        action = actions.get(name)
        if action is None:
            rest.append(item)
            continue
        flags.append(item)
        if action.nargs is None and not equals:
            flags += [value for value in [next(items, None)] if value is not None]
    return [*flags, *rest]


def check_flags(arguments: Sequence[str]) -> None:
    """Refuse flags that Hydra does not know, in one line instead of argparse's page of usage.

    Raises:
        UserError: names the flag and the nearest known one, or the override that was probably meant.
    """
    hydras = parser()
    known = [flag for action in hydras._actions for flag in action.option_strings]
    _, unknown = hydras.parse_known_args(list(arguments))
    for flag in unknown:
        if flag.startswith("-") and "=" in flag:
            raise UserError(f"no flag {flag!r}; a setting is written without dashes: {flag.lstrip('-')}")
        follows = list(arguments)[list(arguments).index(flag) + 1 :][:1]
        if flag.startswith("--") and follows and not follows[0].startswith("-") and "=" not in follows[0]:
            raise UserError(f"no flag {flag!r}; settings are written key=value: {flag.lstrip('-')}={follows[0]}")
        nearest = _nearest(flag, known)
        raise UserError(f"no flag {flag!r}; did you mean {nearest}?" if nearest else f"no flag {flag!r}")


def composition_error(error: BaseException, config_name: str, arguments: Sequence[str]) -> str | None:
    """The line for an error raised while the config was composed, or None if the input is not to blame."""
    from hydra.errors import HydraException, MissingConfigException, OverrideParseException
    from omegaconf.errors import ConfigKeyError, OmegaConfBaseException, ValidationError

    message, cause = str(error), error.__cause__
    if isinstance(error, MissingConfigException):  # an OSError as well
        return _missing_option(error.missing_cfg_file or "", list(error.options or ()), message)
    if isinstance(error, UserError | OSError):
        return bad_input(error) or no_room(error)
    if isinstance(error, OverrideParseException):
        return f"cannot read the override {error.override!r}: {_parse_hint(error.override, message)}"
    if isinstance(error, HydraException | OmegaConfBaseException | ValueError):
        found = re.match(r"Could not override '([^']+)'", message)
        if found or (isinstance(cause, ConfigKeyError) and "Error merging override" in message):
            key = found.group(1) if found else str(cause.full_key)  # type: ignore[union-attr]
            return _unknown_key(key, config_name, arguments)
        if isinstance(cause, ValidationError):
            return _wrong_value(message.removeprefix("Error merging override "), cause)
        if "Config group override must be" in message:
            return _no_option(config_name, arguments)
        found = re.match(r"Could not append to config. An item is already at '([^']+)'", message)
        if found:
            return f"the setting {found.group(1)!r} exists already; change it without the +: {found.group(1)}=..."
        return _ambiguous(message) or _one_line(message or str(cause))
    return None


def _missing_option(path: str, options: list[str], message: str) -> str:
    group, _, option = path.rpartition("/")
    options = [name for name in options if name != SCHEMA]
    if group in _EXTRAS:
        extras = ", ".join(f"pip install 'metagradient[{extra}]'" for extra in _EXTRAS[group])
        return f"no option {option!r} for {group!r}; there are: {', '.join(options)}; more of them: {extras}"
    if not options:
        return _one_line(message.partition("\n")[0])
    nearest = next((name for name in options if name.startswith(option)), None) or _nearest(option, options)
    hint = f"; did you mean {group}={nearest}?" if nearest else ";"
    return f"no option {option!r} for {group!r}{hint} there are: {', '.join(options)}"


def _parse_hint(override: str, message: str) -> str:
    if "=" not in override:
        return f"a setting is written key=value, so perhaps {override}=..."
    quoted = override.replace("=", "='", 1) + "'"
    return f'{_one_line(message.partition(chr(10))[0])}; quote unusual characters: "{quoted}"'


def _unknown_key(key: str, config_name: str, arguments: Sequence[str]) -> str:
    keys = _valid_keys(key, config_name, arguments)
    if key in keys or key == "grid":
        typed = next((item for item in arguments if item.partition("=")[0] == key), f"{key}=...")
        return f"nothing is chosen for {key!r} yet, so it is added: +{typed}"
    nearest = _nearest(key, keys)
    if nearest:
        return f"no setting {key!r}; did you mean {nearest}? (all settings: --cfg job; to add a new key: +{key}=...)"
    parent = key.rpartition(".")[0]
    siblings = [name for name in keys if name.rpartition(".")[0] == parent] or [k for k in keys if "." not in k]
    where = f"under {parent!r}" if any(name.startswith(f"{parent}.") for name in keys) else "at the top"
    return f"no setting {key!r}; {where} there are: {', '.join(siblings)}"


def _no_option(config_name: str, arguments: Sequence[str]) -> str:
    from metagradient.schema import read_by

    given = next((item for item in arguments if item.endswith(("=null", "=None", "="))), None)
    if given is None:
        return "an option of a group is a name, not a number or settings in braces: see --help for the names"
    group = given.partition("=")[0]
    hint = "see --help for the names" if group in read_by(config_name) else f"to leave the group out: ~{group}"
    return f"{given}: a group has no option of that name; {hint}"


def _wrong_value(override: str, cause: Exception) -> str:
    text = str(cause).partition("\n")[0]
    key, _, value = override.partition("=")
    found = re.search(r"could not be converted to (\w+)|is not a valid (\w+)", text)
    if found:
        expected = found.group(1) or found.group(2)
        return f"{key}={value}: expected {TYPES.get(expected, expected)}, got {value!r}"
    return f"{override}: {text}"


def _ambiguous(message: str) -> str | None:
    found = re.search(r"Ambiguous value for argument '(.+)'|Sweep parameters '(.+)' requires", message)
    if not found:
        return None
    override = found.group(1) or found.group(2)
    key, _, values = override.partition("=")
    as_list = f" (for one run with a list: '{key}=[{values}]')" if found.group(1) else ""
    return f"{override} holds several values; add -m to run each of them{as_list}"


def _valid_keys(bad: str, config_name: str, arguments: Sequence[str]) -> list[str]:
    """Every dotted key and config group that would have been valid beside the other overrides."""
    from hydra.types import RunMode

    args, _ = parser().parse_known_args(list(arguments))
    others = [item for item in args.overrides if item.lstrip("+~").partition("=")[0] != bad]
    with composer(args.config_dir) as hydra:
        for overrides in (others, []):
            with suppress(Exception):  # another override is bad as well: then without any
                cfg = hydra.compose_config(args.config_name or config_name, overrides, RunMode.RUN)
                if bad.startswith("hydra."):
                    return list(_dotted(cfg.hydra, "hydra."))
                groups = [name for name in cfg.hydra.runtime.choices if not str(name).startswith("hydra")]
                return list(dict.fromkeys([*groups, *_dotted(cfg, hidden="hydra")]))
    return []


def _dotted(node: Any, prefix: str = "", hidden: str = "") -> Iterator[str]:
    from omegaconf import DictConfig

    for key in node:
        if key == hidden:
            continue
        yield f"{prefix}{key}"
        child = node._get_node(key)
        if isinstance(child, DictConfig) and not child._is_missing() and not child._is_interpolation():
            yield from _dotted(child if not child._is_none() else {}, f"{prefix}{key}.")


def _nearest(given: str, valid: Sequence[str], cutoff: float = 0.6) -> str | None:
    """The most similar name. The last part of a dotted key counts most, and its initials (`lr`) stand for it."""

    def likeness(name: str) -> float:
        (parent, _, leaf), (given_parent, _, given_leaf) = name.rpartition("."), given.rpartition(".")
        initials = "".join(word[:1] for word in leaf.split("_"))
        same_leaf = 1.0 if given_leaf == initials else SequenceMatcher(None, leaf, given_leaf).ratio()
        if parent == given_parent:
            return same_leaf
        return 0.65 * same_leaf + 0.35 * SequenceMatcher(None, parent, given_parent).ratio()

    best = max(valid, key=likeness, default=None)
    return best if best is not None and likeness(best) >= cutoff else None


def _causes(error: BaseException) -> Iterator[BaseException]:
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__


def _one_line(text: str) -> str:
    return " ".join(text.split())

"""Values of another kind than the setting they replace: told before anything runs, with an example of the right kind.

Schemas hold the core groups; the settings of an experiment's own file have their defaults as the only type they know.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from metagradient.cli.help import composer, parser
from metagradient.errors import UserError

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override


def check_values(name: str, arguments: Sequence[str]) -> None:
    """Compare the plain overrides `key=value`, those of sweeps as well, with the settings of experiment `name`.

    A list stays a list, a group of settings such a group, a number a number, true or false one of the two; null goes
    everywhere, and a setting that is null takes anything. What an experiment reads is not left out by `~key`. What does not
    compose is left to Hydra to refuse.

    Raises:
        UserError: names the value, the kind that was expected, and an example; or what was left out.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    args, _ = parser().parse_known_args(list(arguments))
    left_out, twice, pairs = "", "", list[tuple[str, Any, Any]]()  # key, the setting as it is, what was given
    with suppress(HydraException, ValueError), composer(args.config_dir) as hydra:
        name, loader = args.config_name or name, hydra.config_loader
        given = OverridesParser.create().parse_overrides(args.overrides)
        left_out, twice = _left_out(name, given), _twice(given)
        plain = [o for o in given if not (o.is_add() or o.is_force_add() or o.is_delete() or "hydra" in o.key_or_group)]
        plain = [o for o in plain if not loader.get_group_options(o.key_or_group, config_name=name)]
        if plain:
            others = [str(o.input_line) for o in given if o not in plain and not o.is_sweep_override()]
            base = hydra.compose_config(name, others, RunMode.RUN)
            before = {o.key_or_group: OmegaConf.select(base, o.key_or_group, throw_on_missing=False) for o in plain}
            pairs = [(o.key_or_group, before[o.key_or_group], value) for o in plain for value in _values(o)]
    if left_out:
        raise UserError(
            f"~{left_out}: {name} reads it; give another value, {left_out}=..., or null where that may stand"
        )
    if twice:
        raise UserError(f"{twice}: a value stands twice, and its jobs would be the same; give each once")
    for key, setting, value in pairs:
        expected = _clash(setting, value)
        if expected:
            hint = f"for example {key}={_example(setting, value)}"
            raise UserError(f"{key}={_shown(value)}: expected {expected}, got {_shown(value)!r}; {hint}")


def _left_out(name: str, given: Sequence["Override"]) -> str:
    """The first setting that is deleted and not given again although experiment `name` reads it."""
    from metagradient.schema import read_by

    again = {o.key_or_group for o in given if o.is_add() or o.is_force_add()}
    deleted = (str(o.key_or_group) for o in given if o.is_delete() and o.key_or_group not in again)
    needed = (key for key in deleted if key.partition(".")[0] in read_by(name))
    return next((key for key in needed if not key.startswith("model.")), "")  # whose settings are the model's own


def _twice(given: Sequence["Override"]) -> str:
    """The first override of a sweep that lists a value twice."""
    for override in given:
        if override.is_choice_sweep():
            values = [str(value) for value in override.sweep_string_iterator()]
            if len(set(values)) < len(values):
                return str(override.input_line)
    return ""


def _values(override: "Override") -> Iterator[Any]:
    if override.is_sweep_override():
        if override.is_choice_sweep() or override.is_range_sweep():
            yield from override.sweep_iterator()
    else:
        yield override.value()


def _clash(before: Any, value: Any) -> str:
    """What should have been given instead; "" where the value may stand."""
    if before is None or value is None or (isinstance(value, str) and ("${" in value or value == "???")):
        return ""
    if isinstance(before, Mapping):
        return "" if isinstance(value, Mapping) else "settings in braces, or null"
    if isinstance(before, list) or type(before).__name__ == "ListConfig":
        return "" if isinstance(value, list) else "a list"
    if isinstance(before, bool):
        return "true or false" if isinstance(value, str | list | Mapping) else ""
    if isinstance(before, int | float):
        return "a number" if isinstance(value, str | list | Mapping | bool) else ""
    return ""


def _example(before: Any, value: Any) -> str:
    if isinstance(before, Mapping):
        return "null"
    if isinstance(before, list) or type(before).__name__ == "ListConfig":
        single = isinstance(value, int | float) or (before and isinstance(before[0], str))
        return "[" + (_shown(value) if single else ",".join(map(str, before))) + "]"
    return _shown(before)


def _shown(value: Any) -> str:
    from hydra.core.override_parser.types import QuotedString

    if isinstance(value, bool):
        return str(value).lower()
    return value.text if isinstance(value, QuotedString) else str(value)

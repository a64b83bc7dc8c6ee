"""What a command line means beyond its words: a model of the user's own; and which preset, since an experiment's default preset belongs to the data set that it was made for."""

import sys
from collections.abc import Sequence

from metagradient.cli.help import composer, parser
from metagradient.escapes import visible

_NOTHING = ("experiment=null", "experiment=None", "experiment=")


def with_own_model(arguments: Sequence[str]) -> list[str]:
    """The arguments, with `model=custom` before `model._target_=...`, and its settings as ones that need not exist.

    Without it the settings of the default model would be handed to somebody else's class.
    """
    arguments = [part for item in arguments for part in _replacing(item)]
    given = [item.partition("=")[0] for item in arguments]
    if not any(key.lstrip("+") == "model._target_" for key in given) or "model" in given:
        return list(arguments)
    free = [f"++{item}" if key.startswith("model.") else item for item, key in zip(arguments, given, strict=True)]
    first = next(i for i, key in enumerate(given) if key.lstrip("+").startswith("model."))
    return [*free[:first], "model=custom", *free[first:]]


def _replacing(item: str) -> list[str]:
    """`key={_target_: ...}` puts another object in the place of the one that is there, whose settings are not its own."""
    key, equals, value = item.partition("=")
    whole = equals and value.replace(" ", "").startswith("{_target_:") and value.endswith("}") and key[:1].isalpha()
    return [f"{key}=null", item] if whole and "," not in value.rpartition("}")[2] else [item]


def with_preset(name: str, arguments: Sequence[str]) -> list[str]:
    """The arguments, with `~experiment` where the default preset is not meant.

    `experiment=null` leaves it out. So does another data set than the preset's (`data=a9a`) without an `experiment=` of
    its own: the label noise, sizes and epochs of a preset are not for somebody else's data. That is said on stderr.

    Raises:
        HydraException: an override is wrong.
    """
    plain = ["~experiment" if item in _NOTHING else item for item in arguments]
    args, _ = parser().parse_known_args(plain)
    keys = {item.lstrip("+~").partition("=")[0] for item in args.overrides}
    named = next((item for item in args.overrides if item.startswith("data=")), None)
    if named is None or "experiment" in keys:
        return plain
    from hydra.types import RunMode

    with composer(args.config_dir) as hydra:
        cfg = hydra.compose_config(args.config_name or name, [], RunMode.RUN)
        choices = cfg.hydra.runtime.choices
        preset, own = choices.get("experiment"), choices.get("data")
    if preset is None or set(named.partition("=")[2].split(",")) == {own}:
        return plain
    said = f"{named}: without the preset {preset}, which is for data={own}; experiment=NAME chooses one"
    print(visible(said), file=sys.stderr)
    place = plain.index(named) + 1
    return [*plain[:place], "~experiment", *plain[place:]]

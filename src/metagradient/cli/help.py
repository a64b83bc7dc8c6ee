"""`metagradient <experiment> --help`: the choices and settings of one experiment, composed but not run."""

import argparse
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hydra._internal.hydra import Hydra

SCHEMA = "schema"
"""Name of the option that holds a group's types; it is no choice."""


def parser() -> argparse.ArgumentParser:
    """Hydra's own argument parser."""
    from hydra._internal.utils import get_args_parser

    return get_args_parser()


@contextmanager
def composer(config_dir: str | None) -> Iterator["Hydra"]:
    """Hydra as `hydra.main` sets it up, for looking at configs; `config_dir` is the flag `--config-dir`."""
    from hydra._internal.hydra import Hydra
    from hydra._internal.utils import create_automatic_config_search_path
    from hydra.core.config_search_path import SearchPathQuery
    from hydra.core.global_hydra import GlobalHydra

    search = create_automatic_config_search_path(None, None, "pkg://metagradient.conf")
    if config_dir:
        extra = f"file://{os.path.abspath(config_dir)}"
        search.prepend("command-line", extra, anchor=SearchPathQuery(provider="schema"))
    try:
        yield Hydra.create_main_hydra2(task_name="metagradient", config_search_path=search)
    finally:
        GlobalHydra.instance().clear()


def help_text(name: str, summary: str, arguments: Sequence[str]) -> str:
    """The page of `metagradient <name> --help`; overrides among the arguments take effect, so presets can be looked at.

    Raises:
        HydraException: an override is wrong.
    """
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    args, _ = parser().parse_known_args(list(arguments))
    config_name = args.config_name or name
    with composer(args.config_dir) as hydra:
        cfg = hydra.compose_config(config_name, list(args.overrides), RunMode.RUN)
        chosen = {group: option for group, option in cfg.hydra.runtime.choices.items() if "hydra" not in group}
        lines = []
        for group in sorted(chosen):
            options = hydra.config_loader.get_group_options(group, config_name=config_name)
            marked = [f"[{o}]" if o == chosen[group] else o for o in options if o != SCHEMA]
            lines.append(f"  {group:<12}{'  '.join(marked)}")
        grids = hydra.config_loader.get_group_options("grid", config_name=config_name)
        if grids:
            lines.append(f"  {'+grid':<12}{'  '.join(grids)}")
        used = _most_used(hydra, config_name)
        settings = OmegaConf.to_yaml(hydra.get_sanitized_cfg(cfg, "job"))
    indented = "\n".join(f"  {line}" for line in settings.rstrip().splitlines())
    return (
        f"{summary}\n\n"
        f"usage: metagradient {name} [group=option ...] [key=value ...]\n"
        f"       metagradient {name} -m seed=0,1,2     one run for each value\n"
        f"       metagradient {name} +grid=NAME        a grid that comes with it\n"
        f"       metagradient {name} resume=true       go on with what was cut short\n"
        f"       metagradient {name} --hydra-help      the other flags\n\n"
        f"{used}"
        f"choices (group=option), in brackets what is chosen now:\n" + "\n".join(lines) + "\n\n"
        f"settings (key=value, with dots for the indented ones):\n{indented}"
    )


def _most_used(hydra: "Hydra", config_name: str) -> str:
    """The overrides named in the comment `# Most used:` at the head of the experiment's configuration."""
    for source in hydra.config_loader.get_search_path().get_path():
        lines = _source_text(source.path, config_name).splitlines()
        if "# Most used:" in lines:
            start = lines.index("# Most used:") + 1
            end = next((i for i, line in enumerate(lines) if i >= start and not line.startswith("#   ")), len(lines))
            return "most used:\n" + "".join(f"  {line[4:]}\n" for line in lines[start:end]) + "\n"
    return ""


def _source_text(path: str, config_name: str) -> str:
    from importlib.resources import files
    from pathlib import Path

    scheme, _, place = path.partition("://")
    if scheme == "pkg":
        folder: Any = files(place) if place.startswith("metagradient") else None
    else:
        folder = Path(place) if scheme == "file" else None
    file = None if folder is None else folder / f"{config_name}.yaml"
    return file.read_text(encoding="utf-8") if file is not None and file.is_file() else ""


def given_of(overrides: Sequence[str]) -> dict[str, str]:
    """What overrides set: key -> value as it was typed."""
    return {key_of(item): item.partition("=")[2] for item in overrides}


def key_of(override: str) -> str:
    """The key that an override sets."""
    return override.lstrip("+~").partition("=")[0]

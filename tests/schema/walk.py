"""All settings that are numbers or lists, found in the configurations themselves: new ones are walked as they come."""

import copy
import functools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from metagradient.cli.help import SCHEMA, composer
from metagradient.errors import UserError
from metagradient.schema import EXPERIMENTS, check_settings, register

ODD: tuple[Any, ...] = (0, -1, 1e30, float("nan"), float("inf"), "a", [], None)
_OTHERS = ("model.config", "variants", "transfer", "data.path")
"""Settings of other libraries, which are theirs to refuse; edits of others, which are walked where they stand; and files, of which
a word names one as well as a list several."""


class Setting(NamedTuple):
    """A number or list, and a configuration in which it stands; `overrides` compose that."""

    experiment: str
    key: str
    overrides: tuple[str, ...]
    config: dict[str, Any]

    def with_value(self, value: Any) -> dict[str, Any]:
        """The configuration with another value in this place."""
        changed = copy.deepcopy(self.config)
        *parents, leaf = self.key.split(".")
        node = changed
        for parent in parents:
            node = node[parent]
        node[leaf] = value
        return changed

    def is_number(self) -> bool:
        """A number or list; or null in its place."""
        *parents, leaf = self.key.split(".")
        value = functools.reduce(lambda node, parent: node[parent], parents, self.config)[leaf]
        if value is not None:
            return isinstance(value, list | int | float) and not isinstance(value, bool)
        try:
            check_settings(self.with_value(math.nan), self.experiment)
        except UserError:
            return True
        return False

    def __str__(self) -> str:
        return f"{self.experiment} {' '.join(self.overrides)} {self.key}"


@functools.cache
def settings() -> tuple[Setting, ...]:
    """Each number and list of each experiment's own, and of each option of each group, once."""
    register()
    found: dict[tuple[str, str], Setting] = {}
    with composer(None) as hydra:
        for name in EXPERIMENTS:
            base = hydra.compose_config(name, [], RunMode.RUN)
            for group in (str(group) for group in base.hydra.runtime.choices if not str(group).startswith("hydra")):
                for option in hydra.config_loader.get_group_options(group, config_name=name):
                    place = f"{name}/{group}" if group in ("experiment", "debug", "method") else group
                    preset = group in ("experiment", "debug") or name == "cost"
                    overrides = (f"{group}={option}",) if preset else ("~experiment", f"{group}={option}")
                    if option == SCHEMA or (place, option) in found:
                        continue
                    cfg = hydra.get_sanitized_cfg(hydra.compose_config(name, list(overrides), RunMode.RUN), "job")
                    found[place, option] = Setting(name, "", overrides, _given(cfg))
    leaves: dict[tuple[str, str, str], Setting] = {}
    for setting in found.values():
        for key, target in _leaves(setting.config):
            group = key.partition(".")[0]
            shared = group in ("data", "model", "learner", "trainer", "replay", "logger")
            own = ("" if shared else setting.experiment, key, target)
            if own not in leaves and (leaf := setting._replace(key=key)).is_number():
                leaves[own] = leaf
    return tuple(leaves.values())


def _given(cfg: DictConfig) -> dict[str, Any]:
    """Plain settings, with something in the place of what has no default."""
    if "vocab" in cfg.get("model", {}).keys():  # noqa: SIM118  # of models of words, beside data that have none
        OmegaConf.update(cfg, "model.vocab", 1000)
    for key in [key for key in OmegaConf.missing_keys(cfg) if not key.endswith("_target_")]:
        OmegaConf.update(cfg, key, "given")  # a path or a column
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    return plain


def _leaves(node: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, what it belongs to) of each setting."""
    for name, value in node.items():
        key = f"{prefix}{name}"
        if key.startswith(_OTHERS):
            continue
        if isinstance(value, dict):
            yield from _leaves(value, f"{key}.")
        else:
            yield key, str(node.get("_target_"))

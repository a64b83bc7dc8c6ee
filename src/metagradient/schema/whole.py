"""A whole configuration checked: the experiment's own settings, the groups', and those of what is built by name."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

from omegaconf import DictConfig, OmegaConf

from metagradient.errors import UserError
from metagradient.schema.experiments import EXPERIMENTS
from metagradient.schema.groups import GROUPS, PARTS
from metagradient.schema.ranges import Braces, check
from metagradient.schema.targets import TARGETS
from metagradient.schema.unread import unread

log = logging.getLogger(__name__)
_NEARLY_ALL = 0.95


def check_settings(
    cfg: DictConfig | Mapping[str, Any], experiment: str, given: Sequence[str] = (), *, sweep: bool = False
) -> None:
    """Refuse the first setting of a configuration of `experiment` that is out of its range.

    The settings that `variants` and `transfer` put in the place of others are checked as they will then stand. What is
    allowed but hardly meant is told.

    Args:
        cfg: the configuration.
        experiment: its name.
        given: the overrides that were given by hand: one that nobody reads is refused.
        sweep: it is told instead, since other jobs may read it.

    Raises:
        UserError: names the setting, the range, the value, and a value that works.
    """
    plain: Any = OmegaConf.to_container(cfg, resolve=True) if isinstance(cfg, DictConfig) else cfg
    check(plain, EXPERIMENTS[experiment])
    _check_groups(plain)
    for group in ("variants", "transfer"):
        for name, edits in (plain.get(group) or {}).items():
            try:
                _check_groups(_edited(plain, edits))
            except UserError as error:
                raise UserError(f"{group}.{name}: {error}") from error
    keys = [item.lstrip("+~").partition("=")[0] for item in given]
    for line, refused in unread(plain, experiment, keys):
        if refused and not sweep:
            raise UserError(line)
        log.warning("%s", line)
    _tell(plain)


def read_by(experiment: str) -> set[str]:
    """The names at the top of an experiment's configuration without which it does not run."""
    if experiment not in EXPERIMENTS:
        return set()
    checks = {setting.name: setting.metadata.get("check") for setting in fields(EXPERIMENTS[experiment])}
    free = {
        name for name, made in checks.items() if isinstance(made, Braces) and not made.target
    }  # of names of one's own
    return (checks.keys() | PARTS[experiment]) - free - {"logger"}


def _check_groups(plain: Mapping[str, Any]) -> None:
    for name, schema in GROUPS.items():
        node = plain.get(name) or {}
        if not isinstance(node, Mapping):
            raise UserError(f"{name}={node} is no group of settings: leave it out, or see --help for its choices")
        known = [setting.name for setting in fields(schema)]
        for unknown in (key for key in node if key not in known and name != "trainer"):  # which Lightning knows
            raise UserError(f"no setting {name}.{unknown}; there are: {', '.join(known)}")
        check(node, schema, f"{name}.")
    for key, node in _built({name: node for name, node in plain.items() if name not in ("variants", "transfer")}):
        for setting, allowed in TARGETS.get(str(node["_target_"]), {}).items():
            *parents, leaf = setting.split(".")
            inner: Any = node
            for parent in parents:
                inner = inner.get(parent) if isinstance(inner, Mapping) else None
            if isinstance(inner, Mapping) and leaf in inner:
                allowed.check(f"{key}.{setting}", inner[leaf])


def _built(node: Mapping[str, Any], key: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(key, settings) of everything that is built by name."""
    if "_target_" in node:
        yield key, node
    for name, inner in node.items():
        if isinstance(inner, Mapping):
            yield from _built(inner, f"{key}.{name}" if key else str(name))


def _edited(plain: Mapping[str, Any], edits: Any) -> dict[str, Any]:
    """The configuration with `edits`: {"model.width": 8}, or the same in braces."""
    if not isinstance(edits, Mapping):
        raise UserError(f"must be settings in braces, not '{edits}'")
    changed: dict[str, Any] = copy.deepcopy(dict(plain))
    for key, value in edits.items():
        *parents, leaf = str(key).split(".")
        node: Any = changed
        for parent in parents:
            node = node.get(parent) if isinstance(node, dict) else None
        if isinstance(node, dict):  # else whoever makes the variant says that there is no such setting
            node[leaf] = value
    return changed


def _tell(plain: Mapping[str, Any]) -> None:
    learner = plain.get("learner") or {}
    if learner.get("learning_rate") == 0 and learner.get("_target_") is None:
        log.warning("learner.learning_rate=0: nothing is learned")
    held_out = plain.get("held_out")
    if isinstance(held_out, float) and held_out > _NEARLY_ALL:
        log.warning("held_out=%g leaves %.2g of the validation rows to steer the descent", held_out, 1 - held_out)

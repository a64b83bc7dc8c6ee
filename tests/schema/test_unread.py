"""A setting that the chosen mode does not read is refused, and one that it reads is not; documented commands are clean."""

import logging
import re
import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hydra.types import RunMode
from omegaconf import OmegaConf

from metagradient.cli.help import SCHEMA, composer, parser
from metagradient.cli.presets import with_own_model, with_preset
from metagradient.errors import UserError
from metagradient.schema import EXPERIMENTS, check_settings, register
from metagradient.schema.groups import PARTS
from metagradient.schema.unread import _ANY, _RULES

ROOT = Path(__file__).parents[2]


def checked(experiment: str, overrides: list[str], *, sweep: bool = False) -> None:
    register()
    with composer(None) as hydra:
        cfg = hydra.get_sanitized_cfg(hydra.compose_config(experiment, overrides, RunMode.RUN), "job")
    for key in OmegaConf.missing_keys(cfg):
        OmegaConf.update(cfg, key, "given")
    check_settings(cfg, experiment, overrides, sweep=sweep)


UNREAD = [
    ("unlearning", ["delete.label=3"], "delete.label=3 is not read: delete.rows=random: set delete.rows=class"),
    ("unlearning", ["delete.label=3", "delete.rows=class"], ""),
    ("unlearning", ["delete.label=null"], ""),
    (
        "unlearning",
        ["delete.file=rows.txt"],
        "delete.file=rows.txt is not read: delete.rows=random: set delete.rows=file",
    ),
    (
        "unlearning",
        ["experiment=mnist_stream", "delete.fraction=0.1"],
        "delete.fraction=0.1 is not read: delete.count=1 says",
    ),
    ("unlearning", ["add.count=3", "delete.count=3"], "delete.count=3 is not read: rows are added"),
    ("unlearning", ["add.count=3", "delete.count=3", "stream.requests=4"], ""),
    ("unlearning", ["stream.requests=4", "sets=3"], "sets=3 is not read: a stream has requests of its own"),
    ("unlearning", ["klom.models=0", "stream.requests=4"], ""),
    (
        "unlearning",
        ["history.folder=x"],
        "history.folder=x is not read: history.storage=memory: set history.storage=disk",
    ),
    ("unlearning", ["history.folder=x", "history.storage=disk"], ""),
    (
        "attribution",
        ["qld.share=0.1"],
        "qld.share=0.1 is not read: no query's top rows are removed: set qld.queries=10",
    ),
    ("attribution", ["qld.share=0.1", "qld.queries=2"], ""),
    ("attribution", ["source_top=5"], "source_top=5 is not read: only texts come from sources"),
    ("attribution", ["source_top=5", "data=made_instructions", "model=gpt"], ""),
    ("selection", ["replay.folder=x"], "replay.folder=x is not read: replay.storage=memory: set replay.storage=disk"),
    ("selection", ["replay.save_every=60"], ""),
    (
        "selection",
        ["replay.save_every=60", "trainer.devices=2"],
        "replay.save_every=60 is not read: replays that several processes share are not saved: set trainer.devices=1",
    ),
    (
        "schedule",
        ["replay.save_every=60", "replay.checkpoints=tape"],
        "replay.save_every=60 is not read: replay.checkpoints=tape keeps the graph of the whole run",
    ),
    (
        "attribution",
        ["methods=[dropout:64]", "replay.save_every=60"],
        "replay.save_every=60 is not read: no method replays: add exact to methods",
    ),
    (
        "smoothness",
        ["gradient=false", "replay.save_every=60"],
        "replay.save_every=60 is not read: nothing is replayed: set gradient=true",
    ),
    ("selection", ["learner.warmup=0.1"], "learner.warmup=0.1 is not read: learner.schedule=constant has no warm-up"),
    ("selection", ["learner.warmup=0.1", "learner.schedule=one_cycle"], ""),
    (
        "selection",
        ["learner.epochs=5"],
        "learner.epochs=5 beside learner.steps=200: a run has one of the two; set learner.ste",
    ),
    ("selection", ["learner.epochs=5", "learner.steps=null"], ""),
    ("selection", ["method=counts", "method.shard=0.1"], "method.shard=0.1 is not read: only a swap looks at a share"),
    (
        "poisoning",
        ["defences=false", "defender.metasteps=3"],
        "defender.metasteps=3 is not read: it is for the defence table",
    ),
    ("attribution", ["drop=[]", "damping=1.0", "retrainings=10"], "retrainings=10 is not read: no share is left out"),
    ("attribution", ["damping=1.0", "dampings=[1.0]"], "dampings=[1] is not read: damping=1 is taken as it is"),
    (
        "attribution",
        ["methods=[dropout:64]", "checkpoints=2"],
        "checkpoints=2 is not read: no method looks along the run",
    ),
    ("attribution", ["methods=[dropout:64:path]", "checkpoints=2"], ""),
    ("selection", ["+foo=3"], "foo=3 is read by nothing but a ${foo} elsewhere: selection has no setting of this name"),
    ("cost", ["+data.path=x"], "data.path=x is read by nothing but a ${data.path} elsewhere"),
    ("cost", ["plans=[auto]", "tight_memory=1MiB"], "tight_memory=1MiB is not read: no plan is tight"),
]


REFUSED = (
    "delete.",
    "history.folder",
    "replay.folder",
    "replay.save_every=60 is not read: replays that",
    "learner.epochs",
)
"""Without these the run is not the one that was asked for; others are told."""


@pytest.mark.parametrize(
    ("experiment", "given", "said"), UNREAD, ids=[f"{name} {' '.join(given)}" for name, given, _ in UNREAD]
)
def test_who_gives_a_setting_that_is_not_read_is_told_by_the_same_line(
    experiment: str, given: list[str], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    if said.startswith(REFUSED):
        with pytest.raises(UserError, match=f"^{re.escape(said)}"):
            checked(experiment, given)
    with caplog.at_level(logging.WARNING):
        checked(experiment, given, sweep=said.startswith(REFUSED))  # other jobs may read it
    assert said in caplog.text
    assert said or "is not read" not in caplog.text


@pytest.mark.parametrize("sweep", [False, True])
@pytest.mark.parametrize("key", ["learner.foo", "replay.foo", "logger.foo"])
def test_a_group_takes_only_its_own_settings(key: str, sweep: bool) -> None:
    with pytest.raises(UserError, match=f"^no setting {key}; there are: "):
        checked("selection", [f"+{key}=1"], sweep=sweep)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_the_groups_that_are_read_are_those_of_the_configuration(experiment: str) -> None:
    register()
    with composer(None) as hydra:
        cfg = hydra.get_sanitized_cfg(hydra.compose_config(experiment, [], RunMode.RUN), "job")
    settings = {setting.name for setting in fields(EXPERIMENTS[experiment])}
    assert {str(key) for key in cfg} == settings | PARTS[experiment]


def test_rules_are_about_settings_that_exist() -> None:
    register()
    configs: dict[str, list[Any]] = {}
    with composer(None) as hydra:
        for name in EXPERIMENTS:
            methods = [m for m in hydra.config_loader.get_group_options("method", config_name=name) if m != SCHEMA]
            chosen = [[], *([f"method={method}"] for method in methods)]
            configs[name] = [hydra.compose_config(name, overrides, RunMode.RUN) for overrides in chosen]
    everywhere = [cfg for own in configs.values() for cfg in own]
    for rule, known in [(rule, everywhere) for rule in _ANY] + [(r, configs[n]) for n in _RULES for r in _RULES[n]]:
        for key in (*rule.settings, *re.findall(r"set ([\w.]+)=", rule.why)):
            parent, _, leaf = key.rpartition(".")
            nodes = [OmegaConf.select(cfg, parent) if parent else cfg for cfg in known]
            assert any(node is not None and leaf in node for node in nodes), key


def documented() -> list[tuple[str, list[str]]]:
    """Every command of README, docs, experiments and presets that is a single run and needs nobody's own files."""
    files = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "experiments").glob("*.py")]
    text = "\n".join(file.read_text(encoding="utf-8") for file in [*files, *(ROOT / "conf").rglob("*.yaml")])
    found = set()
    for line in re.findall(rf"metagradient ((?:{'|'.join(EXPERIMENTS)}) [^`\n#]*)", text):
        try:
            experiment, *overrides = shlex.split(line)
        except ValueError:
            continue
        plain = all(re.fullmatch(r"[+~]{0,2}[\w.]+(=.*)?", item) and "..." not in item for item in overrides)
        if plain and not any(item.startswith(("+grid", "model._target_", "learner._target_")) for item in overrides):
            found.add((experiment, tuple(overrides)))
    return [(experiment, list(overrides)) for experiment, overrides in sorted(found)]


@pytest.mark.parametrize(("experiment", "overrides"), documented(), ids=[f"{e} {' '.join(o)}" for e, o in documented()])
def test_documented_commands_give_nothing_in_vain(experiment: str, overrides: list[str]) -> None:
    args, _ = parser().parse_known_args(overrides)
    checked(experiment, with_preset(experiment, with_own_model(args.overrides)))

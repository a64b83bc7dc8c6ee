"""Whole commands on what cannot be meant: status 0 or 2, one line that says why, within a minute; never a traceback."""

import math
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from console import run_in
from hydra.types import RunMode
from omegaconf import OmegaConf

from metagradient.cli.help import SCHEMA, composer
from metagradient.errors import UserError
from metagradient.schema import EXPERIMENTS, check_settings, register

ODD = (0, -1, 1e30, math.nan, math.inf, "a", [], None)
SECONDS = 60


def inputs(experiment: str) -> Iterator[list[str]]:
    """Overrides of the quick run of an experiment, and of each of its methods: each number and list x each odd value that
    the schema lets pass, and one that it does not."""
    register()
    found: dict[tuple[str, str], tuple[list[str], dict[str, Any]]] = {}
    with composer(None) as hydra:
        options = hydra.config_loader.get_group_options("method", config_name=experiment)
        methods = [[f"method={option}"] for option in options if option != SCHEMA]
        learners = [] if experiment == "cost" else [["learner=adam"]]
        for overrides in ([], *methods, *learners):
            cfg = hydra.compose_config(experiment, ["debug=fast", *overrides], RunMode.RUN)
            config: Any = OmegaConf.to_container(hydra.get_sanitized_cfg(cfg, "job"), resolve=True)
            for key, target, value in leaves(config):
                if value is not None or not passes(experiment, config, key, math.nan):
                    found.setdefault((key, target), (overrides, config))
    for i, ((key, _), (overrides, config)) in enumerate(found.items()):
        passing = [value for value in ODD if passes(experiment, config, key, value)]
        refused = [value for value in ODD if value not in passing]
        for value in [*passing, *refused[i % max(len(refused), 1) :][:1]]:
            yield [*overrides, f"{key}={'null' if value is None else value}"]


def leaves(node: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str, Any]]:
    """(dotted key, what it belongs to, value) of each number, list and null."""
    for name, value in node.items():
        if isinstance(value, dict) and name not in ("variants", "transfer", "logger"):
            yield from leaves(value, f"{prefix}{name}.")
        elif isinstance(value, list | int | float | None) and not isinstance(value, bool):
            yield f"{prefix}{name}", str(node.get("_target_")), value


def passes(experiment: str, config: dict[str, Any], key: str, value: Any) -> bool:
    changed = OmegaConf.create(config)
    OmegaConf.update(changed, key, value)
    try:
        check_settings(changed, experiment)
    except UserError:
        return False
    return True


@contextmanager
def limit(seconds: int) -> Iterator[None]:
    def late(*_: object) -> None:
        raise TimeoutError(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_no_value_ends_in_somebody_elses_words(experiment: str, tmp_path: Path) -> None:
    counts, wrong = Counter[int](), []
    for overrides in inputs(experiment):
        with limit(SECONDS):
            done = run_in(tmp_path, experiment, "debug=fast", "logger.mode=disabled", *overrides)
        counts[done.status] += 1
        last = done.err.strip().rpartition("\n")[2]
        if done.status not in (0, 2) or "Traceback" in done.err or (done.status and ": " not in last):
            wrong.append(f"{' '.join(overrides)} -> {done.status} {last}")
    print(f"{experiment}: {dict(counts)}")
    assert wrong == []

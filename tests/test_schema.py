"""Every setting of every experiment has a type, and every number a range that its default is in."""

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from metagradient.errors import UserError
from metagradient.schema import EXPERIMENTS, check

CONF = Path(__file__).parents[1] / "conf"


def settings(experiment: str) -> dict[str, Any]:
    """What conf/<experiment>.yaml sets itself."""
    written = OmegaConf.load(CONF / f"{experiment}.yaml")
    found = OmegaConf.to_container(written, resolve=False)
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items() if key not in ("defaults", "hydra")}


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_the_schema_names_the_settings_of_the_file(experiment: str) -> None:
    assert [setting.name for setting in fields(EXPERIMENTS[experiment])] == list(settings(experiment))
    check(settings(experiment), EXPERIMENTS[experiment])


def numbers(experiment: str) -> list[str]:
    return [s.name for s in fields(EXPERIMENTS[experiment]) if "range" in s.metadata]


@pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), "a", 1e300, True, {}])
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_what_is_out_of_range_is_one_line_that_names_it(experiment: str, value: object) -> None:
    for name in numbers(experiment):
        setting = next(s for s in fields(EXPERIMENTS[experiment]) if s.name == name)
        allowed = setting.metadata["range"]
        if allowed.holds(value):
            continue
        given = [value] if allowed.each else value
        with pytest.raises(UserError) as refusal:
            check(settings(experiment) | {name: given}, EXPERIMENTS[experiment])
        text = str(refusal.value)
        assert text.startswith(name)
        assert f"set {name}=" in text
        assert "\n" not in text


def test_nested_settings_are_checked_too() -> None:
    for key, wrong in (("race", {"examples": 0}), ("smoothness", {"directions": 0, "h": 0.1})):
        with pytest.raises(UserError, match=re.escape(f"{key}.{next(iter(wrong))} must be an integer >= 1, not '0'")):
            check(settings("attribution") | {key: wrong}, EXPERIMENTS["attribution"])
    with pytest.raises(UserError, match=re.escape("stream.judge_every must be")):
        check(settings("unlearning") | {"stream": {"requests": 2, "judge_every": 0}}, EXPERIMENTS["unlearning"])


def test_null_and_words_stand_where_they_may() -> None:
    check(settings("attribution") | {"damping": "run", "workers": None, "smoothness": None}, EXPERIMENTS["attribution"])
    with pytest.raises(UserError, match="damping must be a number > 0, or run, or null, not '0'"):
        check(settings("attribution") | {"damping": 0}, EXPERIMENTS["attribution"])

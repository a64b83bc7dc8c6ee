"""Every setting of every experiment has a type, and every number a range that its default is in."""

import logging
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from metagradient.errors import UserError
from metagradient.schema import EXPERIMENTS, check_settings
from metagradient.schema.ranges import Range

CONF = Path(__file__).parents[2] / "conf"


def settings(experiment: str) -> dict[str, Any]:
    """What conf/<experiment>.yaml sets itself."""
    written = OmegaConf.load(CONF / f"{experiment}.yaml")
    found = OmegaConf.to_container(written, resolve=False)
    assert isinstance(found, dict)
    found.pop("peers", None)  # which take their numbers from the method, a group
    return {str(key): value for key, value in found.items() if key not in ("defaults", "hydra")}


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_the_schema_names_the_settings_of_the_file(experiment: str) -> None:
    written = OmegaConf.load(CONF / f"{experiment}.yaml")
    known = [key for key in written if key not in ("defaults", "hydra")]
    assert [setting.name for setting in fields(EXPERIMENTS[experiment])] == known
    check_settings(settings(experiment), experiment)


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    # experiment, what was given, what is said
    ("selection", {"retrainings": 0}, "retrainings must be an integer >= 1, not '0': set retrainings=3"),
    ("selection", {"seed": 2**63}, "seed must be an integer >= 0 and < 2^63, not '9223372036854775808': set seed=0"),
    ("selection", {"held_out": 1.0}, "held_out must be a number > 0 and < 1, not '1': set held_out=0.25"),
    ("selection", {"filter_fractions": ["a"]}, "filter_fractions: each of them must be a number >= 0 and < 1, not 'a'"),
    ("selection", {"filter_fractions": [0.1, 0.1]}, "filter_fractions has '0.1' twice, and each is done once: set"),
    ("selection", {"refit": 3}, "refit must be true or false, not '3': set refit=false"),
    ("selection", {"smoothness": {"directions": 1}}, "smoothness.h is missing: set smoothness.h=0.05"),
    (
        "selection",
        {"smoothness": {"directions": 1, "h": 0.1, "i": 1}},
        "no setting smoothness.i; there are: directions",
    ),
    (
        "selection",
        {"smoothness": {"directions": 0, "h": 0.1}},
        "smoothness.directions must be an integer >= 1, not '0'",
    ),
    ("selection", {"smoothness": 3}, "smoothness must be settings in braces, or null, not '3': set smoothness=null"),
    ("attribution", {"race": None}, "race must be settings in braces, not 'null': set race={methods: [], ...}"),
    ("attribution", {"methods": []}, "methods must not be empty: set methods=[exact]"),
    (
        "attribution",
        {"methods": ["exact", "exact"]},
        "methods has 'exact' twice, and each is done once: set methods=[exact]",
    ),
    ("attribution", {"dampings": []}, "dampings must not be empty: set dampings=[1]"),
    (
        "attribution",
        {"damping": 0},
        "damping must be a number > 0 and <= 1e+12, or run, or null, not '0': set damping=1",
    ),
    ("attribution", {"damping": float("inf")}, "damping must be a number > 0 and <= 1e+12, or run, or null, not 'inf'"),
    ("attribution", {"queries_per_replay": 0}, "queries_per_replay must be an integer >= 1, or null, not '0'"),
    ("attribution", {"race": {"methods": [], "examples": 0, "repeats": 5}}, "race.examples must be an integer >= 1"),
    ("poisoning", {"shares": []}, "shares must not be empty: set shares=[0.03]"),
    ("schedule", {"grid": {"low": 0.1, "high": 1, "peaks": 2, "warmups": []}}, "grid.warmups must not be empty"),
    (
        "unlearning",
        {"stream": {"requests": 1.5, "judge_every": 1}},
        "stream.requests must be an integer >= 0, not '1.5'",
    ),
    ("unlearning", {"klom": {"models": 1, "examples": 9}}, "klom.models must be an integer >= 2, or 0, not '1'"),
    ("cost", {"trainer": {"threads": -1}}, "trainer.threads must be an integer >= 1 and <= 1024, or null, not '-1'"),
    (
        "schedule",
        {"learner": {"optimizer": {"_target_": "metagradient.training.SGD", "momentum": 1.5}}},
        "learner.optimizer.momentum must be a number >= 0 and < 1, not '1.5': set learner.optimizer.momentum=0.9",
    ),
    (
        "schedule",
        {"model": {"_target_": "metagradient.models.mlp", "hidden": [128, -1]}},
        "model.hidden: each of them must be an integer >= 1 and <= 1000000, not '-1': set model.hidden=[128]",
    ),
    (
        "smoothness",
        {"learner": {"batch_size": 5}, "variants": {"none": {"learner.batch_size": 0}}},
        "variants.none: learner.batch_size must be an integer >= 1, or null, not '0': set learner.batch_size=100",
    ),
]


@pytest.mark.parametrize(
    ("experiment", "given", "said"), REFUSED, ids=[f"{name} {given}" for name, given, _ in REFUSED]
)
def test_what_cannot_be_is_one_line_that_names_a_value_which_can(
    experiment: str, given: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(said)}") as refusal:
        check_settings(settings(experiment) | given, experiment)
    assert "\n" not in str(refusal.value)


def test_null_words_and_shares_stand_where_they_may() -> None:
    check_settings(settings("attribution") | {"damping": "run", "workers": None, "smoothness": None}, "attribution")
    check_settings(settings("unlearning") | {"klom": {"models": 0, "examples": 1}}, "unlearning")
    rows = Range(whole=True, least=1, share=True)
    assert [rows.holds(value) for value in (0.2, 1, 30, 0.0, 1.0, 1.5, 0, -0.1, float("nan"), True, None)] == [
        *[True] * 3,
        *[False] * 8,
    ]


def test_what_is_allowed_but_hardly_meant_is_told(caplog: pytest.LogCaptureFixture) -> None:
    given = {"held_out": 0.999, "learner": {"learning_rate": 0.0}}
    with caplog.at_level(logging.WARNING):
        check_settings(settings("selection") | given, "selection")
    assert "learner.learning_rate=0: nothing is learned" in caplog.text
    assert "held_out=0.999 leaves 0.001 of the validation rows" in caplog.text

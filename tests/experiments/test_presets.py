"""Every preset composes, and every setting in it takes effect."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from metagradient.schema import register

CONF = Path(__file__).parents[2] / "conf"
METHODS = [path.stem for path in sorted((CONF / "selection" / "method").glob("*.yaml"))]
FOLDERS = {"smoothness": "metasmoothness"}  # the others are named as their experiment
PRESETS = [
    (
        next((e for e, folder in FOLDERS.items() if folder == path.parent.parent.name), path.parent.parent.name),
        path.stem,
    )
    for path in sorted(CONF.glob("*/experiment/*.yaml"))
]


def composed(experiment: str, *overrides: str) -> DictConfig:
    register()
    with initialize_config_module("metagradient.conf", version_base="1.3"):
        return compose(experiment, list(overrides))


@pytest.mark.parametrize(("experiment", "preset"), PRESETS)
def test_each_setting_of_a_preset_takes_effect(experiment: str, preset: str) -> None:
    cfg = composed(experiment, f"experiment={preset}")
    written = OmegaConf.load(CONF / FOLDERS.get(experiment, experiment) / "experiment" / f"{preset}.yaml")
    assert isinstance(written, DictConfig)
    settings = {key: value for key, value in written.items() if key != "defaults"}
    assert settings, "a preset that sets nothing"
    merged = OmegaConf.merge(cfg, settings)
    assert OmegaConf.to_yaml(merged, resolve=False) == OmegaConf.to_yaml(cfg, resolve=False)


@pytest.mark.parametrize("experiment", ["selection", "cost"])
def test_the_command_line_beats_the_preset(experiment: str) -> None:
    cfg = composed(
        experiment, "seed=7", "trainer.threads=3", "replay.memory=2GiB" if experiment == "selection" else "repeats=9"
    )
    assert cfg.seed == 7
    assert cfg.trainer.threads == 3


@pytest.mark.parametrize("experiment", ["selection", "poisoning"])
def test_a_descent_can_leave_out_its_smoothness_reading(experiment: str) -> None:
    assert composed(experiment, "smoothness=null").smoothness is None


@pytest.mark.parametrize("method", METHODS)
def test_each_method_composes(method: str) -> None:
    assert composed("selection", f"method={method}").method._target_.startswith("metagradient.descent.")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("preset", [preset for experiment, preset in PRESETS if experiment == "selection"])
def test_every_preset_takes_every_method(preset: str, method: str) -> None:
    instantiate(composed("selection", f"experiment={preset}", f"method={method}").method, _convert_="all")

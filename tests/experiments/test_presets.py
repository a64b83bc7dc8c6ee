"""Every preset composes, and every setting in it takes effect."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from metagradient.schema import register
from metagradient.unlearning import Newton

CONF = Path(__file__).parents[2] / "conf"
PRESETS_OF = CONF / "presets"
METHODS = [path.stem for path in sorted((PRESETS_OF / "selection" / "method").glob("*.yaml"))]
PRESETS = [(path.parent.parent.name, path.stem) for path in sorted(PRESETS_OF.glob("*/experiment/*.yaml"))]
assert {experiment for experiment, _ in PRESETS} == {path.stem for path in CONF.glob("*.yaml")}, (
    "an experiment without presets"
)


def composed(experiment: str, *overrides: str, return_hydra_config: bool = False) -> DictConfig:
    register()
    with initialize_config_module("metagradient.conf", version_base="1.3"):
        return compose(experiment, list(overrides), return_hydra_config=return_hydra_config)


@pytest.mark.parametrize(("experiment", "preset"), PRESETS)
def test_each_setting_of_a_preset_takes_effect(experiment: str, preset: str) -> None:
    cfg = composed(experiment, f"experiment={preset}")
    written = OmegaConf.load(PRESETS_OF / experiment / "experiment" / f"{preset}.yaml")
    assert isinstance(written, DictConfig)
    settings = {key: value for key, value in written.items() if key != "defaults"}
    chosen = [entry for entry in written.get("defaults", []) if not isinstance(entry, str)]
    assert settings or chosen, "a preset that sets nothing"
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


def test_every_preset_takes_every_method() -> None:
    alone = {method: composed("selection", "~experiment", f"method={method}").method for method in METHODS}
    for preset in [preset for experiment, preset in PRESETS if experiment == "selection"]:
        written = OmegaConf.load(PRESETS_OF / "selection" / "experiment" / f"{preset}.yaml")
        made = {m: OmegaConf.merge(options, written.get("method", {})) for m, options in alone.items()}
        assert composed("selection", f"experiment={preset}", f"method={METHODS[-1]}").method == made[METHODS[-1]]
        for options in made.values():
            assert instantiate(options, _convert_="all").metasteps > 0


OWN = {"mnist_logistic_fast": (12, 3), "mnist_mlp": (2, 50), "mnist_readme": (5, 20), "rcv1_logistic": (10, 10)}


@pytest.mark.parametrize("preset", [preset for experiment, preset in PRESETS if experiment == "unlearning"])
def test_a_preset_of_unlearning_has_its_own_method_and_takes_others(preset: str) -> None:
    own = instantiate(composed("unlearning", f"experiment={preset}").method, _convert_="all")
    assert (own.period, own.burn_in) == OWN.get(preset, (5, 10))
    other = composed("unlearning", f"experiment={preset}", "method=newton").method
    assert instantiate(other, _convert_="all") == Newton()

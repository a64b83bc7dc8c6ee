"""Every preset composes, and every setting in it takes effect."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from metagradient.schema import register
from metagradient.studies import routines, setup
from metagradient.studies.trainer import make_trainer
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


OWN = {
    "higgs_logistic": (3, 300),
    "mnist_logistic_fast": (12, 3),
    "mnist_mlp": (2, 50),
    "mnist_readme": (5, 20),
    "rcv1_logistic": (10, 10),
}


@pytest.mark.parametrize("preset", [preset for experiment, preset in PRESETS if experiment == "unlearning"])
def test_a_preset_of_unlearning_has_its_own_method_and_takes_others(preset: str) -> None:
    own = instantiate(composed("unlearning", f"experiment={preset}").method, _convert_="all")
    assert (own.period, own.burn_in) == OWN.get(preset, (5, 10))
    other = composed("unlearning", f"experiment={preset}", "method=newton").method
    assert instantiate(other, _convert_="all") == Newton()


class Halving:
    """A schedule of somebody's own."""

    def __init__(self, rate: float, steps: int, floor: float = 0.0) -> None:
        self.rate, self.steps, self.floor = rate, steps, floor

    def __call__(self, t: int) -> float:
        return max(self.floor, self.rate * 0.5**t)


@pytest.mark.parametrize("name", list(routines.SCHEDULES))
def test_each_schedule_by_name_is_one_of_ours(name: str) -> None:
    cfg = composed("selection", "~experiment", f"learner.schedule={name}", "learner.learning_rate=0.2")
    rates = [rate_of(cfg, 40)(t) for t in range(40)]
    assert max(rates) == pytest.approx(0.2)
    assert (len(set(rates)) == 1) == (name == "constant")


def test_a_schedule_of_ones_own_by_its_target() -> None:
    cfg = composed("selection", "~experiment", f"learner.schedule={{_target_:{__name__}.Halving,floor:0.02}}")
    schedule = rate_of(cfg, 7)
    assert isinstance(schedule, Halving)
    assert (schedule.rate, schedule.steps, schedule(0), schedule(9)) == (0.05, 7, 0.05, 0.02)


def rate_of(cfg: DictConfig, steps: int) -> object:
    splits = setup.build(cfg.data)
    return routines.classifier_routine(cfg, splits).schedule(steps)


def test_any_argument_of_the_trainer_can_be_given() -> None:
    cfg = composed("selection", "~experiment", "+trainer.detect_anomaly=true", "+trainer.num_sanity_val_steps=0")
    assert make_trainer(cfg)._detect_anomaly is True


def test_no_group_has_the_name_of_a_setting() -> None:
    """A group `smoothness` would shadow the setting of that name: `selection smoothness=null` would leave out nothing."""
    for experiment in {experiment for experiment, _ in PRESETS}:
        cfg = composed(experiment, return_hydra_config=True)
        chosen = {group for group in cfg.hydra.runtime.choices if not str(group).startswith("hydra")}
        groups = {path.name for root in (CONF, PRESETS_OF / experiment) for path in root.iterdir() if path.is_dir()}
        settings = {str(key) for key in cfg if key != "hydra"} - chosen
        settings -= {"grid"}  # of schedule: never null or replaced as a whole; the group is only ever added, +grid=NAME
        assert not groups & settings, experiment

"""Grids and debug settings compose, take effect, and yield as many jobs as their first line says."""

import math
import re
from pathlib import Path

import pytest
from console import run_in
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from test_presets import composed

from metagradient.cli.command import experiments
from metagradient.cli.help import help_text, parser
from metagradient.cli.jobs import place
from metagradient.reporting.estimate import Estimate
from metagradient.schema import register

CONF = Path(__file__).parents[2] / "conf"
ROOTS = {name: OmegaConf.load(CONF / f"{name}.yaml") for name in experiments() if (CONF / f"{name}.yaml").exists()}
GRIDS = [(name, path) for name in ROOTS for path in sorted((CONF / "presets" / name / "grid").glob("*.yaml"))]
FAST = [(name, path) for name in ROOTS for path in sorted((CONF / "presets" / name / "debug").glob("*.yaml"))]
assert len(FAST) == len(ROOTS) == 7, "every experiment has debug=fast"


def axes(path: Path) -> list[list[str]]:
    """The overrides of a grid, one list for each setting that it varies."""
    params = OmegaConf.load(path).hydra.sweeper.params
    given = OverridesParser.create().parse_overrides([f"{key}={value}" for key, value in params.items()])
    return [[job[0] for batch in BasicSweeper.split_arguments([axis], None) for job in batch] for axis in given]


@pytest.mark.parametrize(("experiment", "path"), GRIDS, ids=[f"{name} {path.stem}" for name, path in GRIDS])
def test_every_value_of_a_grid_composes_and_makes_a_difference(experiment: str, path: Path) -> None:
    varied = axes(path)
    said = re.search(r": (\d+) jobs", path.read_text())
    assert said is not None
    assert math.prod(map(len, varied)) == int(said[1])
    first = [axis[0] for axis in varied]
    kept = [OmegaConf.to_yaml(composed(experiment, f"+grid={path.stem}", *first))]
    for i, axis in enumerate(varied):
        for value in axis[1:]:
            kept.append(
                OmegaConf.to_yaml(composed(experiment, f"+grid={path.stem}", *first[:i], value, *first[i + 1 :]))
            )
    assert len(set(kept)) == len(kept)


def test_a_grid_needs_no_flag_to_be_a_sweep() -> None:
    register()
    placed = place("selection", ["+grid=noise", "logger.mode=disabled"])
    args = parser().parse_args(placed.arguments)
    assert args.multirun
    assert args.overrides[:2] == ["+grid=noise", "logger.mode=disabled"]
    assert placed.sweep is not None


@pytest.mark.parametrize(("experiment", "path"), FAST, ids=[name for name, _ in FAST])
def test_debug_settings_beat_the_preset(experiment: str, path: Path) -> None:
    cfg = composed(experiment, "debug=fast")
    written = OmegaConf.load(path)
    assert isinstance(written, DictConfig)
    assert OmegaConf.to_yaml(OmegaConf.merge(cfg, written)) == OmegaConf.to_yaml(cfg)


@pytest.mark.parametrize("experiment", ROOTS)
def test_the_help_names_ten_overrides_that_compose(experiment: str) -> None:
    register()
    text = help_text(experiment, "?", [])
    block = text.partition("most used:\n")[2].partition("\n\n")[0]
    lines = [re.split(r"  +", line.strip()) for line in block.splitlines()]
    assert len(lines) == 10
    groups = composed(experiment, return_hydra_config=True).hydra.runtime.choices
    settings = []  # one composition for all that merely set something, one for each choice of a group
    for example, *told in lines:
        assert told, f"{example} is not explained"
        overrides = [item.strip("'") for item in example.split(" ")] if "'" not in example else [example.strip("'")]
        if any(item.partition("=")[0] in groups for item in overrides):
            composed(experiment, *overrides)
        else:
            settings += overrides
    composed(experiment, *settings)


@pytest.mark.parametrize("experiment", ROOTS)
def test_every_experiment_can_be_resumed_and_tried(experiment: str) -> None:
    assert "resume" in composed(experiment)
    assert experiment in dict(FAST)


def test_what_is_typed_beside_a_grid_beats_it() -> None:
    register()
    placed = place("selection", ["+grid=noise", "seed=7"])
    assert "seed=7" in placed.arguments
    assert "data.noise.fraction=0.0,0.2,0.4,0.6,0.8" in placed.arguments
    assert not [item for item in placed.arguments if item.startswith("seed=") and item != "seed=7"]
    assert "hydra.sweeper.params=null" in placed.arguments
    assert "-m" in placed.arguments
    assert place("selection", ["+grid=noise", "seed=7,8"]).arguments.count("seed=7,8") == 1


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize(("experiment", "path"), GRIDS, ids=[f"{name} {path.stem}" for name, path in GRIDS])
def test_every_grid_runs_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, experiment: str, path: Path
) -> None:
    """Its first and its last job, with what makes runs short; the stages are those that were planned."""
    monkeypatch.setenv("METAGRADIENT_CACHE", str(tmp_path / "cache"))
    entered: list[str] = []
    planned: list[str] = []
    enter = Estimate.enter

    def spy(self: Estimate, key: str, share: float, now: float) -> None:
        planned[:] = [stage.key for stage in self.stages if stage.work]
        entered.append(key)
        enter(self, key, share, now)

    monkeypatch.setattr(Estimate, "enter", spy)
    varied = [[value for value in axis if "mnist" not in value] for axis in axes(path)]  # what needs no download
    for job in ([axis[0] for axis in varied], [axis[-1] for axis in varied]):
        entered.clear()
        done = run_in(tmp_path, experiment, f"+grid={path.stem}", "debug=fast", *job, "logger.mode=disabled")
        assert done.status == 0, done.err
        assert "1 jobs, 1 finished" in done.out
        assert set(planned) <= set(entered)

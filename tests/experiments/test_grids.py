"""Grids and debug settings compose, take effect, and yield as many jobs as their first line says."""

import re
from pathlib import Path

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from test_presets import composed

from metagradient.cli import experiments
from metagradient.cli_help import help_text, parser
from metagradient.cli_jobs import place
from metagradient.schema import register

CONF = Path(__file__).parents[2] / "conf"
ROOTS = {name: OmegaConf.load(CONF / f"{name}.yaml") for name in experiments() if (CONF / f"{name}.yaml").exists()}
FOLDERS = {name: str(root.hydra.searchpath[0]).rpartition(".")[2] for name, root in ROOTS.items()}
GRIDS = [(name, path) for name, folder in FOLDERS.items() for path in sorted((CONF / folder / "grid").glob("*.yaml"))]
FAST = [(name, path) for name, folder in FOLDERS.items() for path in sorted((CONF / folder / "debug").glob("*.yaml"))]


def jobs(path: Path) -> list[list[str]]:
    """The overrides of each job of a grid."""
    params = OmegaConf.load(path).hydra.sweeper.params
    given = OverridesParser.create().parse_overrides([f"{key}={value}" for key, value in params.items()])
    return [list(job) for batch in BasicSweeper.split_arguments(given, None) for job in batch]


@pytest.mark.parametrize(("experiment", "path"), GRIDS, ids=[f"{name} {path.stem}" for name, path in GRIDS])
def test_every_job_of_a_grid_composes_and_differs(experiment: str, path: Path) -> None:
    made = jobs(path)
    said = re.search(r": (\d+) jobs", path.read_text())
    assert said is not None
    assert len(made) == int(said[1])
    kept = [composed(experiment, f"+grid={path.stem}", *job) for job in made]
    assert len({OmegaConf.to_yaml(cfg) for cfg in kept}) == len(made)


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
    for example, *told in lines:
        assert told, f"{example} is not explained"
        overrides = [item.strip("'") for item in example.split(" ")] if "'" not in example else [example.strip("'")]
        try:
            composed(experiment, *overrides)
        except HydraException as error:
            pytest.fail(f"{example}: {error}")


@pytest.mark.parametrize("experiment", ROOTS)
def test_every_experiment_can_be_resumed_and_tried(experiment: str) -> None:
    assert "resume" in composed(experiment)
    assert experiment in dict(FAST)

"""SIGKILL at random moments, some of them within a save: what is resumed ends as if nothing had happened.

The resumed run must say how much it took over, as much as a look at what was saved expects: repeating everything would
give the same bits.
"""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from killing import Kill, Whole, killed, moments, resumed, whole
from PIL import Image
from runs import RUNS
from safetensors import safe_open

from metagradient.descent.state import DescentState
from metagradient.files import read_sealed


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Whole]:
    """Filled as it is needed."""
    return {}


def judged(directory: Path) -> list[dict[str, float]]:
    """The requests of an unlearning run that were answered and timed: saved, or in the table of a finished run."""
    saved, table = directory / "judged.json", directory / "artifacts" / "requests.csv"
    if saved.exists():
        return json.loads(json.loads(saved.read_text())["value"])
    if not table.exists():
        return []
    with table.open(newline="") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def taken_over(experiment: str, directory: Path) -> list[str]:
    """What the log of a run that goes on in `directory` must say."""
    if experiment in ("unlearning", "smoothness", "cost"):
        return []
    if experiment == "attribution":
        said = []
        for note in directory.glob("artifacts/*.progress"):
            blocks = read_sealed(note)["blocks"]
            complete = blocks[-1][0] == (8 if "exact" in note.name or note.name.startswith("scores.") else 300)
            said += [] if complete else [f"going on after {blocks[-1][0]} of "]
        for file in directory.parents[2].glob("cache/retrainings/*.safetensors"):
            with safe_open(file, framework="pt") as kept:
                said.append(f"{len(kept.get_tensor('losses'))} of 15 retrainings found in")
        return said
    saves = {path.parent for path in directory.rglob("descent.*") if path.suffix in (".safetensors", ".before")}
    done = [DescentState.load(folder / "descent.safetensors").metastep for folder in saves]
    return [f"going on after metastep {metastep - 1} of" for metastep in done]


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("moment", range(4), ids=["early", "late", "before a save's rename", "behind a save's rename"])
@pytest.mark.parametrize("experiment", RUNS)
def test_a_killed_run_ends_in_the_same_bits(
    tmp_path: Path, uninterrupted: dict[str, Whole], experiment: str, moment: int
) -> None:
    if experiment not in uninterrupted:
        uninterrupted[experiment] = whole(tmp_path / "whole", experiment, RUNS[experiment])
    place, known = tmp_path / "killed", moments(experiment, uninterrupted[experiment])
    if moment >= len(known):
        pytest.skip(f"{experiment} saves nothing on its way")
    directory = killed(place, experiment, RUNS[experiment], known[moment])
    said, timed = taken_over(experiment, directory), judged(directory)
    assert said or timed or moment == 0 or len(known) == 2  # an early kill may come before the first save
    left, log = resumed(place, experiment, RUNS[experiment])
    for line in said:
        assert line in log
    assert ("going on after" in log or "retrainings found" in log) == bool(said)
    assert judged(directory)[: len(timed)] == timed  # seconds included: no second measurement would give them
    assert left == uninterrupted[experiment].left


@pytest.mark.slow
def test_a_selection_killed_between_the_two_renames_of_a_save(tmp_path: Path) -> None:
    """The cheapest of them all: the newest state is away, and the one before it takes over."""
    small = [*RUNS["selection"], "method.metasteps=3", "refit=false", "learner.steps=10"]
    expected = whole(tmp_path / "whole", "selection", small)
    directory = killed(tmp_path / "killed", "selection", small, Kill(save=1, behind=True))
    assert (directory / "descent.before").exists()
    assert not (directory / "descent.safetensors").exists()
    left, log = resumed(tmp_path / "killed", "selection", small)
    assert "going on after metastep 0 of" in log
    assert left == expected.left


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("moment", [1, 3], ids=["late", "behind a save's rename"])
@pytest.mark.parametrize("experiment", ["selection", "attribution"])
def test_a_killed_run_over_images_that_a_process_reads_ahead(tmp_path: Path, experiment: str, moment: int) -> None:
    rng = np.random.default_rng(0)
    for i in range(120):
        file = tmp_path / "pictures" / f"class{i % 2}" / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 128 + 64 * (i % 2), (9, 9), dtype=np.uint8)).save(file)
    own = [setting for setting in RUNS[experiment] if not setting.startswith("data.")]
    read = ["data=images", f"data.path={tmp_path / 'pictures'}", "data.size=8", "data.workers=1", "data.validation=0.3"]
    own = [*read, *own, "model=linear", "learner.batch_size=20"]
    expected = whole(tmp_path / "whole", experiment, own)
    killed(tmp_path / "killed", experiment, own, moments(experiment, expected)[moment])
    left, _ = resumed(tmp_path / "killed", experiment, own)
    assert left == expected.left

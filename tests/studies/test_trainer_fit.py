"""Experiments' replays: each saves its position in a folder of its own in the run directory, and goes on from it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

import metagradient as mg
from metagradient.attribution.scoring.exact import ExactScores
from metagradient.studies.trainer import TrainerFit

DATA = {"x": torch.randn(10, 4, generator=torch.Generator().manual_seed(0)), "y": torch.arange(10) % 3}
PLAN = mg.epoch_plan(10, 4, epochs=3, seed=0)


class Stop(Exception):
    """What ends a replay in these tests."""


class Reports:
    """A `Progress` that stops at its so many-th report."""

    def __init__(self, stop: int | None = None) -> None:
        self.stop, self.count = stop, 0

    def callback(self) -> Callable[[str, int, int], None]:
        def report(what: str, done: int, total: int) -> None:
            self.count += 1
            if self.count == self.stop:
                raise Stop

        return report


def cfg(save_every: float | None) -> DictConfig:
    replay = {"checkpoints": "all", "memory": None, "storage": "memory", "folder": None, "check": None}
    trainer = {"_target_": "lightning.Trainer", "accelerator": "cpu", "precision": "32-true"}
    return OmegaConf.create({"replay": replay | {"save_every": save_every}, "trainer": trainer})


def replayed(folder: Path, seed: int, reports: Reports, save_every: float | None = 1e-9) -> torch.Tensor:
    torch.manual_seed(seed)
    learner = mg.Classifier(nn.Linear(4, 3), mg.SGD(0.9), 0.1)
    fit = TrainerFit(cfg(save_every), reports, folder)  # type: ignore[arg-type]
    return fit(learner, mg.Batches(DATA, PLAN), [mg.DataWeights(torch.ones(10))], mg.mean_loss(DATA))["weights"]


def test_replays_of_one_run_do_not_meet(tmp_path: Path) -> None:
    """The second of two was cut short; a run that goes on asks for the first one again."""
    truth, whole = [replayed(tmp_path, seed, Reports(), None) for seed in (1, 2)], Reports()
    replayed(tmp_path, 2, whole, None)
    with pytest.raises(Stop):
        replayed(tmp_path, 2, Reports(whole.count - 2))
    (saved,) = tmp_path.iterdir()
    assert saved.name.startswith("replay-")
    assert torch.equal(replayed(tmp_path, 1, Reports()), truth[0])
    assert saved.exists()
    rest = Reports()
    assert torch.equal(replayed(tmp_path, 2, rest), truth[1])
    assert rest.count <= 4
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_saved_unasked(tmp_path: Path) -> None:
    with pytest.raises(Stop):
        replayed(tmp_path, 1, Reports(12), None)
    assert list(tmp_path.iterdir()) == []


def test_exact_scores_go_on_in_the_middle_of_a_replay(tmp_path: Path) -> None:
    torch.manual_seed(0)
    learner = mg.Classifier(nn.Linear(4, 3), mg.SGD(0.9), 0.1)

    def scores(reports: Reports, save_to: Path | None) -> torch.Tensor:
        exact = ExactScores(
            learner,
            mg.Batches(DATA, PLAN),
            checkpoints="all",
            save_to=save_to,
            save_every=0,
            at_once=5,
            progress=reports.callback(),
        )
        return torch.cat([block for block, _ in exact.columns(DATA)], dim=1)

    truth, whole = scores(reports := Reports(), None), reports.count
    with pytest.raises(Stop):
        scores(Reports(whole - 4), tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    assert torch.equal(scores(rest := Reports(), tmp_path), truth)
    assert rest.count < whole
    assert list(tmp_path.iterdir()) == []

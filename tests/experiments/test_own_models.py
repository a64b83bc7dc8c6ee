"""Somebody's own package on the command line: a model, a LightningModule, a configuration, a checkpoint."""

import csv
import json
from pathlib import Path

import pytest
import torch
from console import Done, run_in
from safetensors.torch import save_file

import metagradient as mg
from metagradient.errors import UserError

QUICK = ("debug=fast", "logger.mode=disabled", "trainer.threads=1")
PACKAGE = '''
import lightning, torch
import torch.nn.functional as F
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

import metagradient as mg


BUILT = []


class Net(nn.Module):
    def __init__(self, input_shape, classes, width=12):
        super().__init__()
        torch.manual_seed(0)
        BUILT.append(("Net", width))
        size = torch.Size(input_shape).numel()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(size, width), nn.GELU(), nn.Linear(width, classes))

    def forward(self, x):
        return self.body(x)


class Lit(lightning.LightningModule):
    def __init__(self, classes, width=12):
        super().__init__()
        BUILT.append(("Lit", width))
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.GELU(), nn.Linear(width, classes))

    def forward(self, x):
        return self.body(x)

    def training_step(self, batch, batch_idx):
        raise AssertionError

    def losses(self, batch):
        return F.cross_entropy(self(batch.x), batch.y, reduction="none")

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
        scheduler = OneCycleLR(optimizer, 0.03, total_steps=int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class Own(mg.Classifier):
    """A Learner with another loss."""

    def losses(self, batch):
        BUILT.append("losses")
        return F.cross_entropy(self(batch.x), batch.y, reduction="none", label_smoothing=0.1)


def number():
    return 3
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's project, which is the current folder of a run."""
    (tmp_path / "theirs.py").write_text(PACKAGE)
    monkeypatch.delitem(__import__("sys").modules, "theirs", raising=False)
    monkeypatch.syspath_prepend(tmp_path)  # another test's folder may be there already
    return tmp_path


def metrics(folder: Path, experiment: str) -> dict[str, float]:
    (path,) = folder.glob(f"outputs/{experiment}/*/metrics.json")
    return json.loads(path.read_text())


def done(run: Done) -> None:
    assert run.status == 0, run.err


@pytest.mark.parametrize(
    ("overrides", "built"),
    [
        (("model._target_=theirs.Net", "model.width=10"), {("Net", 10)}),
        (("learner._target_=theirs.Lit", "+learner.arguments.width=10"), {("Lit", 10)}),
        (("learner._target_=theirs.Own", "model._target_=theirs.Net"), {("Net", 12), "losses"}),
    ],
)
def test_selection_trains_somebody_elses_model(folder: Path, overrides: tuple[str, ...], built: set[object]) -> None:
    import theirs  # type: ignore[import-not-found]

    theirs.BUILT.clear()
    done(run_in(folder, "selection", *QUICK, *overrides))
    assert set(theirs.BUILT) == built  # theirs and no other, at their width
    found = metrics(folder, "selection")
    assert 0 < found["result/test_accuracy"] <= 1
    (rows,) = folder.glob("outputs/selection/*/artifacts/selection.csv")
    assert len(list(csv.DictReader(rows.open()))) > 10
    assert found["cost/training_runs"] > 5  # a descent's


def test_a_schedule_is_found_for_a_lightning_module(folder: Path) -> None:
    done(run_in(folder, "schedule", *QUICK, "learner._target_=theirs.Lit", "schedule_free=false"))
    (file,) = folder.glob("outputs/schedule/*/artifacts/schedule.csv")
    rates = [float(row["learning_rate"]) for row in csv.DictReader(file.open())]
    assert min(rates) > 0
    assert len(set(rates)) > 1


@pytest.mark.slow
def test_a_model_that_exists_is_asked_about_without_training(folder: Path) -> None:
    import theirs  # type: ignore[import-not-found]

    save_file(theirs.Net((8, 8), 10).state_dict(), folder / "trained.safetensors")
    asked = (
        "checkpoint=trained.safetensors",
        "model._target_=theirs.Net",
        "drop=[]",
        "damping=0.1",
        "methods=[dropout:64]",
    )
    switched = ("leave_one_out=null", "brittleness=[]", "race.methods=[]")
    done(run_in(folder, "attribution", *QUICK, *asked, *switched))
    (directory,) = folder.glob("outputs/attribution/*")
    scores = mg.load(directory).tensors("scores.safetensors")["scores"]
    assert bool(scores.isfinite().all())
    assert float(scores.abs().max()) > 0
    page = (directory / "artifacts" / "report.html").read_text()
    assert page.count('"helped"') == scores.shape[1]
    with pytest.raises(UserError, match=r"names theirs\.Net: if you trust it"):
        mg.load(directory).learner()
    learner = mg.load(directory, trust=True).learner()
    assert torch.equal(learner.model.body[1].weight, theirs.Net((8, 8), 10).body[1].weight)
    refused = {
        ("methods=[exact]",): "a model without its training, which exact replay",
        ("methods=[dropout:64:path]",): "dropout:64:path replay",
        ("drop=[0.1]",): r"drop retrains the model",
        ("damping=run",): "give it, damping=0.1",
        ("leave_one_out=3",): "set leave_one_out=null",
        ("checkpoint=nowhere.ckpt",): "nowhere.ckpt does not exist",
        ("model.width=5",): "has shape",
    }
    for overrides, message in refused.items():
        run = run_in(folder, "attribution", *QUICK, *asked, *switched, *overrides)
        assert run.status == 2, run.err
        assert message in run.err
        assert len(run.err.strip().splitlines()) <= 2


def test_runs_start_from_a_checkpoint(folder: Path) -> None:
    """Zero steps of learning change nothing: the accuracy is that of the weights that were given."""
    import theirs  # type: ignore[import-not-found]

    net = theirs.Net((8, 8), 10)
    with torch.no_grad():
        net.body[3].bias.copy_(torch.eye(10)[3] * 100)  # says 3, always
    save_file(net.state_dict(), folder / "three.safetensors")
    still = ("learner.learning_rate=1e-12", "model._target_=theirs.Net", "checkpoint=three.safetensors")
    done(run_in(folder, "selection", *QUICK, *still))
    threes = mg.load(next(folder.glob("outputs/selection/*"))).data().test["y"] == 3
    assert metrics(folder, "selection")["result/test_accuracy_all_data"] == pytest.approx(float(threes.float().mean()))


def test_settings_that_a_lightning_module_does_not_read_are_refused(folder: Path) -> None:
    for override in ("model=resnet9", "model.hidden=[8]", "learner=adam"):
        run = run_in(folder, "selection", *QUICK, "learner._target_=theirs.Lit", override)
        assert run.status == 2
        assert "leave it out" in run.err


@pytest.mark.slow
def test_another_optimizer_takes_the_place_of_the_one_that_is_there(folder: Path) -> None:
    group = "{_target_: metagradient.training.Group, names: '*', optimizer: {_target_: metagradient.training.Lion}, rate: 0.1}"
    done(
        run_in(
            folder,
            "selection",
            *QUICK,
            f"learner.optimizer={{_target_: metagradient.training.Groups, groups: [{group}]}}",
            "learner.clip_norm=1.0",
            "learner.average=0.9",
            "learner.micro_batch=20",
            "learner.label_smoothing=0.1",
        )
    )
    saved = mg.load(next(folder.glob("outputs/selection/*")))
    assert saved.config.learner.optimizer.groups[0].optimizer._target_ == "metagradient.training.Lion"
    assert "momentum" not in saved.config.learner.optimizer


def test_what_is_wrong_with_somebodys_package_is_one_line(folder: Path) -> None:
    cases = {
        "model._target_=theirs.Nett": "theirs.Nett cannot be imported",
        "model._target_=nowhere.Net": "No module named 'nowhere'",
        "model._target_=theirs.number": "gives a int, not a torch.nn.Module",
        "learner._target_=theirs.number": "neither a Learner nor a LightningModule",
    }
    for override, message in cases.items():
        run = run_in(folder, "selection", *QUICK, override)
        assert run.status == 2
        assert message in run.err
    run = run_in(folder, "selection", *QUICK, "model._target_=theirs.Net", "model.widht=3")
    assert "model.widht: theirs.Net takes input_shape, classes, width" in run.err
    run = run_in(folder, "selection", *QUICK, "learner._target_=theirs.Lit", "learner.learning_rate=0.3")
    assert "has a configure_optimizers of its own, which decides it" in run.err


def test_somebodys_own_configuration_stands_alone(folder: Path) -> None:
    conf = folder / "conf" / "model"
    conf.mkdir(parents=True)
    (conf / "mine.yaml").write_text("_target_: theirs.Net\nwidth: 9\n")
    done(run_in(folder, "selection", *QUICK, "--config-dir=conf", "model=mine", "experiment=null"))
    (config,) = folder.glob("outputs/selection/*/config.yaml")
    text = config.read_text()
    assert "width: 9" in text
    assert "fraction: 0.4" not in text  # the default preset's label noise


def test_only_run_directories_are_loaded(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no config\.yaml"):
        mg.load(tmp_path)

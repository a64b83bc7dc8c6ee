"""Somebody's model that cannot be trained here: one line with the reason, status 2, before anything is computed."""

from pathlib import Path

import pytest
from console import run_in

QUICK = ("debug=fast", "logger.mode=disabled", "trainer.threads=1")
PACKAGE = """
import sys

import torch
from torch import nn


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(64, 10)

    def forward(self, x):
        return self.changed(self.linear(x.flatten(1)))


class OneRow(Base):
    def changed(self, logits):
        return logits[:1]


class Tuple(Base):
    def changed(self, logits):
        return (logits,)


class Classes(Base):
    def changed(self, logits):
        return torch.nn.functional.one_hot(logits.argmax(1), 10).float()


class Exits(Base):
    def changed(self, logits):
        sys.exit(0)


class Flat(Base):
    def forward(self, x):
        return self.linear(x)


class Complex(Base):
    def __init__(self):
        super().__init__()
        self.linear.weight = nn.Parameter(torch.zeros(10, 64, dtype=torch.cfloat))
        self.linear.bias = None


class Meta(Base):
    def __init__(self):
        super().__init__()
        self.linear.to("meta")


class NotANumber(Base):
    def __init__(self):
        super().__init__()
        self.linear.weight.data[3, 5] = torch.nan
"""
BROKEN = {
    "OneRow": "the model gives [1, 10] for 100 rows of inputs",
    "Tuple": "the model gives a tuple: let its forward return the tensor",
    "Classes": "do not depend on the parameters by operations that have a derivative",
    "Flat": "the first batch (x [100, 1, 8, 8] float32, y [100] int64): mat1 and mat2 shapes cannot be multiplied",
    "Complex": "('model.linear.weight' is complex64)",
    "Meta": "parameter 'model.linear.weight' lies on the meta device",
    "NotANumber": "parameter 'model.linear.weight' is not finite before the first step",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_model_that_cannot_be_trained_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    package = f"broken_{name.lower()}"
    (tmp_path / f"{package}.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(tmp_path)
    done = run_in(tmp_path, "selection", f"model._target_={package}.{name}", *QUICK)
    assert (done.status, done.err.count("\n")) == (2, 1), done.err
    assert BROKEN[name] in done.err


def test_a_model_that_ends_the_program_is_a_failed_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "exits.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(tmp_path)
    done = run_in(tmp_path, "selection", "model._target_=exits.Exits", "hydra.run.dir=here", *QUICK)
    assert done.status == 1
    assert "the program was ended from within the run, by sys.exit(0)" in done.err
    assert '"status": "failed"' in (tmp_path / "here" / "metrics.json").read_text()


def test_what_a_preset_says_of_another_model_is_not_handed_on(tmp_path: Path) -> None:
    done = run_in(tmp_path, "smoothness", "model=linear", "directions=1", *QUICK)
    assert done.status == 0, done.err
    assert "of the preset model.width, " in done.err + done.out
    refused = run_in(tmp_path, "smoothness", "model=linear", "model.width=3", *QUICK)
    assert refused.status == 2
    assert "no setting model.width of metagradient.models.linear; there are: zero_init" in refused.err

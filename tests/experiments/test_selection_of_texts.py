"""`metagradient selection` among texts: models that have read a corpus before are what is tuned."""

import json
import math
from pathlib import Path

from console import Done, run_in, scratch_stays  # noqa: F401

SMALL = ["experiment=instructions_tiny", "data.train=60", "data.validation=16", "data.test=12", "data.vocab=300"]
SMALL += ["model.layers=1", "model.width=16", "learner.steps=2", "learner.learning_rate=1e-9", "method.metasteps=1"]
SMALL += ["retrainings=1", "rivals={shares:[0.5],influence:null,checkpoints:1}", "logger.mode=disabled"]


def run(directory: Path, *overrides: str) -> Done:
    return run_in(directory, "selection", *SMALL, *overrides)


def target_loss(directory: Path, pretraining: str) -> float:
    directory.mkdir()
    done = run(directory, f"pretraining={pretraining}")
    assert done.status == 0, done.err
    (folder,) = (directory / "outputs" / "selection").iterdir()
    return float(json.loads((folder / "metrics.json").read_text())["result/target_loss_all_data"])


def test_what_is_tuned_has_read_the_corpus(tmp_path: Path) -> None:
    """At a rate of almost 0 tuning changes nothing: the loss is that of the start, which knows no token from another."""
    untrained = target_loss(tmp_path / "plain", "null")
    read = target_loss(tmp_path / "read", "{steps:40,learning_rate:0.03}")
    assert abs(untrained - math.log(300)) < 0.5
    assert read < untrained - 1


def test_there_must_be_a_corpus_to_read(tmp_path: Path) -> None:
    done = run(tmp_path, "data.corpus=0", "pretraining={steps:4,learning_rate:0.01}")
    assert done.status == 2
    assert "the data have no corpus: set data=made_instructions data.corpus=800" in done.err

"""Compressed gradients on disk: later queries pass over no training example, and get the same bits."""

import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import metagradient as mg
from metagradient import models
from metagradient.attribution import PCA, Dropout, Influence, TrainedRun, checkpoints, method, scores
from metagradient.attribution.compression.compressors import Compress
from metagradient.errors import UserError

N, C = 14, 3


def data(n: int, seed: int) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {"x": torch.randn(n, 5, generator=g), "y": torch.randint(C, (n,), generator=g)}


TRAIN, QUERIES, LATER = data(N, 0), data(4, 1), data(3, 2)
BATCHES = mg.Batches(TRAIN, mg.epoch_plan(N, 4, 3, seed=0))


def learner(seed: int = 0) -> mg.Classifier:
    torch.manual_seed(seed)
    return mg.Classifier(models.mlp((5,), C, hidden=(4,)), mg.SGD(0.5), 0.2)


LEARNER = learner()
STATES = [state for state, _ in checkpoints(LEARNER, BATCHES, 2)]
PLAIN = Influence(Dropout(20), batch_size=4)
SETTINGS: dict[str, Influence] = {
    "matrix": PLAIN,
    "rows": replace(PLAIN, curvature="fisher"),  # fewer examples than coordinates
    "identity": replace(PLAIN, curvature="identity"),
}


def rounded_alike(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Up to the rounding of products of other shapes, whose kernels differ from machine to machine."""
    assert (found - expected).abs().max() <= 1e-6 * expected.abs().max()


@pytest.mark.parametrize("states", [STATES[-1], STATES], ids=["end", "path"])
@pytest.mark.parametrize("name", SETTINGS)
def test_later_queries_cost_no_pass(name: str, states: Any, tmp_path: Path, seen: list[int]) -> None:
    plain, kept = SETTINGS[name], replace(SETTINGS[name], store=tmp_path / "store")
    expected = [scores(plain.fit(LEARNER, states, TRAIN), queries, 0.3) for queries in (QUERIES, LATER)]
    first = kept.fit(LEARNER, states, TRAIN)
    assert first.passes == plain.fit(LEARNER, states, TRAIN).passes
    rounded_alike(scores(first, QUERIES, 0.3), expected[0])
    seen.clear()
    again = kept.fit(learner(), states, TRAIN)  # another object, the same model
    assert again.passes == 0
    rounded_alike(scores(again, LATER, 0.3), expected[1])
    assert seen == [2, 3]  # the first two queries, to check that examples do not see each other; then all
    together = again.aggregate(LATER, 0.3)
    torch.testing.assert_close(together, expected[1].mean(1), rtol=1e-4, atol=1e-7)
    assert sum(seen) == 8


def test_what_was_cut_short_or_damaged_is_computed_again(tmp_path: Path, seen: list[int], caplog: Any) -> None:
    kept = replace(PLAIN, store=tmp_path)
    whole = scores(kept.fit(LEARNER, STATES[-1], TRAIN), QUERIES, 0.3)
    file = tmp_path / "gradients.safetensors"
    bits = bytearray(file.read_bytes())
    bits[-4 * 20 * 5] ^= 1  # of row 9, in the third block of four
    file.write_bytes(bits)
    again = kept.fit(LEARNER, STATES[-1], TRAIN)
    assert again.passes == pytest.approx(6 / 14)
    seen.clear()
    again.prepare()
    assert seen == [2, 4, 2]
    assert torch.equal(scores(again, QUERIES, 0.3), whole)
    curvature = tmp_path / "curvature.safetensors"
    bits = bytearray(curvature.read_bytes())
    bits[-3] ^= 1
    curvature.write_bytes(bits)
    caplog.clear()
    assert torch.equal(scores(kept.fit(LEARNER, STATES[-1], TRAIN), QUERIES, 0.3), whole)
    assert "its checksum is wrong" in caplog.text


@pytest.mark.parametrize(
    ("what", "changed"),
    [
        ("model", lambda s: (s, LEARNER, STATES[0], TRAIN)),
        ("training set", lambda s: (s, LEARNER, STATES[-1], {**TRAIN, "y": (TRAIN["y"] + 1) % C})),
        ("Dropout(k=20, seed=0), not Dropout(k=20, seed=7)", lambda s: (replace(s, compressor=Dropout(20, 7)), LEARNER, STATES[-1], TRAIN)),
        ("Dropout(k=20, seed=0), not Dropout(k=12, seed=0)", lambda s: (replace(s, compressor=Dropout(12)), LEARNER, STATES[-1], TRAIN)),
        ("curvature (gauss_newton, not fisher)", lambda s: (replace(s, curvature="fisher"), LEARNER, STATES[-1], TRAIN)),
        ("labels (None, not 2)", lambda s: (replace(s, labels=2), LEARNER, STATES[-1], TRAIN)),
    ],
)  # fmt: skip
def test_a_store_of_something_else_is_refused_and_says_of_what(what: str, changed: Any, tmp_path: Path) -> None:
    kept = replace(PLAIN, store=tmp_path)
    kept.fit(LEARNER, STATES[-1], TRAIN).prepare()
    before = (tmp_path / "gradients.safetensors").read_bytes()
    other, model, state, examples = changed(kept)
    with pytest.raises(UserError) as told:
        other.fit(model, state, examples)
    assert f"another {what.partition(' (')[0]}" in str(told.value) or what in str(told.value)
    assert what in str(told.value)
    assert (tmp_path / "gradients.safetensors").read_bytes() == before


def test_what_a_model_keeps_as_an_attribute_is_part_of_it(tmp_path: Path) -> None:
    kept = replace(PLAIN, store=tmp_path)
    kept.fit(LEARNER, STATES[-1], TRAIN)
    other = learner()
    other.model.sharpness = 2.0  # type: ignore[assignment]
    with pytest.raises(UserError, match="another model"):
        kept.fit(other, STATES[-1], TRAIN)


def listed(values: list[float]) -> Any:
    return [torch.tensor(values), 1]


@pytest.mark.parametrize("made", [torch.tensor, np.array, listed, lambda values: {"a": (np.array(values),)}])
def test_constants_of_a_model_are_part_of_it(made: Any, tmp_path: Path) -> None:
    def with_constant(value: float) -> mg.Classifier:
        some = learner()
        some.model.constant = made([1.0, value])
        return some

    kept = replace(PLAIN, store=tmp_path)
    kept.fit(with_constant(2.0), STATES[-1], TRAIN)
    kept.fit(with_constant(2.0), STATES[-1], TRAIN)
    with pytest.raises(UserError, match="another model"):
        kept.fit(with_constant(3.0), STATES[-1], TRAIN)


def test_no_store_is_told(tmp_path: Path) -> None:
    (tmp_path / "gradients.safetensors").write_text("shopping list")
    with pytest.raises(UserError, match="cannot be read"):
        replace(PLAIN, store=tmp_path).fit(LEARNER, STATES[-1], TRAIN)
    replace(PLAIN, store=tmp_path / "b").fit(LEARNER, STATES[-1], TRAIN)
    file = tmp_path / "b" / "gradients.safetensors"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(UserError, match="remove it"):
        replace(PLAIN, store=tmp_path / "b").fit(LEARNER, STATES[-1], TRAIN)


class Silent:
    """A compressor that prints its address."""

    name = "silent"

    def for_run(self, seed: int, examples: int) -> "Silent":
        return self

    def bind(self, parameters: Any, like: Tensor, fit: Any) -> Compress:
        zero = torch.zeros(1, dtype=torch.int64)
        return Compress(len(parameters), lambda pieces: torch.cat([p.gather(zero, zero) for p in pieces], dim=1))


@dataclass(frozen=True)
class Spoken(Silent):
    name: str = "spoken"


def test_compressors_that_a_store_cannot_know_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="pca is fitted on them"):
        replace(PLAIN, compressor=PCA(4), store=tmp_path).fit(LEARNER, STATES[-1], TRAIN)
    with pytest.raises(UserError, match="frozen dataclass"):
        replace(PLAIN, compressor=Silent(), store=tmp_path).fit(LEARNER, STATES[-1], TRAIN)
    replace(PLAIN, compressor=Spoken(), store=tmp_path).fit(LEARNER, STATES[-1], TRAIN)


FRESH = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
import test_stored_gradients as here
from metagradient.attribution import TrainedRun, method
from metagradient.attribution.gradients.hooks import ExampleGradients

inner, seen = ExampleGradients._pieces, []
ExampleGradients._pieces = lambda self, batch, target: (seen.append(len(batch)), inner(self, batch, target))[1]
state = here.mg.TrainState(*torch.load(sys.argv[2], weights_only=True))
run = TrainedRun(learner=here.learner(5), batches=here.BATCHES, state=state)
torch.save(method("dropout:20", store=sys.argv[3])(run, here.LATER), sys.argv[4])
print(seen)
"""


@pytest.mark.slow
def test_another_process_reads_it_with_a_model_from_a_checkpoint(tmp_path: Path) -> None:
    run = TrainedRun(learner=LEARNER, batches=BATCHES, state=STATES[-1])
    stored = method("dropout:20", store=str(tmp_path / "store"))
    assert torch.equal(stored(run, QUERIES), method("dropout:20")(run, QUERIES))
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["dropout_20"]
    checkpoint, found = tmp_path / "state.pt", tmp_path / "scores.pt"
    torch.save((run.state.params, (), run.state.buffers), checkpoint)
    words = [
        sys.executable,
        "-c",
        FRESH,
        str(Path(__file__).parent),
        *map(str, (checkpoint, tmp_path / "store", found)),
    ]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[2, 3]"
    assert torch.equal(torch.load(found, weights_only=True), method("dropout:20")(run, LATER))


@pytest.mark.parametrize("word", ["exact", "none", "gradient_dot", "tracin:2", "trak:1", "pca:4"])
def test_methods_without_compressed_gradients_have_no_store(word: str, tmp_path: Path) -> None:
    run = TrainedRun(learner=LEARNER, batches=BATCHES, state=STATES[-1])
    with pytest.raises(UserError, match="store"):
        method(word, store=str(tmp_path))(run, QUERIES)


def test_rows_of_a_data_set_are_told_apart_as_tensors_are(tmp_path: Path) -> None:
    rows = [(x, y) for x, y in zip(TRAIN["x"], TRAIN["y"], strict=True)]
    kept = replace(PLAIN, store=tmp_path)
    whole = scores(kept.fit(LEARNER, STATES[-1], mg.Batches(rows, BATCHES.plan).examples), QUERIES, 0.3)
    assert torch.equal(whole, scores(PLAIN.fit(LEARNER, STATES[-1], TRAIN), QUERIES, 0.3))
    rows[9] = (rows[9][0], (rows[9][1] + 1) % C)
    with pytest.raises(UserError, match="another training set"):
        kept.fit(LEARNER, STATES[-1], mg.Batches(rows, BATCHES.plan).examples)

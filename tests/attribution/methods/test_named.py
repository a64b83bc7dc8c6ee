"""Methods by name give what their parts give when they are put together by hand."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

import metagradient as mg
from metagradient import attribution as at
from metagradient import models
from metagradient.attribution.compression.compressors import Compress, Pass
from metagradient.attribution.gradients.hooks import Parameter
from metagradient.errors import UserError
from metagradient.training.random import fold_in

N, Q = 24, 3


def examples(n: int, seed: int) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {"x": torch.randn(n, 1, 1, 5, generator=g), "y": torch.randint(3, (n,), generator=g)}


@pytest.fixture
def run() -> at.TrainedRun:
    torch.manual_seed(0)
    learner = mg.Classifier(models.mlp((1, 1, 5), 3, hidden=(6,)), mg.SGD(momentum=0.5), 0.1)
    return at.TrainedRun.of(learner, mg.Batches(examples(N, 1), mg.epoch_plan(N, 8, 3, seed=0)))


QUERIES = examples(Q, 2)


def by_hand(run: at.TrainedRun, compressor: at.Compressor, damping: float, state: object = None) -> Tensor:
    scorer = at.Influence(compressor).fit(run.learner, state or run.state, run.train)  # type: ignore[arg-type]
    return at.scores(scorer, QUERIES, damping)


def test_a_name_is_its_parts_put_together(run: at.TrainedRun) -> None:
    seed = fold_in(0, 8, 0)
    assert torch.equal(at.method("dropout:20")(run, QUERIES), by_hand(run, at.Dropout(20, seed), 1.0))
    found = at.method("sjlt:16", damping=3.0, mask_seed=2)(run, QUERIES)
    assert torch.equal(found, by_hand(run, at.SJLT(16, fold_in(0, 8, 2)), 3.0))
    along = [state for state, _ in at.checkpoints(run.learner, run.batches, 4)]
    assert torch.equal(at.method("dropout:20:path")(run, QUERIES), by_hand(run, at.Dropout(20, seed), 1.0, along))
    exact, _ = at.exact_scores(at.ExactScores(run.learner, run.batches, at=0.5), QUERIES)
    assert torch.equal(at.method("exact:alpha")(run, QUERIES, weight=0.5), exact)
    assert exact.shape == (N, Q)


def test_run_damping_is_in_the_scorers_units(run: at.TrainedRun) -> None:
    method = at.method("none", damping="run")
    scorer = method.fit(run)
    assert scorer.scale is not None
    expected = at.run_damping(run.learner, run.batches) / scorer.scale
    assert method.damping(run, scorer) == expected
    with pytest.raises(UserError, match="damping=run is for influence functions"):
        at.method("tracin:2", damping="run")(run, QUERIES)


@dataclass(frozen=True)
class FirstOfEach:
    """A compressor of somebody else's: the first entry of each parameter. It draws nothing."""

    name: str = "first"
    bound: list[int] = field(default_factory=list)

    def for_run(self, seed: int, examples: int) -> "FirstOfEach":
        return self

    def bind(self, parameters: Sequence[Parameter], like: Tensor, fit: Pass) -> Compress:
        self.bound.append(len(parameters))
        zero = torch.zeros(1, dtype=torch.int64)
        return Compress(len(parameters), lambda pieces: torch.cat([p.gather(zero, zero) for p in pieces], dim=1))


def test_ones_own_compressor(run: at.TrainedRun) -> None:
    mine = FirstOfEach()
    found = at.method(mine, damping=2.0)(run, QUERIES)
    assert torch.equal(found, by_hand(run, mine, 2.0))
    assert mine.bound == [4, 4]


def test_ones_own_compressor_keeps_its_name() -> None:
    spec = at.method(FirstOfEach()).spec
    assert spec.plain == spec.word == FirstOfEach().name
    assert spec.compressed
    assert spec.damped
    assert spec.unit("identity") == "of the method"


@pytest.mark.parametrize(
    ("word", "name", "count", "where"),
    [
        ("exact", "exact", None, "end"),
        ("exact:alpha", "exact", None, "alpha"),
        ("dropout:4096:path", "dropout", 4096, "path"),
        ("none:path", "none", None, "path"),
        ("gradient_dot:alpha", "gradient_dot", None, "alpha"),
        ("trak:3", "trak", 3, "end"),
        ("kronfluence_ekfac", "kronfluence_ekfac", None, "end"),
    ],
)
def test_names_are_read_once(word: str, name: str, count: int | None, where: str) -> None:
    spec = at.MethodSpec.parse(word)
    assert (spec.word, spec.name, spec.count, spec.where) == (word, name, count, where)


@pytest.mark.parametrize(
    "word",
    ["dropout", "dropout:0", "dropout:x", "exact:path", "cosine:path", "trak:2:alpha", "traker:alpha", "exact:3", ""],
)
def test_what_is_no_method_is_refused(word: str) -> None:
    with pytest.raises(UserError, match="no method"):
        at.MethodSpec.parse(word)
    with pytest.raises(FileNotFoundError):
        at.MethodSpec.parse("nowhere.npy")


def test_tracin_refuses_what_it_has_no_unit_for(run: at.TrainedRun) -> None:
    """Under Adam a step is no multiple of the gradient: SGD's scale would be taken without a word."""
    learner = mg.Classifier(models.mlp((1, 1, 5), 3, hidden=(6,)), mg.Adam(), 0.01)
    with pytest.raises(UserError, match="SGD, not Adam"):
        at.method("tracin:2")(at.TrainedRun.of(learner, run.batches), QUERIES)
    with pytest.raises(UserError, match="no setting k of a method"):
        at.method("dropout:8", k=3)
    with pytest.raises(UserError, match="give weight="):
        at.method("none:alpha")(run, QUERIES)
    with pytest.raises(UserError, match="give the run a routine"):
        at.method("trak:2")(run, QUERIES)

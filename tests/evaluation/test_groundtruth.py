"""The truth that scores are judged by: right subsets, one training each, found again on disk."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

import metagradient as mg
from metagradient import models
from metagradient.errors import UserError
from metagradient.evaluation import GroundTruth, example_losses_of, run_digest, subsets

N = 20
G = torch.Generator().manual_seed(0)
DATA = {"x": torch.randn(N, 4, generator=G), "y": torch.arange(N) % 3}
QUERIES = {"x": torch.randn(5, 4, generator=G), "y": torch.arange(5) % 3}


def truth(folder: Path | None = None, rate: float = 0.2, at_once: int = 3) -> GroundTruth:
    torch.manual_seed(0)
    learner = mg.Classifier(models.mlp((4,), 3, hidden=(5,)), mg.SGD(0.9), rate)
    batches = mg.Batches(DATA, mg.epoch_plan(N, 6, 2, seed=0))
    return GroundTruth(learner, batches, QUERIES, folder=folder, at_once=at_once)


def by_hand(this: GroundTruth, weights: Tensor) -> Tensor:
    states = [mg.train(this.learner, this.batches, [mg.DataWeights(w.float())]) for w in weights]
    return torch.stack([example_losses_of(this.learner, state, QUERIES) for state in states])


def test_subsets_lose_the_share_that_is_asked_for() -> None:
    kept = subsets(N, 0.25, 200, seed=1)
    assert bool((kept.sum(1) == 15).all())
    assert len({tuple(row.tolist()) for row in kept}) > 190
    assert 0.6 < float(kept.float().mean(0).min()) < float(kept.float().mean(0).max()) < 0.9
    assert torch.equal(kept[:10], subsets(N, 0.25, 10, seed=1))  # more runs only add some
    for drop in (0.0, 0.01, 1.0):
        with pytest.raises(UserError, match="drop"):
            subsets(N, drop, 2, seed=0)


def test_losses_are_those_of_models_trained_without_the_examples() -> None:
    kept = subsets(N, 0.3, 4, seed=0)
    torch.testing.assert_close(truth().losses(kept), by_hand(truth(), kept))


def test_what_was_trained_is_found_again(tmp_path: Path) -> None:
    kept = subsets(N, 0.3, 7, seed=0)
    first = truth(tmp_path)
    losses = first.losses(kept)
    assert first.runs == 7
    again = truth(tmp_path)
    assert torch.equal(again.losses(kept), losses)
    assert again.runs == 0
    for other, weights in ((truth(tmp_path, rate=0.3), kept), (truth(tmp_path), subsets(N, 0.3, 7, seed=1))):
        other.losses(weights)
        assert other.runs == 7  # another recipe, other examples: nothing is taken for what it is not


def test_settings_that_a_model_does_not_print_are_part_of_the_recipe() -> None:
    tokens = {"tokens": torch.arange(12).view(4, 3) % 5}
    batches = mg.Batches(tokens, mg.epoch_plan(4, 2, 1, seed=0))

    def hashed(heads: int, alpha: float) -> str:
        torch.manual_seed(0)
        model = models.lora(models.GPT(5, 3, layers=1, heads=heads, width=4), 2, alpha, ["qkv"])
        return run_digest(mg.LanguageModel(model, mg.SGD(), 0.1), batches, tokens)

    asked = [(1, 1.0), (2, 1.0), (4, 1.0), (1, 8.0)]
    assert len({hashed(*settings) for settings in asked}) == len(asked)
    assert hashed(2, 8.0) == hashed(2, 8.0)

    def activated(function: object) -> str:
        learner = truth().learner
        learner.model.activation = function
        return run_digest(learner, batches, tokens)

    assert activated(torch.relu) == activated(torch.relu) != activated(torch.tanh)


def test_what_a_run_reads_and_does_not_change_is_part_of_the_recipe() -> None:
    """Frozen weights, tensors that are no buffers, settings in a dict; where a function lies in memory is not."""

    class Based(mg.Classifier):
        def __init__(self, base: float = 1.0, table: float = 1.0, setting: float = 1.0) -> None:
            torch.manual_seed(0)
            super().__init__(torch.nn.Linear(4, 3), mg.SGD(), 0.1)
            self.base = torch.nn.Parameter(torch.full((4,), base), requires_grad=False)
            self.table, self.settings = torch.full((4,), table), {"setting": setting}

    def batches() -> mg.Batches:
        def augment(fields: object, *_: object) -> object:
            return fields

        return mg.Batches(DATA, mg.epoch_plan(N, 6, 2, seed=0), 0, augment)  # type: ignore[arg-type]

    first = run_digest(Based(), batches(), QUERIES)
    assert run_digest(Based(), batches(), QUERIES) == first
    others = {run_digest(Based(**{name: 2.0}), batches(), QUERIES) for name in ("base", "table", "setting")}
    assert len(others | {first}) == 4


def test_the_bar_of_the_retrainings_never_goes_back() -> None:
    told: list[tuple[int, int]] = []
    judge = truth()
    judge.progress = lambda _, done, total: told.append((done, total))
    judge.losses(subsets(N, 0.3, 7, seed=0))
    assert told == sorted(told)
    assert told[-1] == (7 * len(judge.batches), 7 * len(judge.batches))


def test_an_interrupted_judge_goes_on_where_it_was(tmp_path: Path) -> None:
    kept = subsets(N, 0.3, 7, seed=0)

    def stop(what: str, done: int, total: int) -> None:
        if done > 0.7 * total:
            raise KeyboardInterrupt

    cut_short = truth(tmp_path)
    cut_short.progress = stop
    with pytest.raises(KeyboardInterrupt):
        cut_short.losses(kept)
    resumed = truth(tmp_path)
    torch.testing.assert_close(resumed.losses(kept), by_hand(truth(), kept))
    assert 0 < resumed.runs < 7


def test_who_pays_for_what_was_found(tmp_path: Path) -> None:
    kept = subsets(N, 0.3, 7, seed=0)
    first, resumed, other = (truth(tmp_path) for _ in range(3))
    first.owner = resumed.owner = "this run"
    other.owner = "that run"
    losses = first.losses(kept)
    assert torch.equal(resumed.losses(kept), losses)
    other.losses(kept)
    assert (first.runs, resumed.runs, other.runs) == (7, 7, 0)


def test_damaged_losses_are_measured_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    kept = subsets(N, 0.3, 7, seed=0)
    losses = truth(tmp_path).losses(kept)
    (file,) = tmp_path.iterdir()
    bits = bytearray(file.read_bytes())
    bits[-1] ^= 1
    file.write_bytes(bits)
    again = truth(tmp_path)
    assert torch.equal(again.losses(kept), losses)
    assert again.runs == 7
    assert "checksum" in caplog.text

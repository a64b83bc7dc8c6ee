"""What a replay is predicted to take, against what it takes."""

import subprocess
import sys
from contextlib import nullcontext
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import metagradient as mg
from metagradient.memory import peak_mib, reset_peak, resident_rise
from metagradient.models import GPT, mlp, resnet9
from metagradient.replay.plans import all_steps, tape
from metagradient.replay.trial import Footprint, measure, measuring
from metagradient.replay.trial.allocations import Allocations
from metagradient.training import initial_state
from metagradient.training.run import run_mode

T, N, B = 12, 64, 16


@pytest.fixture
def tensors_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Predictions of what is counted here: nothing beside tensors."""
    monkeypatch.setattr(measuring, "resident_rise", lambda: nullcontext([]))
    monkeypatch.setattr(measuring, "_HOLES", 1.0)


def images(n: int = N) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(0)
    return {"x": torch.rand(n, 3, 16, 16, generator=rng), "y": torch.randint(10, (n,), generator=rng)}


def texts(n: int = N) -> dict[str, Tensor]:
    return {"tokens": torch.randint(50, (n, 33), generator=torch.Generator().manual_seed(0))}


def case(name: str, **settings: object) -> tuple[mg.Learner, mg.Batches, dict[str, Tensor]]:
    torch.manual_seed(0)
    made: tuple[mg.Learner, dict[str, Tensor]]
    if name == "gpt":
        made = mg.LanguageModel(GPT(50, block=32, layers=2, heads=2, width=32), mg.Adam(), 1e-3, **settings), texts()  # type: ignore[arg-type]
    elif name == "mlp":
        made = mg.Classifier(mlp((3, 16, 16), 10, hidden=(128, 64)), mg.Adam(), 1e-3, **settings), images()  # type: ignore[arg-type]
    else:
        made = mg.Classifier(resnet9((3, 16, 16), 10, width=4), mg.SGD(momentum=0.9), 0.05, **settings), images()  # type: ignore[arg-type]
    learner, examples = made
    return learner, mg.Batches(examples, mg.epoch_plan(N, B, T * B // N, seed=0)), examples


@pytest.mark.parametrize(("name", "plan"), list(product(["mlp", "resnet", "gpt"], ["tape", "all", "sqrt", "binomial(2)"])), ids=str)  # fmt: skip
@pytest.mark.usefixtures("tensors_alone")
def test_the_predicted_peak_is_what_tensors_take(name: str, plan: str) -> None:
    learner, batches, examples = case(name)
    with Allocations() as count:
        found = mg.metagradient(
            learner, batches, mg.DataWeights(torch.ones(N)), mg.mean_loss(examples), checkpoints=plan, memory="8GiB"
        )
    assert found.predicted is not None
    assert found.predicted.peak == pytest.approx(count.peak, rel=0.15)


@pytest.mark.parametrize("name", ["mlp", "gpt"])
@pytest.mark.usefixtures("tensors_alone")
def test_of_micro_batches_and_candidates_too(name: str) -> None:
    learner, batches, examples = case(name, micro_batch=4)
    z = [
        mg.DataWeights(torch.ones(N)),
        mg.CandidateWeights(torch.zeros(N), step=T // 2, candidates=examples, chunk=4),
    ]
    with Allocations() as count:
        found = mg.metagradient(learner, batches, z, mg.mean_loss(examples), checkpoints="all", memory="8GiB")
    assert found.predicted is not None
    assert found.predicted.peak == pytest.approx(count.peak, rel=0.15)


@pytest.mark.parametrize("micro_batch", [None, 4])
@pytest.mark.usefixtures("tensors_alone")
def test_of_many_candidates_at_once(micro_batch: int | None) -> None:
    """Chunks are larger than batches here; with weights that are not 0 the graph of a whole one is kept."""
    learner, batches, examples = case("mlp", micro_batch=micro_batch)
    many = {name: torch.cat([field] * 32) for name, field in examples.items()}
    z = mg.CandidateWeights(0.1 * torch.ones(32 * N), step=T // 2, candidates=many, chunk=1024)
    few = {name: field[:4] for name, field in examples.items()}
    with Allocations() as count:
        found = mg.metagradient(learner, batches, z, mg.mean_loss(few), checkpoints="all", memory="8GiB")
    assert found.predicted is not None
    ratio = found.predicted.peak / count.peak
    assert (
        0.8 < ratio < (1.25 if micro_batch is None else 2)
    )  # micro-batches are judged by four rows of 1024: rather too much


def test_a_learner_that_changes_is_tried_again() -> None:
    learner, batches, examples = case("mlp")
    z, phi = mg.DataWeights(torch.ones(N)), mg.mean_loss(examples)

    def peak() -> int:
        found = mg.metagradient(learner, batches, z, phi, checkpoints="all", memory="8GiB")
        assert found.predicted is not None
        return found.predicted.peak

    adam = peak()
    learner.optimizer = mg.SGD()
    assert peak() < 0.8 * adam
    assert peak() < 0.8 * adam


@pytest.mark.usefixtures("tensors_alone")
def test_a_large_validation_set_counts() -> None:
    def peak(rows: int) -> int:
        learner, batches, _ = case("resnet")
        found = mg.metagradient(
            learner,
            batches,
            mg.DataWeights(torch.ones(N)),
            mg.mean_loss(images(rows)),
            checkpoints="all",
            memory="8GiB",
        )
        assert found.predicted is not None
        return found.predicted.peak

    assert peak(512) > 3 * peak(16)


def test_a_step_of_a_long_run_keeps_no_more_than_one_of_a_short_run() -> None:
    """The rows of a batch are a view of the whole plan, which is there in any case."""

    def taped_step(steps: int) -> int:
        learner, batches, examples = case("mlp")
        batches = mg.Batches(examples, mg.epoch_plan(N, B, steps * B // N, seed=0))
        with run_mode(learner, batches):
            return measure(learner, batches, initial_state(learner), [mg.DataWeights(torch.ones(N))], 0).taped_step

    assert taped_step(40_000) == taped_step(40)


def test_a_trial_of_many_candidates_sees_a_few() -> None:
    seen = []

    class Counting(mg.Classifier):
        def losses(self, batch: mg.Batch) -> Tensor:
            seen.append(len(batch))
            return super().losses(batch)

    n = 4000
    learner = Counting(nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 10)), mg.SGD(), 0.1)
    examples = images(n)
    batches = mg.Batches(examples, mg.epoch_plan(n, B, 1, seed=0)[:T])
    z = [mg.CandidateWeights(torch.zeros(n), step=3, candidates=examples)]
    with run_mode(learner, batches):
        seen.clear()
        found = measure(learner, batches, initial_state(learner), z, 3)
    assert max(seen) == B
    assert found.once_seconds >= 0


def test_seconds_are_those_of_the_steps_of_a_plan() -> None:
    found = Footprint(1, 1, plain_seconds=2.0, taped_seconds=7.0, once_seconds=100.0)
    assert found.seconds(tape(10)) == 170
    assert found.seconds(all_steps(10), before=5) == 100 + 70 + 2 * (9 + 5)


def test_seconds_are_measured() -> None:
    learner, batches, _ = case("resnet")
    with run_mode(learner, batches):
        found = measure(learner, batches, initial_state(learner), [mg.DataWeights(torch.ones(N))], 0)
    assert 0 < found.plain_seconds < found.taped_seconds < 50 * found.plain_seconds


def test_the_peak_of_a_run_outlives_a_measurement_within_it() -> None:
    reset_peak()
    large = torch.ones(2**27)  # 512 MiB
    del large
    peak = peak_mib()
    with resident_rise() as rise:
        torch.ones(2**25)  # 128 MiB: more than the heap has ready
    assert peak_mib() >= peak
    assert len(rise) == Path("/proc/self/clear_refs").exists()
    assert all(100 * 2**20 < size < 200 * 2**20 for size in rise)
    reset_peak()
    assert peak_mib() <= peak


_RESIDENT = """
import torch
from metagradient.memory import resident_rise
from metagradient.replay.heap import give_back
from metagradient.studies.cost import contenders

torch.set_num_threads(1)
contenders.ours(contenders.make_case("gpt", 2), "tape")
case = contenders.make_case("gpt", 6)
give_back()
with resident_rise() as rise:
    found = contenders.ours(case, "tape", memory="8GiB")
print(found.predicted.peak / rise[0] if rise else 1)
"""


@pytest.mark.slow  # half a minute of a transformer, in a process of its own
def test_the_predicted_peak_is_near_the_resident_one() -> None:
    done = subprocess.run([sys.executable, "-c", _RESIDENT], capture_output=True, text=True, timeout=300, check=True)
    assert 0.75 < float(done.stdout) < 1.25

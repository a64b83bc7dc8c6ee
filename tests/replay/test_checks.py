"""Nothing is silently wrong: what breaks a replay is found, and named by step and tensor."""

import errno
import gc
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toys import ROWS, N, batches, examples, fit, mlp, relative, same_bits, smallest_memory

import metagradient as mg
from metagradient.cli.errors import no_room
from metagradient.errors import UserError
from metagradient.replay import storage as storage_module
from metagradient.replay import trial as footprints
from metagradient.replay.storage import Storage, make_storage
from metagradient.training.run import NonFiniteLoss

T = len(ROWS)
DATA, HELD_OUT = examples(), examples(7, seed=3)
WEIGHTS = mg.DataWeights(torch.linspace(0.5, 1.5, N))
PHI = mg.mean_loss(HELD_OUT)


def learner(optimizer: mg.Optimizer | None = None) -> mg.Classifier:
    return mg.Classifier(mlp(), optimizer or mg.SGD(momentum=0.9), 0.3)


# -- a run that is not a function of (state, batch, step) ---------------------------------------------------------


class Counting(mg.Classifier):
    """Its losses depend on how often they were asked for: from call `after` on."""

    def __init__(self, after: int, size: float = 0.01) -> None:
        super().__init__(mlp(), mg.SGD(momentum=0.9), 0.3)
        self.after, self.size, self.calls = after, size, 0

    def losses(self, batch: mg.Batch) -> Tensor:
        self.calls += 1
        drift = self.size * self.calls if self.calls > self.after else 0.0
        return super().losses(batch) + drift * self.model[0].weight[0, 0] ** 2


def test_a_hidden_counter_is_found_where_steps_are_recomputed_plainly() -> None:
    """The fit asks fewer than 12 times, so the recorded run is clean and the first recomputed step is not."""
    message = (
        r"^replaying steps 0\.\.0 did not give the recorded state of step 1 \(params, slot 0 differ\)[^\n]*"
        r"randomness outside[^\n]*deterministic=true\)\.$"
    )
    with pytest.raises(mg.ReplayMismatch, match=message):
        mg.metagradient(Counting(after=12), batches(DATA), WEIGHTS, PHI, checkpoints="binomial(1)")


def test_a_last_bit_is_enough_to_be_found() -> None:
    with pytest.raises(mg.ReplayMismatch, match="recorded state of step 1 "):
        mg.metagradient(Counting(after=12, size=1e-12), batches(DATA), WEIGHTS, PHI, checkpoints="binomial(1)")


@pytest.mark.parametrize("plan", ["all", "sqrt", "every(4)"])
def test_a_hidden_counter_is_found_where_steps_are_only_taped_again(plan: str) -> None:
    with pytest.raises(
        mg.ReplayMismatch,
        match=r"^taping steps \d\.\.\d again gave params at step \d with a relative difference of [^\n]*$",
    ):
        mg.metagradient(Counting(after=12, size=1.0), batches(DATA), WEIGHTS, PHI, checkpoints=plan)


def test_a_buffer_that_drifts_is_named() -> None:
    class Drifting(Counting):
        def __init__(self) -> None:
            super().__init__(after=12)
            self.register_buffer("average", torch.zeros(2, dtype=torch.float64))

        def losses(self, batch: mg.Batch) -> Tensor:
            self.calls += 1
            self.average = self.average + (self.calls if self.calls > self.after else 1.0)
            return mg.Classifier.losses(self, batch)

    with pytest.raises(mg.ReplayMismatch, match=r"recorded state of step 1 \(buffers differ\)"):
        mg.metagradient(Drifting(), batches(DATA), WEIGHTS, PHI, checkpoints="binomial(1)")


# -- numbers that are not finite ----------------------------------------------------------------------------------


def broken_at_step(step: int) -> mg.Batches:
    """The last row of that batch is NaN, and no batch before reads it."""
    data = {name: v.clone() for name, v in DATA.items()}
    rows = [[0, 1, 2], [3, 0, 1], [2, 3, 4], [1, 0, 3]]
    data["x"][9] = float("nan")
    rows[step].append(9)
    return mg.Batches(data, mg.given_plan(rows))


@pytest.mark.parametrize("step", [0, 2, 3])
@pytest.mark.parametrize("plan", ["tape", "all"])
def test_a_loss_that_is_not_finite_names_step_and_rows(plan: str, step: int) -> None:
    message = rf"^the training loss is nan at step {step} \(x is not finite in rows 9; learning rate 0\.3\)[^\n]*$"
    with pytest.raises(NonFiniteLoss, match=message) as bare:
        mg.metagradient(learner(), broken_at_step(step), WEIGHTS, PHI, checkpoints=plan)
    assert bare.value.t == step
    with pytest.raises(NonFiniteLoss, match=message):
        fit(learner(), broken_at_step(step), mg.Metagradient(WEIGHTS, PHI, checkpoints=plan), precision="64-true")


def test_a_run_that_blows_up_says_where() -> None:
    wild = mg.Classifier(mlp(), mg.SGD(), 1e308)
    with pytest.raises(NonFiniteLoss, match=r"^the training loss is \w+ at step \d \([^\n]*learning rate 1e\+308"):
        mg.metagradient(wild, batches(DATA), WEIGHTS, PHI)


def zero_until(step: int) -> mg.Batches:
    """The first input is 0 before that step: its weights' gradients are exactly 0, and so is Adam's second moment."""
    data = {name: v.clone() for name, v in DATA.items()}
    data["x"][:6, 0] = 0
    rows = [[0, 1, 2], [3, 4, 5], [1, 3], [2, 5, 0], [4, 1]]
    return mg.Batches(data, mg.given_plan([*rows[:step], *([6, 7, 8], [9, 8, 0])[: 5 - step], *rows[step:3]]))


@pytest.mark.parametrize("step", [1, 3, 4])
@pytest.mark.parametrize("plan", ["tape", "all", "every(2)", "binomial(1)"])
def test_a_square_root_at_zero_names_step_and_tensor(plan: str, step: int) -> None:
    """Without eps_root the last step with a second moment of 0 is the first on the way back that breaks."""
    message = (
        rf"^the cotangent of (params|slot \d) is not finite at step {step - 1}: [^\n]*square root met 0[^\n]*"
        r"eps_root >= 1e-8\.$"
    )
    with pytest.raises(mg.NonFiniteCotangent, match=message):
        mg.metagradient(learner(mg.Adam(eps_root=0.0)), zero_until(step), WEIGHTS, PHI, checkpoints=plan)
    mended = mg.metagradient(learner(mg.Adam()), zero_until(step), WEIGHTS, PHI, checkpoints=plan)
    assert bool(torch.isfinite(mended["weights"]).all())


def test_a_cotangent_of_a_metaparameter_is_named_too() -> None:
    class Root(mg.Classifier):
        """sqrt|x|: no derivative in an input that is 0, though the parameters have theirs. Step 8 reads row 4 last."""

        def losses(self, batch: mg.Batch) -> Tensor:
            return super().losses(batch.replace(x=batch.x.abs().sqrt()))

    data = {name: v.clone() for name, v in DATA.items()}
    data["x"][ROWS[5][0], 1] = 0
    inputs = mg.InputPerturbation(torch.zeros(N, 4), index=torch.arange(N))
    with pytest.raises(mg.NonFiniteCotangent, match=r"^the cotangent of inputs is not finite at step 8: "):
        mg.metagradient(Root(mlp()), batches(data), inputs, PHI, checkpoints="sqrt")


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (lambda model: PHI(model) * float("nan"), r"the objective is not finite: \[nan\]"),
        (
            lambda model: torch.stack([PHI(model), PHI(model) / 0]),
            r"the objective is not finite: \[[\d.]+, inf\], that is objectives 1",
        ),
        (
            mg.mean_loss({**HELD_OUT, "x": HELD_OUT["x"].index_fill(0, torch.tensor([1, 4]), float("inf"))}, chunk=2),
            r"the objective is not finite: \[nan\]: examples 1, 4 of those it is the mean of",
        ),
        (
            lambda model: (model.model[0].weight * 0).square().sum().sqrt(),
            "the objective is finite, but its gradient in params at the end of training is not",
        ),
    ],
)
def test_an_objective_that_is_not_finite_is_said_to_be_the_culprit(
    objective: Callable[[mg.Learner], Tensor], message: str
) -> None:
    with pytest.raises(mg.NonFiniteCotangent, match=rf"^{message}$"):
        mg.metagradient(learner(), batches(DATA), WEIGHTS, objective)


@pytest.mark.parametrize(
    ("objective", "kind"),
    [
        (lambda model: PHI(model).detach(), r"constant of shape \[\]"),
        (lambda model: model.losses(mg.Batch(0, torch.arange(7), HELD_OUT)).outer(torch.ones(2).double()), "tensor of"),
        (lambda model: torch.tensor(1.0), r"constant of shape \[\]"),
    ],
)
def test_an_objective_that_cannot_be_differentiated_is_refused(
    objective: Callable[[mg.Learner], Tensor], kind: str
) -> None:
    with pytest.raises(UserError, match=rf"^the objective must return a scalar or \[Q\][^\n]*not a {kind}[^\n]*$"):
        mg.metagradient(learner(), batches(DATA), WEIGHTS, objective)


@pytest.mark.parametrize(
    ("z", "message"),
    [
        ([], r"one or more metaparameters with distinct names, not \[\]"),
        ([WEIGHTS, mg.DataWeights(torch.ones(N), start=3)], r"distinct names, not \['weights', 'weights'\]"),
        (mg.DataWeights(torch.ones(N), start=T), f"enter at step {T}, but the run has only {T} steps"),
    ],
)
def test_metaparameters_that_make_no_sense_are_refused(z: Any, message: str) -> None:
    with pytest.raises(UserError, match=rf"^[^\n]*{message}[^\n]*$"):
        mg.metagradient(learner(), batches(DATA), z, PHI)


# -- memory -------------------------------------------------------------------------------------------------------


def test_the_smallest_memory_is_named_and_works_and_less_does_not() -> None:
    def attempt(memory: int | str) -> mg.Metagradients:
        return mg.metagradient(learner(), batches(DATA), WEIGHTS, PHI, memory=memory)

    smallest = smallest_memory(attempt)
    truth = mg.metagradient(learner(), batches(DATA), WEIGHTS, PHI, checkpoints="tape")
    for memory in (smallest, f"{smallest // 1024}KiB"):
        tight = attempt(memory)
        assert tight.plan.slots <= 2  # a size to type is whole KiB, and a state here is not half of one
        assert relative(tight["weights"], truth["weights"]) < 1e-12
    with pytest.raises(UserError, match=r"^replay\.memory=[^\n]* is too small: a state takes [^\n]*$"):
        attempt(smallest - 1024)
    with pytest.raises(UserError, match=r"^checkpoints 'tape' needs about [^\n]*set replay\.memory="):
        mg.metagradient(learner(), batches(DATA), WEIGHTS, PHI, checkpoints="tape", memory=smallest)


def test_the_number_of_checkpoints_on_disk_needs_no_memory() -> None:
    def attempt(memory: int) -> mg.Metagradients:
        return mg.metagradient(learner(), batches(DATA), WEIGHTS, PHI, memory=memory, storage="disk")

    def in_memory(memory: int) -> mg.Metagradients:
        return mg.metagradient(learner(), batches(DATA), WEIGHTS, PHI, memory=memory)

    smallest = smallest_memory(attempt)
    assert attempt(smallest).plan.advanced_steps == T - 1
    assert in_memory(smallest).plan.advanced_steps > T - 1


def test_what_a_step_keeps_is_measured_and_grows_with_the_batch() -> None:
    def footprint(rows: int) -> footprints.Footprint:
        model = mg.Classifier(nn.Sequential(nn.Linear(4, 50), nn.Tanh(), nn.Linear(50, 3)).double(), mg.SGD(0.9))
        data = mg.Batches(examples(rows), mg.full_batch_plan(rows, 3))
        return footprints.measure(model, data, mg.initial_state(model), [], 0)

    small, large = footprint(1000), footprint(2000)
    state = 8 * (4 * 50 + 50 + 50 * 3 + 3)
    assert small.state == large.state == 2 * state
    per_row = (large.taped_step - small.taped_step) / 1000
    assert 8 * 50 < per_row < 8 * 50 * 10  # the hidden layer, a few times over


def test_what_a_step_keeps_is_that_of_the_largest_batch() -> None:
    """Short and empty batches come first in this plan, and tell little of the others."""
    model, rows = mg.Classifier(mlp(), mg.SGD(0.9), 0.3), list(range(1000))

    def taped_step(*plan: list[int]) -> int:
        data = mg.Batches(examples(1000), mg.given_plan(plan))
        return footprints.measure(model, data, mg.initial_state(model), [], 0).taped_step

    assert taped_step([], rows[:1], [], rows) == taped_step(rows, rows) > 2 * taped_step(rows[:1], rows[:1])


@pytest.mark.parametrize("steps", [1, 2])
def test_the_shortest_runs_replay(steps: int) -> None:
    z = [
        mg.LearningRates(torch.full((steps,), 0.3)),
        mg.CandidateWeights(torch.zeros(N), step=steps - 1, candidates=DATA),
    ]
    results = [
        mg.metagradient(learner(), batches(DATA, ROWS[:steps]), z, PHI, checkpoints=plan) for plan in ("tape", "all")
    ]
    for m in z:
        assert relative(results[1][m.name], results[0][m.name]) < 1e-12


# -- checkpoints on disk ------------------------------------------------------------------------------------------


class Tampered(mg.DiskStorage):
    """Checkpoint files to which something happens once they are written."""

    def __init__(self, folder: Path, what: Callable[[Path], object]) -> None:
        super().__init__(folder)
        self.what = what

    def save(self, t: int, state: mg.TrainState) -> None:
        super().save(t, state)
        if t == 3:
            self.wait()
            self.what(self.folder / "state-000000003.safetensors")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def swap(path: Path) -> None:
    """The checkpoint of another step."""
    path.write_bytes((path.parent / "state-000000000.safetensors").read_bytes())


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (flip, r"is damaged, or another one \(its checksum is wrong\): run again"),
        (truncate, "cannot be read"),
        (Path.unlink, "cannot be read"),
        (swap, "is damaged, or another one"),
    ],
)
def test_a_damaged_checkpoint_is_noticed(tmp_path: Path, what: Callable[[Path], object], message: str) -> None:
    with pytest.raises(UserError, match=rf"^the checkpoint [^\n]*state-000000003\.safetensors {message}[^\n]*$"):
        mg.metagradient(learner(), batches(DATA), WEIGHTS, PHI, checkpoints="all", storage=Tampered(tmp_path, what))


def states(count: int) -> list[mg.TrainState]:
    """Distinct states of 400 kB."""
    return [
        mg.TrainState(torch.full((50_000,), float(t)), (torch.arange(50_000.0),), torch.empty(0)) for t in range(count)
    ]


def test_the_disk_is_written_and_read_in_a_thread_of_its_own_in_any_order(tmp_path: Path) -> None:
    storage, kept, random = mg.DiskStorage(tmp_path), states(12), Random(0)
    threads: set[str] = set()
    held: set[int] = set()
    with watched(storage_module, "_write", threads), watched(storage_module, "_read", threads):
        for t, state in enumerate(kept):
            storage.save(t, state)
            held.add(t)
            for asked in random.choices(sorted(held), k=3):
                storage.expect(random.choice(sorted(held)))
                assert same_bits(storage.load(asked), kept[asked])
            if random.random() < 0.4:
                gone = random.choice(sorted(held))
                storage.expect(gone)
                storage.free(gone)
                held.remove(gone)
    assert {name.partition("_")[0] for name in threads} == {"checkpoints", "MainThread"}
    assert set(storage.sums) == held
    assert {path.name for path in storage.folder.iterdir()} == {storage.path(t).name for t in held}


def test_few_states_wait_to_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A disk that is slower than the run holds the run up; memory does not grow."""
    storage, written, most = mg.DiskStorage(tmp_path), list[int](), 0
    write = storage_module._write

    def slow(*args: Any) -> list[int]:
        time.sleep(0.01)
        sums = write(*args)
        written.append(1)
        return sums

    monkeypatch.setattr(storage_module, "_write", slow)
    for t in range(20):
        storage.save(t, states(1)[0])
        most = max(most, t + 1 - len(written))
    storage.wait()
    assert 1 <= most <= 2
    folder = storage.folder
    storage.save(20, states(1)[0])
    del storage
    gc.collect()
    assert not folder.exists()  # and nothing is written after it


def test_a_full_disk_is_told_by_the_next_call_in_the_same_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(storage_module, "save_file", full)
    for call in (lambda x: x.wait(), lambda x: x.free(3), lambda x: [x.save(t, states(1)[0]) for t in range(4, 7)]):
        storage = mg.DiskStorage(tmp_path)
        storage.save(3, states(1)[0])
        with pytest.raises(
            UserError, match=r"^cannot write the checkpoint of step 3 \(0 MiB\) to [^\n]*free some space"
        ) as error:
            call(storage)
        assert no_room(error.value) is not None
    with pytest.raises(UserError, match=r"^cannot write the checkpoint of step \d"):
        mg.metagradient(learner(), batches(DATA), WEIGHTS, PHI, checkpoints="all", storage=mg.DiskStorage(tmp_path))


@contextmanager
def watched(module: Any, name: str, threads: set[str]) -> Iterator[None]:
    """Inside, the threads in which a function of a module runs are noted."""
    own = getattr(module, name)

    def noting(*args: Any) -> Any:
        threads.add(threading.current_thread().name)
        return own(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, name, noting)
        yield


@pytest.mark.parametrize("make", [mg.MemoryStorage, mg.PinnedStorage, mg.DiskStorage])
def test_storage_gives_back_the_saved_bits(make: Callable[[], Storage], device: torch.device) -> None:
    tensors = [torch.randn(5, device=device), torch.tensor([float("inf"), -0.0, 1e-45], device=device)]
    state, storage = mg.TrainState(tensors[0], (tensors[1],), torch.empty(0, device=device)), make()
    storage.save(7, state)
    storage.save(2, mg.TrainState.of([x + 1 for x in state.tensors()]))
    loaded = storage.load(7)
    for x, y in zip(loaded.tensors(), state.tensors(), strict=True):
        assert x.device.type == device.type
        assert x.dtype == y.dtype
        assert torch.equal(x.cpu().view(torch.int32), y.cpu().view(torch.int32))
    storage.free(7)
    with pytest.raises((KeyError, UserError)):
        storage.load(7)


def test_the_folder_is_empty_once_the_replay_is_done(tmp_path: Path) -> None:
    for plan in ("all", "binomial(2)", "tree(3)"):
        result = mg.metagradient(
            learner(), batches(DATA), WEIGHTS, PHI, checkpoints=plan, storage=mg.DiskStorage(tmp_path / "states")
        )
        assert result.plan.slots > 1
        assert list((tmp_path / "states").iterdir()) == []


def test_a_folder_that_cannot_be_and_a_storage_that_is_none_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"^[^\n]*file[^\n]*set replay\.folder=[^\n]*$"):
        mg.DiskStorage(tmp_path / "file")
    with pytest.raises(UserError, match=r"^replay\.storage must be one of memory, pinned, disk, not 'tape'[^\n]*$"):
        make_storage("tape")


# -- finite differences -------------------------------------------------------------------------------------------


def test_finite_differences_agree_in_float64_for_a_float32_learner() -> None:
    z = [WEIGHTS, mg.LearningRates(torch.full((T,), 0.3)), mg.WeightDecay(torch.tensor(0.01))]
    single = mg.Classifier(mlp().float(), mg.SGD(momentum=0.9), 0.3)
    data = batches(DATA).to(dtype=torch.float32)
    result = mg.metagradient(single, data, z, PHI)
    calls: list[tuple[str, int, int]] = []
    rows = mg.finite_differences(single, data, z, PHI, result, coordinates=4, progress=lambda *c: calls.append(c))
    assert [row.name for row in rows] == ["weights"] * 4 + ["learning_rates"] * 4 + ["weight_decay"]
    assert calls[-1] == ("finite differences of weight_decay", 1, 1)
    for m in z[:2]:
        own = [row.index for row in rows if row.name == m.name]
        assert len(set(own)) == 4
        assert own[:2] == result[m.name].abs().argsort(descending=True)[:2].tolist()
    for row in rows:
        assert row.relative_error < 1e-6
        assert row.replay == pytest.approx(row.replay64, rel=1e-3, abs=1e-6)
    assert next(single.parameters()).dtype == torch.float32


def test_finite_differences_show_a_wrong_gradient() -> None:
    """An objective with part of its gradient cut off: the replay follows the cut, the differences do not."""

    def cut(model: mg.Learner) -> Tensor:
        weight = model.model[0].weight.square().sum()
        return PHI(model) + weight.detach() - 0.5 * weight + 0.5 * weight.detach()

    result = mg.metagradient(learner(), batches(DATA), WEIGHTS, cut)
    rows = mg.finite_differences(learner(), batches(DATA), WEIGHTS, cut, result)
    assert max(row.relative_error for row in rows) > 0.1


def test_finite_differences_need_one_objective() -> None:
    result = mg.metagradient(learner(), batches(DATA), WEIGHTS, mg.example_losses(HELD_OUT))
    with pytest.raises(UserError, match=r"^check=fd needs a scalar objective$"):
        mg.finite_differences(learner(), batches(DATA), WEIGHTS, mg.example_losses(HELD_OUT), result)


def test_messages_are_one_line_each() -> None:
    """Whatever is refused above; here the two longest once more."""
    for call in (
        lambda: mg.metagradient(learner(), batches(DATA), WEIGHTS, PHI, memory=1),
        lambda: mg.metagradient(learner(), batches(DATA), WEIGHTS, PHI, checkpoints="nope"),
    ):
        with pytest.raises(UserError) as e:
            call()
        assert re.fullmatch(r"[^\n]+", str(e.value))


def test_a_linear_response_is_predicted_without_error() -> None:
    """One step of SGD is linear in the weights of a normalised batch, and so is a linear objective of its end."""
    data = mg.Batches(DATA, torch.arange(N)[None])
    towards = torch.randn(200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def phi(model: mg.Learner) -> Tensor:
        flat = torch.cat([p.flatten() for p in model.parameters()])
        return flat @ towards[: len(flat)]

    model = mg.Classifier(mlp(), mg.SGD(), 0.3, normalize="batch")
    result = mg.metagradient(model, data, WEIGHTS, phi)
    found = mg.linearity(model, data, WEIGHTS, phi, result, size=0.5)
    assert found.predicted < 0
    assert found.error < 1e-9
    assert found.reach > 1e6


def test_the_error_of_a_prediction_grows_with_its_size_and_is_that_of_a_training() -> None:
    result = mg.metagradient(learner(), batches(DATA), WEIGHTS, PHI)
    small, large = (mg.linearity(learner(), batches(DATA), WEIGHTS, PHI, result, size=size) for size in (1e-3, 2e-3))
    assert large.error == pytest.approx(2 * small.error, rel=0.05)
    assert large.reach == pytest.approx(small.reach, rel=0.05)
    g = result["weights"]
    value = WEIGHTS.value.double()
    shift = -2e-3 * value.norm() * g / g.norm()
    moved = mg.metagradient(learner(), batches(DATA), mg.DataWeights(value + shift), PHI)
    assert large.actual == pytest.approx(float(moved.objective - result.objective), rel=1e-9)
    assert large.predicted == pytest.approx(float(g @ shift), rel=1e-12)


def test_a_metaparameter_that_is_zero_moves_too() -> None:
    z = mg.CandidateWeights(torch.zeros(N), step=2, candidates=DATA)
    result = mg.metagradient(learner(), batches(DATA), z, PHI)
    found = mg.linearity(learner(), batches(DATA), z, PHI, result, size=1e-4)
    assert found.predicted < 0
    assert found.error < 0.1
    queries = mg.example_losses(HELD_OUT)
    several = mg.metagradient(learner(), batches(DATA), z, queries)
    with pytest.raises(UserError, match="scalar objective"):
        mg.linearity(learner(), batches(DATA), z, queries, several)

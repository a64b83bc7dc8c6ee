"""A replay that was killed goes on where it was, ends in the same bits, and is never taken for another one."""

import errno
import logging
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from killed import DATA, HELD_OUT, Case, bits, kill_until_done
from torch import Tensor
from toys import N, batches, fit, mlp

import metagradient as mg
from metagradient.cli.errors import no_room
from metagradient.errors import UserError
from metagradient.replay.saving import position, saving
from metagradient.replay.saving.asked import asked_for

WEIGHTS = mg.DataWeights(torch.linspace(0.5, 1.5, N))
PHI = mg.mean_loss(HELD_OUT)


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# -- kills ---------------------------------------------------------------------------------------------------------

KILLED = [
    Case("binomial(3)", "disk", "adam"),
    pytest.param(Case("sqrt"), marks=pytest.mark.slow),
    pytest.param(Case("tape"), marks=pytest.mark.slow),
    pytest.param(Case("binomial(3,4)", optimizer="adam"), marks=pytest.mark.slow),
    pytest.param(Case("all", "disk"), marks=pytest.mark.slow),
    pytest.param(Case("tree(3)", "pinned", "adam", queries=True), marks=pytest.mark.slow),
]


@pytest.mark.parametrize("case", KILLED, ids=str)
def test_a_replay_that_is_killed_at_any_moment_ends_in_the_same_bits(case: Case, tmp_path: Path) -> None:
    """SIGKILL, at moments that are drawn."""
    found, places = kill_until_done(case, tmp_path / "saved", kills=4)
    assert equal(found, bits(case.replay()))
    assert not (tmp_path / "saved").exists()
    if case.plan != "tape":
        assert {"forward", "backward"} & set(places)


# -- interrupts, at every step -------------------------------------------------------------------------------------


class Stop(Exception):
    """What ends a replay in these tests."""


def run(
    save_to: Path | None,
    stop: int | None = None,
    *,
    every: float = 0.0,
    trainer: bool = False,
    objective: mg.Objective = PHI,
    z: Any = WEIGHTS,
    rate: float = 0.3,
    **how: Any,
) -> tuple[mg.Metagradients, int]:
    """A replay that stops at its so many-th report of progress; the number of reports."""
    reports = 0

    def progress(what: str, done: int, total: int) -> None:
        nonlocal reports
        reports += 1
        if reports == stop:
            raise Stop

    learner = mg.Classifier(mlp(), mg.SGD(momentum=0.9), rate)
    how = {"checkpoints": "all", "save_to": save_to, "save_every": every, "progress": progress} | how
    if not trainer:
        return mg.metagradient(learner, batches(DATA), z, objective, **how), reports
    callback = mg.Metagradient(z, objective, **how)
    fit(learner, batches(DATA), callback, precision="64-true")
    assert callback.result is not None
    assert torch.equal(learner.layout.params(), callback.result.state.params)
    return callback.result, reports


def stopped(save_to: Path, stop: int, **how: Any) -> None:
    with pytest.raises(Stop):
        run(save_to, stop, **how)


@pytest.mark.parametrize("trainer", [False, True])
@pytest.mark.parametrize("how", [{"storage": "disk"}, {"checkpoints": "binomial(3,2)"}], ids=str)
def test_it_goes_on_where_it_stopped(how: dict[str, Any], trainer: bool, tmp_path: Path) -> None:
    truth, reports = run(None, **how)
    for stop in (3, 8, 9, 11, reports - 1):
        stopped(tmp_path / "saved", stop, trainer=trainer, **how)
        found, left = run(tmp_path / "saved", trainer=trainer, **how)
        assert equal(bits(found), bits(truth))
        assert left <= reports - stop + 4  # the step it stopped at, and the segment on tape
        assert list(tmp_path.iterdir()) == []


def test_it_goes_on_again_and_again(tmp_path: Path) -> None:
    """Stopped again and again after a few steps each."""
    truth, _ = run(None)
    for stops in range(10):
        try:
            found, _ = run(tmp_path, 5)
        except Stop:
            continue
        assert stops > 2
        assert equal(bits(found), bits(truth))
        return
    pytest.fail("it does not come to its end")


def test_many_objectives_are_pulled_as_they_were_before(tmp_path: Path) -> None:
    """Candidates at the last step have no batching rule, so all segments are pulled one objective after the other; a replay that
    goes on below them must not pull them at once."""
    how: dict[str, Any] = {
        "z": [WEIGHTS, mg.CandidateWeights(torch.ones(N), step=8, candidates=DATA)],
        "objective": mg.example_losses(HELD_OUT),
    }
    truth, reports = run(None, **how)
    stopped(tmp_path, reports - 2, **how)
    assert equal(bits(run(tmp_path, **how)[0]), bits(truth))


def test_the_first_steps_that_read_no_metaparameter_are_saved_too(tmp_path: Path) -> None:
    late = {"z": mg.DataWeights(torch.ones(N), start=6)}
    truth, reports = run(None, **late)
    stopped(tmp_path, 5, **late)
    found, left = run(tmp_path, **late)
    assert left < reports
    assert equal(bits(found), bits(truth))


def test_nothing_is_saved_before_it_is_time(tmp_path: Path) -> None:
    stopped(tmp_path, 12, every=1000)
    assert not (tmp_path / "position.safetensors").exists()


@pytest.mark.parametrize("every", [-1, float("nan"), "5", True])
def test_the_seconds_are_a_number(every: Any, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"^save_every must be a number of seconds >= 0, not [^\n]*give save_every=300$"
    ):
        run(tmp_path, every=every)


def test_a_folder_that_is_a_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"^cannot save the replay in [^\n]*file[^\n]*; give another folder$"):
        run(tmp_path / "file")


def test_files_of_others_stay(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    stopped(tmp_path, 12)
    for half in (".state-000000003.safetensors.77", ".position.safetensors.77", ".tmpeBuCzQ"):
        (tmp_path / half).touch()  # of a process that was killed while it wrote
    (tmp_path / "state-000000099.safetensors").touch()
    run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


# -- another run's -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "names"),
    [
        ({"z": WEIGHTS.with_value(WEIGHTS.value + 1)}, "metaparameters"),
        ({"objective": mg.example_losses(HELD_OUT)}, "objective"),
        ({"objective": mg.mean_loss(DATA)}, "objective"),
        ({"rate": 0.2}, "learner"),
        ({"checkpoints": "sqrt"}, "checkpoints"),
        ({"z": mg.LearningRates(torch.ones(9)), "rate": 0.2}, "learner, metaparameters"),
    ],
)
def test_another_runs_position_is_refused_by_name(other: dict[str, Any], names: str, tmp_path: Path) -> None:
    stopped(tmp_path, 12)
    before = sorted((path.name, path.read_bytes()) for path in tmp_path.iterdir())
    message = rf"^the replay saved in [^\n]* is of another run \(its {names} differ\): give [^\n]*another folder$"
    with pytest.raises(UserError, match=message):
        run(tmp_path, **other)
    assert before == sorted((path.name, path.read_bytes()) for path in tmp_path.iterdir())


def test_the_plan_is_that_of_the_beginning_whatever_memory_is_free_now(tmp_path: Path) -> None:
    truth, _ = run(None, checkpoints="auto", memory="70KiB")
    assert truth.plan.name.startswith("binomial")
    stopped(tmp_path, 8, checkpoints="auto", memory="70KiB")
    found, _ = run(tmp_path, checkpoints="auto", memory="1GiB")
    assert found.plan == truth.plan
    assert equal(bits(found), bits(truth))


def _scaled(factor: float) -> mg.Objective:
    return lambda learner: factor * PHI(learner)


class _Called:
    def __init__(self, shift: Tensor) -> None:
        self.shift = shift

    def __call__(self, learner: mg.Learner) -> Tensor:
        return PHI(learner) + self.shift.sum()


@pytest.mark.parametrize(
    "make",
    [
        _scaled,
        lambda x: partial(_scaled(1.0), x),
        lambda x: _Called(torch.tensor(x)),
        lambda x: _Called(torch.tensor(x)).__call__,
    ],
)
def test_an_objective_is_known_by_its_code_and_what_it_closes_over(make: Callable[[float], Any]) -> None:
    learner = mg.Classifier(mlp(), mg.SGD(momentum=0.9), 0.3)

    def of(objective: Any) -> str:
        return asked_for(learner, batches(DATA), [WEIGHTS], objective, mg.initial_state(learner), "all")["objective"]

    assert of(make(1.0)) == of(make(1.0))
    assert of(make(1.0)) != of(make(2.0))
    assert of(lambda x: PHI(x) + 1) != of(lambda x: PHI(x) + 2)


# -- damage --------------------------------------------------------------------------------------------------------


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("storage", ["memory", "disk"])
@pytest.mark.parametrize("damage", [_flip, _truncate, _empty, Path.unlink])
@pytest.mark.parametrize("which", ["position", "state-000000003"])
def test_what_is_damaged_is_named_and_computed_anew(
    which: str, damage: Callable[[Path], Any], storage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    truth, reports = run(None, storage=storage)
    stopped(tmp_path, 12, storage=storage)
    damage(tmp_path / f"{which}.safetensors")
    with caplog.at_level(logging.WARNING, logger="metagradient"):
        found, left = run(tmp_path, storage=storage)
    assert left == reports
    assert equal(bits(found), bits(truth))
    if (which, damage) != ("position", Path.unlink):
        assert f"{which}.safetensors" in caplog.text
        assert "the saved replay is computed anew" in caplog.text


def test_a_disk_that_is_full_is_one_line_and_leaves_the_last_position(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    truth, reports = run(None)
    stopped(tmp_path, 12)

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(position, "save_file", full)
        with pytest.raises(UserError, match=r"^cannot save the replay to [^\n]*free some space[^\n]*$") as error:
            run(tmp_path)
        assert no_room(error.value) is not None
    found, left = run(tmp_path)
    assert left < reports
    assert equal(bits(found), bits(truth))


def test_checkpoints_are_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often the position is saved."""
    written: list[int] = []
    own = saving.DiskStorage.save

    def counting(self: mg.DiskStorage, t: int, state: mg.TrainState) -> None:
        written.append(t)
        own(self, t, state)

    monkeypatch.setattr(saving.DiskStorage, "save", counting)
    run(tmp_path, checkpoints="binomial(3)")
    assert len(written) == len(set(written)) >= 3

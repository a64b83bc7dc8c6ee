"""Retrainings in a pool of processes are those of one process, whatever becomes of the processes."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil
import pytest
import torch
from torch import Tensor, nn

import metagradient as mg
from metagradient.errors import UserError
from metagradient.evaluation import GroundTruth, example_losses_of, groundtruth, subsets
from metagradient.evaluation.pool import Unsendable
from metagradient.training.batches import Batch

N, RUNS = 24, 5
G = torch.Generator().manual_seed(0)
DATA = {"x": torch.randn(N, 2, 6, 6, generator=G), "y": torch.arange(N) % 3}
QUERIES = {"x": torch.randn(4, 2, 6, 6, generator=G), "y": torch.arange(4) % 3}
KEPT = subsets(N, 0.3, RUNS, seed=0)


class Fated(mg.Classifier):
    """Dies in a worker process, at the third batch of its second run."""

    batches = 0

    def losses(self, batch: Batch) -> Tensor:
        self.batches += self.training
        if multiprocessing.parent_process() is not None and self.batches == 7 + 3:  # the probe, a run, and so far
            os.kill(os.getpid(), signal.SIGKILL)
        return super().losses(batch)


def truth(workers: int, folder: Path | None = None, kind: type[mg.Classifier] = mg.Classifier) -> GroundTruth:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.GELU(), nn.Flatten(), nn.Linear(48, 3))
    batches = mg.Batches(DATA, mg.epoch_plan(N, 8, 2, seed=0))
    return GroundTruth(kind(model, mg.SGD(0.9), 0.2), batches, QUERIES, folder=folder, workers=workers)


@pytest.fixture(scope="module")
def by_hand() -> Tensor:
    """What the trainings are without any of this, by one thread."""
    this, threads = truth(1), torch.get_num_threads()
    torch.set_num_threads(1)
    states = [mg.train(this.learner, this.batches, [mg.DataWeights(w.float())]) for w in KEPT]
    losses = torch.stack([example_losses_of(this.learner, state, QUERIES) for state in states])
    torch.set_num_threads(threads)
    return losses


@pytest.mark.slow
def test_two_processes_do_what_one_does(by_hand: Tensor, tmp_path: Path) -> None:
    pooled, told = truth(2, tmp_path), list[tuple[int, int]]()
    pooled.progress = lambda _, done, total: told.append((done, total))
    assert torch.equal(pooled.losses(KEPT), by_hand)
    assert pooled.runs == RUNS
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1] == (RUNS * 6, RUNS * 6)
    again = truth(1, tmp_path)
    assert torch.equal(again.losses(KEPT), by_hand)
    assert again.runs == 0


def test_where_the_pool_gives_up_the_rest_is_done_here_on_one_thread(
    by_hand: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One process has answered when another turns out not to read the job."""
    threads = list[int]()

    class Counted(mg.Classifier):
        def losses(self, batch: Batch) -> Tensor:
            threads.append(torch.get_num_threads())
            return super().losses(batch)

    def gives_up(job: Callable[..., object], arguments: Sequence[object], *_: object) -> Iterator[tuple[int, object]]:
        yield 1, job(arguments[1], lambda _: None)
        threads.clear()
        raise Unsendable("too little memory")

    monkeypatch.setattr(groundtruth, "spread", gives_up)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        this = truth(2, kind=Counted)
        assert torch.allclose(this.losses(KEPT), by_hand, atol=1e-5)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert set(threads) == {1}
    assert len(threads) == (RUNS - 1) * 7  # the steps of a run, and its queries
    assert this.runs == RUNS


def test_what_could_be_stacked_is_spread_too_if_asked(caplog: pytest.LogCaptureFixture) -> None:
    this = truth(2)
    torch.manual_seed(0)
    this.learner = mg.Classifier(nn.Sequential(nn.Flatten(), nn.Linear(72, 3)), mg.SGD(0.9), 0.2)
    stacked = this.losses(KEPT)
    with caplog.at_level("INFO"):
        this.at_once = 1
        torch.testing.assert_close(this.losses(KEPT), stacked)
    assert "spread over 2 processes" in caplog.text


def test_a_learner_that_cannot_travel_stays(by_hand: Tensor, caplog: pytest.LogCaptureFixture) -> None:
    this = truth(2)
    this.learner.schedule = lambda t: 0.2
    torch.testing.assert_close(this.losses(KEPT), by_hand)
    assert "cannot be sent" in caplog.text


def test_single_trainings_are_kept_one_by_one(tmp_path: Path, by_hand: Tensor) -> None:
    def stop(what: str, done: int, total: int) -> None:
        if done == 2 * 6 + 3:
            raise KeyboardInterrupt

    cut_short = truth(1, tmp_path)
    cut_short.progress = stop
    with pytest.raises(KeyboardInterrupt):
        cut_short.losses(KEPT)
    resumed = truth(1, tmp_path)
    torch.testing.assert_close(resumed.losses(KEPT), by_hand)
    assert (resumed.found, resumed.runs) == (2, RUNS - 2)


def test_a_killed_process_is_named_and_nothing_finished_is_lost(tmp_path: Path, by_hand: Tensor) -> None:
    before = set(multiprocessing.active_children())
    fated = truth(2, tmp_path, Fated)
    with pytest.raises(UserError, match=r"SIGKILL.*workers=1"):
        fated.losses(KEPT)
    assert set(multiprocessing.active_children()) <= before
    resumed = truth(1, tmp_path, Fated)
    torch.testing.assert_close(resumed.losses(KEPT), by_hand)
    assert 1 <= resumed.found == fated.runs < RUNS


def test_a_run_that_diverges_in_a_process_says_so() -> None:
    wild = truth(2)
    wild.learner.schedule = mg.Constant(1e30)
    with pytest.raises(UserError, match=r"the training loss is (nan|inf) at step \d .*learner.learning_rate"):
        wild.losses(KEPT)


SCRIPT = """
import sys
sys.path.insert(0, {folder!r})
from test_pool import KEPT, truth
import metagradient as mg

if __name__ == "__main__":
    this = truth(2)
    this.batches = mg.Batches(this.batches.examples, mg.epoch_plan(24, 8, 20000, seed=0))
    this.progress = lambda *_: print("busy", flush=True)
    this.losses(KEPT)
"""


def works(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=lambda s: s.name)
def test_no_process_outlives_the_one_that_asked(tmp_path: Path, how: signal.Signals) -> None:
    """Ctrl-C as a terminal sends it, to the whole group; and a kill that leaves nobody to clean up."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(folder=str(Path(__file__).parent)))
    with subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where tests run in the background
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "busy\n"
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) >= 2
        if how is signal.SIGINT:
            os.killpg(process.pid, how)
        else:
            process.send_signal(how)
        process.wait()
        deadline = time.monotonic() + 20
        while any(map(works, children)):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert process.stderr.read().count("Traceback") == (how is signal.SIGINT)  # its own, and no worker's

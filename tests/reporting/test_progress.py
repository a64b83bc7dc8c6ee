"""Progress bars: what they say, and that they vanish."""

import io
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from metagradient.replay.progress import ReplayBar
from metagradient.reporting import progress as module
from metagradient.reporting import terminal as terminal_module
from metagradient.reporting.estimate import Estimate, Stage
from metagradient.reporting.progress import Progress

Clock = Callable[[float], None]
METASTEP = {"training": (0.0, 1 / 3), "replay": (1 / 3, 1.0)}


@pytest.fixture
def wait(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Time passes only by calling this."""
    now = [1000.0]
    monkeypatch.setattr(module, "monotonic", lambda: now[0])

    def passes(seconds: float) -> None:
        now[0] += seconds

    return passes


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """A terminal to draw on."""
    screen = io.StringIO()
    drawn_on = Console(file=screen, force_terminal=True, width=100)
    monkeypatch.setattr(module, "console", lambda: drawn_on)
    return screen


def test_off_a_terminal_one_line_every_ten_seconds(wait: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "metagradient.progress")
    with Progress(heartbeat=9.9) as progress:
        report = progress.callback()
        for _ in progress.track(range(4), "descent"):
            for done in range(1, 11):
                wait(0.2)
                report("training", done, 10)
            for done in range(1, 11):
                wait(0.4)
                report("replay", done, 10)
    assert caplog.messages == [
        "descent 1/4, 0:00:14 left | replay 5 of 10 to go, 0:00:02 left",
        "descent 3/4, 0:00:03 left | replay 8 of 10 to go, 0:00:03 left",
        "descent 4/4 in 0:00:24",
    ]


def test_a_replay_runs_backwards_and_every_bar_vanishes(wait: Clock, terminal: io.StringIO) -> None:
    with Progress() as progress:
        report = progress.callback()
        for _ in progress.track(["one"], "descent"):
            for done in range(0, 101):
                wait(0.1)
                report("replay", done, 100)
                if done == 25:
                    progress._live.refresh()
                    assert "descent" in terminal.getvalue()
                    assert "75 of 100 to go, 0:00:0" in terminal.getvalue()
                    (bar,) = (column.render(progress._live.tasks[1]) for column in progress._live.columns[1:2])
                    assert (bar.completed, bar.total) == (75, 100)
            assert [task.description for task in progress._live.tasks] == ["descent"]
    assert progress._live.tasks == []


def test_bars_of_something_cut_short_go_with_their_step(terminal: io.StringIO) -> None:
    with Progress() as progress:
        report = progress.callback()
        for step in progress.track(range(2), "descent"):
            assert [bar.description for bar in progress._bars] == ["descent"]
            report("training", 3 + step, 10)  # and it never finishes
            report("replay", 1, 10)
    assert progress._bars == []


def test_an_error_inside_closes_all_bars(terminal: io.StringIO) -> None:
    def failing() -> None:
        with progress:
            progress.bar("training", 10).update(3)
            raise RuntimeError

    progress = Progress()
    with pytest.raises(RuntimeError):
        failing()
    assert progress._bars == []
    assert progress._live.tasks == []


def test_time_left_counts_down_while_nothing_moves(wait: Clock) -> None:
    bar = Progress().bar("training", 4)
    wait(10.0)
    bar.update(2)
    assert bar.state(module.monotonic()) == "2/4, 0:00:10 left"
    wait(3.0)
    assert bar.state(module.monotonic()) == "2/4, 0:00:07 left"


def test_an_endless_iterable_needs_a_total() -> None:
    with pytest.raises(TypeError, match="give total="):
        next(Progress().track(iter([1]), "descent"))
    assert list(Progress().track(iter([1, 2]), "descent", total=2)) == [1, 2]


def test_the_whole_experiment_has_a_bar_and_begins_each_line(wait: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "metagradient.progress")
    stages = [Stage("descent", 30.0, METASTEP), Stage("tuning", 5.0), Stage("judge", 10.0)]
    with Progress(stages, heartbeat=9.9) as progress:
        report = progress.callback()
        for _ in progress.track(range(10), "descent", stage="descent"):
            for name, seconds in (("training", 0.1), ("replay", 0.2)):  # a metastep takes 3 s
                for done in range(1, 11):
                    wait(seconds)
                    report(name, done, 10)
        for _ in progress.track(range(5), "judging", stage="judge"):  # nothing was to be tuned
            wait(4.0)
    lines = [line for line in caplog.messages if line.startswith("whole experiment")]
    # after 9.9 s of 30 + 0 + 20, thought to be 30 + 5 + 10; then what is left of the judging, at its own pace
    assert lines[0].startswith("whole experiment 22%, about 0:00:35 left | descent 3/10, 0:00:")
    assert lines[-1].startswith("whole experiment 91%, about 0:00:08 left | judging 3/5, 0:00:08 left")


def test_a_metastep_counts_its_training_as_a_third_and_never_goes_back(wait: Clock) -> None:
    with Progress([Stage("search", 1.0, METASTEP)]) as progress:
        report, shares = progress.callback(), []
        for _ in progress.track(range(2), "steps", stage="search"):
            for name in ("training", "replay"):
                for done in range(0, 5):
                    wait(1.0)
                    report(name, done, 4)
                    shares.append(progress._estimate.share)
        assert shares == sorted(shares)
        assert shares[3] == pytest.approx(0.5 * 1 / 3 * 3 / 4)
        assert shares[8] == pytest.approx(0.5 * (1 / 3 + 2 / 3 * 3 / 4))
    assert progress._estimate.share == 1


def test_a_resumed_descent_is_estimated_by_what_it_does_itself() -> None:
    estimate = Estimate([Stage("descent", 30.0), Stage("judging", 10.0)], now=0.0)
    estimate.enter("descent", 0.8, now=2.0)
    assert estimate.share == pytest.approx(0.6)
    assert estimate.seconds_left(2.0) is None
    estimate.move("descent", 0.9, now=8.0)  # 3 units in 8 s since the start, 6 of them in the descent
    assert estimate.seconds_left(8.0) == pytest.approx(6.0 + 10 * 8 / 3)
    assert estimate.seconds_left(9.0) == pytest.approx(5.0 + 10 * 8 / 3)


def test_a_stage_is_told_by_its_key_whatever_its_bar_says() -> None:
    stages = [Stage("train", 1.0), Stage("judge", 2.0), Stage("judge", 1.0)]
    with Progress(stages) as progress:
        first = progress.callback("train")
        for text in ("one text", "judge"):  # only the first outermost bar is the stage, and no text makes a bar one
            first(text, 1, 2)
            first(text, 2, 2)
            assert progress._estimate.share == pytest.approx(1 / 4)
        for done, name in ((3 / 4, "a"), (1.0, "b")):
            for _ in progress.track(["only"], name, stage="judge"):
                first("retraining", 1, 2)  # an inner bar, whatever the stage of its callback
            assert progress._estimate.share == pytest.approx(done)


def test_a_stage_that_was_not_planned_is_refused_by_name() -> None:
    with (
        Progress([Stage("train", 1.0)]) as progress,
        pytest.raises(ValueError, match="no stage 'judge' is planned, only train"),
    ):
        progress.bar("judging", 3, stage="judge")
    with Progress() as progress:
        progress.bar("judging", 3, stage="judge")  # nothing is planned, nothing is estimated


def test_what_a_bar_is_called_is_shown_and_not_obeyed(wait: Clock, terminal: io.StringIO) -> None:
    with Progress() as progress:
        for _ in progress.track(range(3), "methods=[cosine] [/red] \x1b]0;taken\x07"):
            wait(1.0)
            progress._live.refresh()
    drawn = terminal.getvalue()
    assert r"methods=[cosine] [/red] \x1b]0;taken\x07" in drawn
    assert "\x1b]" not in drawn


def test_a_replays_own_bar_obeys_nothing_either() -> None:
    screen = io.StringIO()
    bar = ReplayBar()
    bar._bars.live.console = Console(file=screen, force_terminal=True, width=120)
    with bar:
        bar("[/red] \x1b]0;taken\x07", 1, 2)
        bar._bars.refresh()
    assert r"[/red] \x1b]0;taken\x07" in screen.getvalue()
    assert "\x1b]" not in screen.getvalue()


def test_log_lines_obey_nothing_on_the_terminal_and_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(terminal_module, "console", lambda: Console(file=screen, force_terminal=True, width=100))
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # pytest's own, which a lone surrogate would end
    with terminal_module.logging_to(tmp_path / "run.log"):
        logging.getLogger("metagradient.test").warning("[/red] methods=[cosine] \x1b[2J\ud800\nnext\tline")
    assert r"warning: [/red] methods=[cosine] \x1b[2J\ud800" in screen.getvalue()
    assert r"[/red] methods=[cosine] \x1b[2J\ud800" + "\nnext\tline\n" in (tmp_path / "run.log").read_text()

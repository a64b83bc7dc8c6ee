"""Progress bars: what they say, and that they vanish."""

import io
import logging
from collections.abc import Callable

import pytest
from rich.console import Console

from metagradient.reporting import progress as module
from metagradient.reporting.progress import Progress

Clock = Callable[[float], None]


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

"""Progress bars: the whole experiment, its outer steps, and in them training and replay, whose bar runs backwards."""

import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from datetime import timedelta
from time import monotonic
from types import TracebackType
from typing import Self, TypeVar

from rich import progress as rich_progress
from rich.progress_bar import ProgressBar
from rich.table import Column
from rich.text import Text

from metagradient.escapes import visible
from metagradient.reporting.estimate import Estimate, Stage
from metagradient.reporting.terminal import FILE_ONLY, console

log = logging.getLogger("metagradient.progress")
T = TypeVar("T")

_REDRAW = 0.1  # seconds between two updates of one bar: a training step takes a few hundred microseconds
_PATIENCE = 0.5  # seconds before an inner bar appears: shorter ones would only flicker


class Progress:
    """All bars of an experiment, one below the other; each vanishes when it is done.

    On a terminal they are drawn on stderr. In any case a plain line with all open bars goes to the log every
    `heartbeat` seconds, so that a log file or a pipe shows how far the run is. With `stages`, the plan of the whole
    experiment, a first bar and the beginning of each line say how much time is left for all of it; an outermost bar
    names the stage it is of by its key. A `stage` is ignored where no stages are planned.

        with Progress([Stage("descent", 60), Stage("retraining", 15)]) as progress:
            for step in progress.track(range(20), "metagradient descent", stage="descent"):
                fit(..., progress=progress.callback())
    """

    def __init__(self, stages: Sequence[Stage] = (), heartbeat: float = 10.0) -> None:
        self._heartbeat = heartbeat
        self._estimate = Estimate(stages, monotonic())
        self._last_line = monotonic()
        self._bars: list[Bar] = []
        self._live = rich_progress.Progress(
            rich_progress.TextColumn("{task.description}", markup=False),
            _BarColumn(),
            _CountColumn(table_column=Column(no_wrap=True)),
            console=console(),
            transient=True,
            refresh_per_second=5,
            redirect_stdout=sys.stdout.isatty(),  # piped results must stay out of the bars' stream
            disable=not console().is_terminal,
        )

    def __enter__(self) -> Self:
        if self._estimate.stages:
            self._live.add_task("whole experiment", total=1.0, bar=_WholeBar(self._estimate))
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for bar in reversed(self._bars.copy()):
            bar.close()
        for task in self._live.task_ids:
            self._live.remove_task(task)
        self._live.stop()

    def track(
        self, steps: Iterable[T], description: str, total: int | None = None, stage: str | None = None
    ) -> Iterator[T]:
        """Yield from `steps` under a bar; a step counts as done when the next one is asked for."""
        if total is None:
            if not isinstance(steps, Sized):
                raise TypeError(f"the steps of {description!r} have no length; give total=...")
            total = len(steps)
        bar = self.bar(description, total, patience=0.0, stage=stage)
        try:
            for step in steps:
                yield step
                for inner in reversed(self._bars[self._bars.index(bar) + 1 :]):
                    inner.close()  # left open by something that was cut short
                bar.advance()
        finally:
            bar.close()

    def bar(
        self,
        description: str,
        total: int,
        reverse: bool = False,
        done: int = 0,
        patience: float = _PATIENCE,
        stage: str | None = None,
    ) -> "Bar":
        """A new bar below the open ones, at `done`. A `reverse` bar starts full and empties: it counts what is left.

        Where it is the outermost, it is the planned stage of the key `stage`.

        Raises:
            ValueError: no such stage is planned.
        """
        if self._bars:
            stage = None
        if stage is not None:
            self._estimate.enter(stage, done / max(total, 1), monotonic())
        bar = Bar(self, description, total, reverse, done, patience, depth=len(self._bars), stage=stage)
        self._bars.append(bar)
        return bar

    def callback(self, stage: str | None = None) -> Callable[[str, int, int], None]:
        """A function `(description, done, total)` for code that knows no bars: it opens and moves them.

        Bars are told apart by their description; a `replay` runs backwards. An outermost one is the planned stage of
        the key `stage`.
        """
        bars: dict[str, Bar] = {}

        def report(description: str, done: int, total: int) -> None:
            bar = bars.get(description)
            if bar is not None and not bar.closed and (done < bar.done or total != bar.total):
                bar.close()  # it was cut short, and this is the next one of its name
            if bar is None or bar.closed:
                if done >= total:
                    return
                bar = bars[description] = self.bar(
                    description, total, description.startswith("replay"), done, stage=stage
                )
            bar.update(done)

        return report

    def _share(self) -> float:
        """The share of the outermost bar that is done; the bars within its current step count as parts of that step."""
        share = within = 0.0
        for outer, bar in zip(reversed([None, *self._bars[:-1]]), reversed(self._bars), strict=True):
            share = min(1.0, (bar.done + within) / max(bar.total, 1))
            low, high = self._estimate.phases.get(bar.description, (0.0, 1.0)) if outer else (0.0, 1.0)
            within = low + (high - low) * share
        return share

    def _touched(self, now: float) -> None:
        if now - self._last_line < self._heartbeat:
            return
        self._last_line = now
        whole = [f"whole experiment {_WholeBar(self._estimate).state(now)}"] if self._estimate.stages else []
        self._say(" | ".join([*whole, *(f"{bar.description} {bar.state(now)}" for bar in self._bars)]))

    def _say(self, line: str) -> None:
        log.info(line, extra=FILE_ONLY if console().is_terminal else None)


class Bar:
    """One bar; made by `Progress.bar`."""

    def __init__(
        self,
        progress: Progress,
        description: str,
        total: int,
        reverse: bool,
        done: int,
        patience: float,
        depth: int,
        stage: str | None,
    ) -> None:
        self.stage = stage
        self.description, self.total, self.reverse = description, total, reverse
        self.done, self.closed = done, False
        self._first = done
        self._progress = progress
        self._begun = self._moved = self._drawn = monotonic()
        self._patience = patience
        self._task = progress._live.add_task(
            "  " * depth + visible(description), total=total, visible=patience == 0, bar=self
        )

    def advance(self, steps: int = 1) -> None:
        """`steps` more are done."""
        self.update(self.done + steps)

    def update(self, completed: int) -> None:
        """`completed` steps of the total are done; at the total the bar vanishes."""
        self.done = completed
        now = self._moved = monotonic()
        if completed >= self.total:
            self.close()
        elif now - self._drawn > _REDRAW:
            self._drawn = now
            if (stage := self._progress._bars[0].stage) is not None:
                self._progress._estimate.move(stage, self._progress._share(), now)
            self._progress._live.update(self._task, completed=completed, visible=now - self._begun >= self._patience)
            self._progress._touched(now)

    def close(self) -> None:
        """Remove the bar, wherever it stands."""
        if self.closed:
            return
        self.closed = True
        if self.stage is not None:
            self._progress._estimate.leave(monotonic(), self.stage)
        self._progress._bars.remove(self)
        self._progress._live.remove_task(self._task)
        seconds = monotonic() - self._begun
        if seconds >= self._progress._heartbeat:
            self._progress._say(f"{self.description} {self.done}/{self.total} in {_clock(seconds)}")

    def state(self, now: float) -> str:
        """`3/20, 0:01:12 left`, or for a reverse bar `400 of 3125 to go, 0:00:09 left`."""
        left = self.total - self.done
        count = f"{left} of {self.total} to go" if self.reverse else f"{self.done}/{self.total}"
        if not self._first < self.done <= self.total:
            return count
        seconds = (self._moved - self._begun) * left / (self.done - self._first) - (now - self._moved)
        return f"{count}, {_clock(max(0.0, seconds))} left"


class _WholeBar:
    """An estimate in the shape of a `Bar`, for the columns that draw bars."""

    total, reverse = 1.0, False

    def __init__(self, estimate: Estimate) -> None:
        self._estimate = estimate

    @property
    def done(self) -> float:
        return self._estimate.share

    def state(self, now: float) -> str:
        """`34 %, about 0:02:10 left`."""
        left = self._estimate.seconds_left(now)
        return f"{self.done:.0%}" + ("" if left is None else f", about {_clock(left)} left")


class _BarColumn(rich_progress.BarColumn):
    def render(self, task: rich_progress.Task) -> ProgressBar:
        bar: Bar | _WholeBar = task.fields["bar"]
        completed = bar.total - bar.done if bar.reverse else bar.done
        colour = "magenta" if bar.reverse else "cyan"
        return ProgressBar(
            total=max(bar.total, 1), completed=completed, width=30, complete_style=colour, finished_style=colour
        )


class _CountColumn(rich_progress.ProgressColumn):
    def render(self, task: rich_progress.Task) -> Text:
        bar: Bar | _WholeBar = task.fields["bar"]
        return Text(bar.state(monotonic()), style="dim", no_wrap=True)


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))

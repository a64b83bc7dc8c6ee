"""A bar that runs backwards: from the last step of the run to its first."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from metagradient.escapes import visible


class ReplayBar:
    """`bar(description, done, total)` draws `total - done` steps to go, full at first and empty at the end."""

    def __init__(self, enabled: bool = True) -> None:
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("step {task.fields[left]} of {task.total}"),
            TimeRemainingColumn(),
            transient=True,
            disable=not enabled,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def __call__(self, description: str, done: int, total: int) -> None:
        if description not in self._tasks:
            self._tasks[description] = self._bars.add_task(visible(description), total=total, left=total)
        self._bars.update(self._tasks[description], completed=done, left=total - done)

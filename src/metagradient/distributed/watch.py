"""A process learns that another of its group has ended, also while it asks it nothing."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from time import monotonic, sleep
from typing import Any

import torch.distributed as dist

from metagradient.distributed.group import Group, ProcessLost, is_no_answer

_EVERY = 0.5  # seconds between two looks
_SOON = 3.0  # seconds in which whoever ends says why
_PATIENCE = 10.0  # seconds in which a process comes to its next call to the others, which fails with a better traceback
_KEY = "metagradient/ended"


@contextmanager
def watched(group: Group, ended: Callable[[], str | None] = lambda: None) -> Iterator[None]:
    """Inside, this process goes on for seconds only after another has ended; where it fails, the others are told.

    Args:
        group: all of them must be inside.
        ended: asked now and then; a line about a process that ended without a word of its own.

    Raises:
        ProcessLost: another process has ended, with the line that says why.
    """
    if group.alone:
        yield
        return
    watch = _Watch(group, ended)
    watch.start()
    lost = ""
    try:
        yield
    except BaseException as error:
        lost = watch.why(error)
        if not lost:
            watch.leave(f"process {group.rank} ended: {(str(error) or type(error).__name__).strip().splitlines()[0]}")
            raise
    finally:
        watch.stop()
    if lost:  # out here it is no longer an interrupt, nor caused by one
        raise ProcessLost(lost)


class _Watch(threading.Thread):
    """Looks for the word that a process left behind, and interrupts the main thread."""

    def __init__(self, group: Group, ended: Callable[[], str | None]) -> None:
        super().__init__(name="watch", daemon=True)
        self._group, self._ended, self._over = group, ended, threading.Event()
        self._store: Any = dist.distributed_c10d._get_default_store()
        self.interrupted = False

    def run(self) -> None:
        while not self._over.wait(_EVERY):
            if not self.word():
                continue
            if not self._over.wait(_PATIENCE):
                self.interrupted = True
                handled = [s for s in (signal.SIGINT, signal.SIGTERM) if callable(signal.getsignal(s))]
                for s in handled[:1]:
                    signal.pthread_kill(threading.main_thread().ident or 0, s)  # wakes one that sleeps, too
            if not self._over.wait(2 * _PATIENCE):
                os._exit(1)  # within a call that nothing interrupts
            return

    def word(self, seconds: float = 0.0) -> str:
        """Who has ended, and why; "" where nobody has, within so many seconds."""
        until = monotonic() + seconds
        while True:
            try:
                said = bytes(self._store.get(_KEY)).decode() if self._store.check([_KEY]) else ""
                if not said and (said := self._ended() or ""):
                    self.leave(said)
            except RuntimeError:  # process 0 holds the store
                said = f"process 0 of {self._group.size} has ended, and with it the run"
            if said or monotonic() >= until:
                return said
            sleep(0.1)

    def why(self, error: BaseException) -> str:
        """Who has ended and why, where that is what this error comes from; else ""."""
        unanswered = isinstance(error, RuntimeError) and is_no_answer(error)  # of Lightning's own calls
        if isinstance(error, ProcessLost) or unanswered or self.interrupted:
            return self.word(_SOON) or str(error).strip().partition("\n")[0] or "another process has ended"
        stopped = isinstance(error, KeyboardInterrupt | SystemExit)  # a launcher ends those that are left
        return self.word() if stopped else ""

    def leave(self, line: str) -> None:
        """Say who has ended and why, where nobody has before."""
        with suppress(RuntimeError):
            self._store.compare_set(_KEY, "", line)

    def stop(self) -> None:
        """No more looks."""
        self._over.set()
        self.join()

"""Ctrl-C and SIGTERM end a run wherever they come."""

import _thread
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_SOON = 0.01
"""Seconds until an interrupt that was lost comes again."""


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM is Ctrl-C, and neither is lost.

    Python only notes an exception within a finaliser (a `__del__`, run by the garbage collector at any time) and goes
    on; a KeyboardInterrupt that ended there is raised again soon after, and never after this block.
    """
    terminated, unraisable = signal.getsignal(signal.SIGTERM), sys.unraisablehook
    if terminated == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # Lightning alone would note it and go on
    coming: list[threading.Timer] = []
    handled = [s for s in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(s) is signal.default_int_handler]

    def again(lost: Any) -> None:
        if handled and issubclass(lost.exc_type, KeyboardInterrupt):
            later = threading.Timer(_SOON, _thread.interrupt_main, handled[:1])  # in here it would be lost as well
            later.daemon = True
            for earlier in coming:
                earlier.cancel()
            coming[:] = [later]
            later.start()
        else:
            unraisable(lost)

    sys.unraisablehook = again
    try:
        yield
        for later in coming:
            later.join()
    finally:
        sys.unraisablehook = unraisable
        if terminated == signal.SIG_DFL:
            signal.signal(signal.SIGTERM, terminated)
        for later in coming:
            later.cancel()
            later.join()


def was_interrupted(error: BaseException) -> bool:
    """Whether an error is an interrupt, or what a library made of one: Lightning exits, an import fails."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        if isinstance(current, KeyboardInterrupt):
            return True
        seen.add(id(current))
        current = current.__cause__ or current.__context__
    return False

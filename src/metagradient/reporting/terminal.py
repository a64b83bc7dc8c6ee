"""The one console that bars and log lines share, and the logging of a run to it and to run.log."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from rich.console import Console
from rich.text import Text

from metagradient.escapes import visible

FILE_ONLY = {"file_only": True}
"""Pass as `extra=` to a logging call whose message belongs in run.log but not on a terminal."""

_STYLES = {logging.WARNING: "yellow", logging.ERROR: "red", logging.CRITICAL: "bold red"}
_OURS = ("metagradient", "__main__")


@cache
def console() -> Console:
    """The console on stderr. Live bars and log lines must go through the same one, or they tear each other up."""
    return Console(stderr=True)


@contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """Log everything from INFO up, Python warnings included, to `path`; to the terminal what concerns its reader.

    That is our own messages and everybody's warnings. Handlers, level and warnings are as before afterwards.
    """
    root = logging.getLogger()
    level = root.level
    to_file = _LogFile(path, encoding="utf-8")
    to_file.setFormatter(_Visible("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    handlers: list[logging.Handler] = [to_file, _TerminalHandler()]
    for handler in handlers:
        root.addHandler(handler)
    if level == logging.NOTSET or level > logging.INFO:
        root.setLevel(logging.INFO)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        root.setLevel(level)
        for handler in handlers:
            root.removeHandler(handler)
            handler.close()


class _LogFile(logging.FileHandler):
    """Goes without what a full disk does not take: the run itself will say so."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)

    def close(self) -> None:
        with suppress(OSError):
            super().close()


class _Visible(logging.Formatter):
    """A log is read on a terminal as well."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record), keep="\n\t")


class _TerminalHandler(logging.Handler):
    """Prints the first line of each message through the shared console, so that bars stay below it."""

    def filter(self, record: logging.LogRecord) -> bool:
        ours = record.name.split(".")[0] in _OURS
        return not getattr(record, "file_only", False) and (ours or record.levelno >= logging.WARNING)

    def emit(self, record: logging.LogRecord) -> None:
        first_line = visible(record.getMessage().partition("\n")[0])
        prefix = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        try:
            console().print(Text(prefix + first_line, style=_STYLES.get(record.levelno, "")), soft_wrap=True)
        except Exception:
            self.handleError(record)

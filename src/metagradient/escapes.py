"""Text from anywhere, made fit for a terminal: it is shown, and moves no cursor; and terminals of any kind."""

import io
import os
import re
import sys

_OBEYED = re.compile(
    "[\x00-\x1f\x7f-\x9f"  # control characters, the escape that begins a sequence among them
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # those that turn the direction of writing round
    "\u2028\u2029"  # line ends of Unicode
    "\ud800-\udfff]"  # halves of characters, which no encoding takes
)


def visible(text: str, keep: str = "") -> str:
    r"""Text in which characters that a terminal obeys are shown, as `\x1b` or `\u202e`, but for those in `keep`."""
    return _OBEYED.sub(lambda found: found[0] if found[0] in keep else ascii(found[0])[1:-1], text)


def speak_anywhere() -> None:
    """No terminal that lacks a character, and no stream that is closed, ends a program."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (for as long as the process lives)
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")

"""What a terminal would obey is shown."""

import pytest

from metagradient.escapes import visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("\x9b2J\x7f\x00\r\n\t", r"\x9b2J\x7f\x00\r\n\t"),
        ("\u202etxt.exe\u2066 \u2028", r"\u202etxt.exe\u2066 \u2028"),
        ("\ud83d", r"\ud83d"),
        ("é ü 漢 – ▲ 😀 [/red] \\n", "é ü 漢 – ▲ 😀 [/red] \\n"),
    ],
)
def test_control_characters_are_shown(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_lines_can_be_kept() -> None:
    assert visible("a\n\tb\x1b", keep="\n\t") == "a\n\tb\\x1b"

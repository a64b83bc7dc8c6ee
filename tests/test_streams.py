"""Random streams have names, and keep their numbers."""

import ast
import inspect
from enum import IntEnum
from pathlib import Path

import pytest

from metagradient import streams
from metagradient.training.random import fold_in

ROOT = Path(__file__).parents[1]
FILES = sorted([*(ROOT / "src").rglob("*.py"), *(ROOT / "experiments").glob("*.py")])
STORIES = [
    found
    for _, found in inspect.getmembers(streams, inspect.isclass)
    if issubclass(found, IntEnum) and found is not IntEnum
]


def bare_numbers(source: str) -> list[int]:
    """Lines in which a stream is a number without a name."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    ours = [c for c in calls if getattr(c.func, "id", getattr(c.func, "attr", "")) in ("fold_in", "generator")]
    return [c.lineno for c in ours if any(isinstance(a, ast.Constant) and a.value != 0 for a in c.args[1:])]


def test_every_stream_has_a_name() -> None:
    found = {path.name: bare_numbers(path.read_text(encoding="utf-8")) for path in FILES}
    assert {name: lines for name, lines in found.items() if lines} == {}
    assert bare_numbers("fold_in(cfg.seed, 3, i)") == [1]


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.__name__)
def test_streams_of_a_story_are_distinct(story: type[IntEnum]) -> None:
    assert len(story.__members__) == len(set(story.__members__.values())), "an alias: two names for one stream"
    assert len({fold_in(7, member) for member in story}) == len(story)


def test_a_named_stream_is_its_number() -> None:
    assert fold_in(3, streams.Selection.JUDGE, 2) == fold_in(3, 3, 2)

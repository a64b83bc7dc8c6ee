"""Every override that a message of ours advises exists: keys as some experiment has them, options of groups by name."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

ROOT = Path(__file__).parents[2]
KEY = r"[~+]*([a-z_]\w*(?:[./]\w+)*)=([\w.-]*)"
SET = re.compile(rf"set (?:for example )?((?:{KEY}[^ ]*(?: and |, or | or | )?)+)")
DOTTED = re.compile(rf"(?<![\w.{{/]){KEY}")
FREE = ("learner.arguments.", "model.lora.", "model.image_options.", "model.text_options.", "hydra.")
"""Settings of a learner of the user's own, of what is null until it is given, and of launchers and sweepers that are installed apart."""


LISTED = {"share", "rows", "split"}
"""Settings of one of several sources, each in braces in their list."""


def messages(path: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of every string of a file that is no docstring; what is filled in is {}."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documents = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and isinstance(node.body[0], ast.Expr)
    }
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield node.lineno, "".join(p.value if isinstance(p, ast.Constant) else "{}" for p in node.values)  # type: ignore[misc]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documents | inside:
            yield node.lineno, node.value


@cache
def known() -> tuple[set[str], dict[str, set[str]]]:
    """All dotted keys of all experiments, and the options of their groups, as the files have them."""
    keys: set[str] = set()
    groups: dict[str, set[str]] = {}
    for file in (ROOT / "conf").rglob("*.yaml"):
        *_, group = ("", *file.relative_to(ROOT / "conf").parts[:-1])
        content: Any = OmegaConf.to_container(OmegaConf.load(file))
        if group in ("", "experiment", "debug", "grid"):  # settings of the whole configuration
            keys |= set(dotted(content))
        else:
            keys |= {group, *dotted(content, f"{group}.")}
        if group:
            groups.setdefault(group, set()).add(file.stem)
    return keys, groups


def dotted(node: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from dotted(value, f"{prefix}{key}.")


def unresolved(text: str) -> list[str]:
    """The overrides in a text that nothing has: whatever follows `set`, and all dotted keys and groups."""
    keys, groups = known()
    told = {match.groups() for part in SET.finditer(text) for match in re.finditer(KEY, part[0])}
    told |= {(key, value) for key, value in DOTTED.findall(text) if "." in key or key in groups}
    return [
        f"{key}={value}"
        for key, value in sorted(told)
        if key not in LISTED
        and not key.startswith(FREE)
        and (value not in {*groups[key], "", "NAME", "...", "null", "None"} if key in groups else key not in keys)
    ]


def test_all_advice_exists() -> None:
    paths = [*(ROOT / "src").rglob("*.py"), *(ROOT / "experiments").glob("*.py")]
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {', '.join(lost)}"
        for path in sorted(paths)
        for line, text in messages(path)
        if (lost := unresolved(text))
    ]
    assert wrong == []


@pytest.mark.parametrize("text", ["set trainer.max_epochs=3", "set data=mnits", "set learner.momentum=0.9, or not"])
def test_wrong_advice_is_seen(text: str) -> None:
    assert unresolved(text)

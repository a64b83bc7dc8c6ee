"""Ranges of settings, stated once beside their types and checked before anything runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from typing import Any

from metagradient.errors import UserError


@dataclass(frozen=True)
class Range:
    """What a number may be.

    Attributes:
        whole: an integer.
        least: the smallest value; `above`: it must be larger than this.
        most: the largest value; `below`: it must be smaller than this.
        nullable: null may stand in its place.
        each: the setting is a list of such numbers.
        words: words that may stand in its place.
    """

    whole: bool = False
    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None
    nullable: bool = False
    each: bool = False
    words: tuple[str, ...] = ()

    def holds(self, value: Any) -> bool:
        """Whether a single value is in the range."""
        if isinstance(value, bool) or not isinstance(value, int if self.whole else int | float):
            return False
        return (
            math.isfinite(value)
            and (self.least is None or value >= self.least)
            and (self.above is None or value > self.above)
            and (self.most is None or value <= self.most)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        bounds = [(">=", self.least), (">", self.above), ("<=", self.most), ("<", self.below)]
        limits = " and ".join(f"{sign} {bound:g}" for sign, bound in bounds if bound is not None)
        words = "".join(f", or {word}" for word in (*self.words, *(["null"] if self.nullable else [])))
        return f"{'an integer' if self.whole else 'a number'} {limits}".rstrip() + words


def number(default: Any, *, each: bool = False, **bounds: Any) -> Any:
    """A field whose value, or with `each` every one of its values, lies in a range."""
    metadata = {"range": Range(each=each, **bounds)}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def check(cfg: Mapping[str, Any], schema: type, prefix: str = "") -> None:
    """Refuse the first number of `cfg` that is out of its range.

    Raises:
        UserError: names the setting, the range, the value, and a value that works.
    """
    for setting in fields(schema):
        if setting.name not in cfg:
            continue
        key, value = f"{prefix}{setting.name}", cfg[setting.name]
        inner = setting.default_factory
        if isinstance(inner, type) and is_dataclass(inner):
            if isinstance(value, Mapping) or hasattr(value, "items"):
                check(value, inner, f"{key}.")
            continue
        allowed: Range | None = setting.metadata.get("range")
        if allowed is None or (value is None and allowed.nullable) or value in allowed.words:
            continue
        values = value if allowed.each else [value]
        if not isinstance(values, Sequence | list) and type(values).__name__ != "ListConfig":
            raise UserError(f"{key} must be a list, not '{value}': set {key}=[{_example(setting.default)}]")
        wrong = next((x for x in values if not allowed.holds(x)), None) if list(values) else None
        if wrong is not None or any(x is None for x in values):
            default = inner() if callable(inner) else setting.default
            example = next(iter(default), 1) if isinstance(default, list) else default
            if example is None:
                example = allowed.least if allowed.least is not None else 1
            shown = (
                f"[{example:g}]" if allowed.each else f"{example:g}" if not isinstance(example, bool) else str(example)
            )
            what = "each of them must" if allowed.each else "must"
            raise UserError(f"{key}: {what} be {allowed}, not '{wrong}': set {key}={shown}".replace(": must", " must"))


def _example(default: Any) -> str:
    return "1" if default is MISSING else str(default)

"""Ranges of settings, stated once beside their types and checked before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from math import isfinite
from typing import Any

from metagradient.errors import UserError

_LARGEST = 2**63
"""What torch counts with ends here."""


@dataclass(frozen=True)
class Range:
    """What a number, or each number of a list, may be.

    Attributes:
        whole: an integer.
        least: the smallest value; `above`: it must be larger than this.
        most: the largest value; `below`: it must be smaller than this.
        share: a share, above 0 and below 1, may stand in the place of an integer.
        nullable: null may stand in its place.
        words: words (or single numbers) that may stand in its place.
        each: the setting is a list of such numbers; `some`: of at least one, `distinct`: of none twice, `count`: of so many.
        example: a value that works, for the refusal.
    """

    whole: bool = False
    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None
    share: bool = False
    nullable: bool = False
    words: tuple[str | int, ...] = ()
    each: bool = False
    some: bool = False
    distinct: bool = False
    count: int | None = None
    example: Any = None

    def holds(self, value: Any) -> bool:
        """Whether a single value may stand."""
        if value is None or isinstance(value, bool):
            return value is None and self.nullable
        if value in self.words:
            return True
        if self.share and isinstance(value, float):
            return 0 < value < 1
        if not isinstance(value, int if self.whole else int | float):
            return False
        return (
            (isinstance(value, int) or isfinite(value))
            and abs(value) < (_LARGEST if self.whole else float("inf"))
            and (self.least is None or value >= self.least)
            and (self.above is None or value > self.above)
            and (self.most is None or value <= self.most)
            and (self.below is None or value < self.below)
        )

    def check(self, key: str, value: Any) -> None:
        """Refuse a value of the setting `key`.

        Raises:
            UserError: names the setting, the range, the value, and a value that works.
        """
        if not self.each:
            if not self.holds(value):
                raise UserError(f"{key} must be {self}, not '{shown(value)}': set {key}={shown(self._works())}")
            return
        if value is None and self.nullable:
            return
        example = self._works()
        fix = f"set {key}={shown(example if isinstance(example, list) else [example])}"
        check_list(key, value, fix, some=self.some, distinct=self.distinct)
        if self.count is not None and len(value) != self.count:
            raise UserError(f"{key} must be {self.count} numbers, not {len(value)}: {fix}")
        for item in value:
            if item is None or not self.holds(item):
                raise UserError(f"{key}: each of them must be {self}, not '{shown(item)}': {fix}")

    def _works(self) -> Any:
        if self.example is not None:
            return self.example
        return self.least if self.least is not None else 1

    def __str__(self) -> str:
        bounds = [(">=", self.least), (">", self.above), ("<=", self.most), ("<", self.below)]
        limits = " and ".join(f"{sign} {_brief(bound)}" for sign, bound in bounds if bound is not None)
        others = (*(["a share in (0, 1)"] if self.share else []), *map(str, self.words))
        ends = (*others, *(["null"] if self.nullable and not self.each else []))
        return f"{'an integer' if self.whole else 'a number'} {limits}".rstrip() + "".join(
            f", or {end}" for end in ends
        )


@dataclass(frozen=True)
class Names:
    """A list of names, none of them twice; `some`: at least one, `nullable`: null may stand in its place."""

    some: bool = False
    example: Any = None
    nullable: bool = False

    def check(self, key: str, value: Any) -> None:
        """Refuse what is no such list.

        Raises:
            UserError: names the setting and what is wrong with it.
        """
        if value is not None or not self.nullable:
            check_list(key, value, f"set {key}={shown(self.example or [])}", some=self.some, distinct=True)


@dataclass(frozen=True)
class Settings:
    """A group of settings, which `schema` describes."""

    schema: type
    nullable: bool = False

    def check(self, key: str, value: Any) -> None:
        """Refuse what is no such group, lacks a setting, has one too many, or one that is out of its range.

        Raises:
            UserError: names the setting and what is wrong with it.
        """
        if value is None and self.nullable:
            return
        known = {setting.name: _default(setting) for setting in fields(self.schema)}
        first = next(iter(known))
        fix = f"set {key}={'null' if self.nullable else f'{{{first}: {shown(known[first])}, ...}}'}"
        if not isinstance(value, Mapping):
            raise UserError(
                f"{key} must be settings in braces{', or null' * self.nullable}, not '{shown(value)}': {fix}"
            )
        for name in (name for name in value if name not in known):
            raise UserError(f"no setting {key}.{name}; there are: {', '.join(known)}")
        for name in (name for name in known if name not in value):
            raise UserError(f"{key}.{name} is missing: set {key}.{name}={shown(known[name])}")
        check(value, self.schema, f"{key}.")


@dataclass(frozen=True)
class Braces:
    """Settings in braces that the schema does not know; `target`: what is built from them, for an example."""

    target: str = ""
    nullable: bool = False

    def check(self, key: str, value: Any) -> None:
        """Refuse what is not in braces, or names nothing to be built.

        Raises:
            UserError: names the setting and what is wrong with it.
        """
        if value is None and self.nullable:
            return
        if not isinstance(value, Mapping):
            fix = "null" if self.nullable else f"{{_target_: {self.target}}}" if self.target else "{}"
            ends = ", or null" if self.nullable else ""
            raise UserError(f"{key} must be settings in braces{ends}, not '{shown(value)}': set {key}={fix}")
        if self.target and "_target_" not in value:
            raise UserError(f"{key} does not say what it is: set {key}._target_={self.target}")


def number(default: Any, **bounds: Any) -> Any:
    """A field whose value, or with `each` every one of its values, lies in a range."""
    bounds.setdefault("example", default)
    metadata = {"check": Range(**bounds)}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def names(*default: str, some: bool = False) -> Any:
    """A field that is a list of names."""
    check = Names(some, list(default))
    return field(default_factory=lambda: list(default), metadata={"check": check})


def settings(schema: type, nullable: bool = False) -> Any:
    """A field that is a group of settings."""
    return field(default_factory=schema, metadata={"check": Settings(schema, nullable)})


def braces(target: str = "", *, nullable: bool = False) -> Any:
    """A field in braces: what `target` is one example of, or whatever its users make of it."""
    return field(default=None, metadata={"check": Braces(target, nullable)})


def check(cfg: Mapping[str, Any], schema: type, prefix: str = "") -> None:
    """Refuse the first setting of `cfg`, plain values throughout, that is out of its range.

    Raises:
        UserError: names the setting, the range, the value, and a value that works.
    """
    for setting in fields(schema):
        if setting.name not in cfg:
            continue
        key, value = f"{prefix}{setting.name}", cfg[setting.name]
        if "check" in setting.metadata:
            setting.metadata["check"].check(key, value)
        elif setting.type in ("bool", bool) and not isinstance(value, bool):
            raise UserError(f"{key} must be true or false, not '{shown(value)}': set {key}={shown(setting.default)}")


def check_list(key: str, value: Any, fix: str, *, some: bool, distinct: bool) -> None:
    """Refuse what is no list, an empty one where there must be `some`, and a value that stands twice.

    Raises:
        UserError: names the setting and what is wrong with it.
    """
    if not isinstance(value, list):
        raise UserError(f"{key} must be a list, not '{shown(value)}': {fix}")
    if some and not value:
        raise UserError(f"{key} must not be empty: {fix}")
    twice = next((item for i, item in enumerate(value) if item in value[:i]), None) if distinct else None
    if twice is not None:
        once = [item for i, item in enumerate(value) if item not in value[:i]]
        raise UserError(f"{key} has '{shown(twice)}' twice, and each is done once: set {key}={shown(once)}")


def shown(value: Any) -> str:
    """A value as it is written on the command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return "[" + ",".join(map(shown, value)) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {shown(item)}" for key, item in value.items()) + "}"
    return f"{value:.10g}" if isinstance(value, float) else str(getattr(value, "value", value))


def _brief(bound: float) -> str:
    return "2^63" if bound == _LARGEST else f"{bound:.10g}"


def _default(setting: Field[Any]) -> Any:
    made = setting.default_factory() if callable(setting.default_factory) else setting.default
    return None if made is MISSING else made

"""`report.html`: one self-contained page to browse what a run says about single examples.

It loads nothing, works from a file, and can be mailed. What data say may come from anybody: it travels as JSON, in which
no character can end the block, and a script of ours writes it as text; the page's policy runs no other script.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from metagradient.reporting.pages.pictures import Album

_BINS = 41
_PICTURES = 32 * 2**20  # bytes of images in a page
_WORDS = 1000  # characters of an example that are shown
_TOKENS = 512  # tokens, of one that is shown by them


@dataclass(frozen=True, eq=False)
class Tokens:
    """A text token by token.

    Attributes:
        pieces: what each token says.
        targets: which of them the model is to say itself; the others are the prompt.
        losses: of the targets, in nats; empty where they are not shown.
    """

    pieces: tuple[str, ...]
    targets: tuple[bool, ...]
    losses: tuple[float, ...] = ()


@dataclass(frozen=True, eq=False)
class Example:
    """An example as the page shows it; one object wherever it appears.

    Attributes:
        index: its place in its split.
        says: a text, or a table's row in words.
        label: the class it was given.
        truth: the right one, where it is known to be another.
        place: what it is joined by: {"row": "17", "id": "a3"}.
        image: [C, H, W] or [H, W].
        tokens: of a text, which is then shown by them.
    """

    index: int
    says: str = ""
    label: str = ""
    truth: str = ""
    place: tuple[tuple[str, str], ...] = ()
    image: np.ndarray | None = None
    tokens: Tokens | None = None

    @property
    def words(self) -> str:
        """Its class and, unless it is an image, what it says."""
        return ": ".join(filter(None, (self.label, self.says)))


Scored = tuple[Example, float]


@dataclass(frozen=True)
class Histogram:
    """How many values lie in each of equal bins from low to high."""

    low: float
    high: float
    counts: tuple[int, ...]

    @classmethod
    def of(cls, values: np.ndarray) -> Histogram:
        """Of the finite ones among values of any shape."""
        finite = np.asarray(values, dtype=np.float64)[np.isfinite(values)]
        if not finite.size:
            return cls(0.0, 0.0, ())
        counts, edges = np.histogram(finite, bins=_BINS)
        return cls(float(edges[0]), float(edges[-1]), tuple(counts.tolist()))


@dataclass(frozen=True, eq=False)
class Query:
    """What was asked about, the examples that helped and harmed it most, best first, and all its scores.

    token_scores: by the index of such an example, the scores of its targets for this query.
    """

    example: Example
    helped: Sequence[Scored]
    harmed: Sequence[Scored]
    scores: Histogram
    token_scores: Mapping[int, Sequence[float]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Queries:
    """A tab to go through queries."""

    name: str
    note: str
    queries: Sequence[Query]


@dataclass(frozen=True, eq=False)
class Ranking:
    """A tab of examples in an order, each with the value that gives it."""

    name: str
    note: str
    entries: Sequence[Scored]


@dataclass(frozen=True, eq=False)
class Distribution:
    """A tab of histograms, each with a title."""

    name: str
    note: str
    parts: Sequence[tuple[str, Histogram]]


Tab = Queries | Ranking | Distribution


def report_page(title: str, note: str, tabs: Sequence[Tab], pictures: int = _PICTURES) -> str:
    """The page as text.

    Args:
        title: of the page.
        note: what its numbers mean.
        tabs: what it shows, one at a time.
        pictures: bytes of images that it may hold. Queries' own and the first of every ranking come first.
    """
    examples = list(dict.fromkeys(example for tab in tabs for example in _in_order(tab)))
    album, place = Album(pictures), {example: i for i, example in enumerate(examples)}
    shown = [_example(example, album) for example in examples]
    if album.left_out:
        note += f" {album.left_out} images are left out, so that the page stays below {pictures / 2**20:.0f} MiB."
    data = {
        "examples": shown,
        "pictures": album.uris,
        "tabs": [{"name": tab.name, "note": tab.note, **_tab(tab, place)} for tab in tabs],
    }
    style, script = (Path(__file__).with_name(f"report.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    environment = Environment(
        loader=PackageLoader("metagradient.reporting", "pages"), autoescape=True, undefined=StrictUndefined
    )
    return environment.get_template("report.html.jinja").render(
        title=title,
        note=note,
        style=Markup(style),
        script=Markup(script),
        style_hash=_sha256(style),
        script_hash=_sha256(script),
        data=Markup(_json(data)),
    )


def _in_order(tab: Tab) -> Iterator[Example]:
    """A tab's examples, the most wanted first."""
    if isinstance(tab, Ranking):
        yield from (example for example, _ in tab.entries)
    elif isinstance(tab, Queries):
        yield from (query.example for query in tab.queries)
        longest = max((max(len(q.helped), len(q.harmed)) for q in tab.queries), default=0)
        for rank in range(longest):
            for query in tab.queries:
                yield from (side[rank][0] for side in (query.helped, query.harmed) if rank < len(side))


def _example(example: Example, album: Album) -> dict[str, Any]:
    says = example.says if len(example.says) <= _WORDS else example.says[:_WORDS] + " …"
    shown: dict[str, Any] = {"says": says, "label": example.label, "truth": example.truth, "place": list(example.place)}
    picture = None if example.image is None else album.add(example.image)
    if picture is not None:
        shown["picture"] = picture
    if example.tokens is not None:
        shown["tokens"] = _tokens(example.tokens)
    return {"index": example.index, **{key: value for key, value in shown.items() if value not in ("", [])}}


def _tokens(tokens: Tokens) -> dict[str, Any]:
    pieces, targets = list(tokens.pieces[:_TOKENS]), [int(target) for target in tokens.targets[:_TOKENS]]
    if len(pieces) < len(tokens.pieces):
        pieces, targets = [*pieces, " …"], [*targets, 0]
    return {"pieces": pieces, "targets": targets, "losses": [_number(loss) for loss in tokens.losses[: sum(targets)]]}


def _tab(tab: Tab, place: dict[Example, int]) -> dict[str, Any]:
    def scored(entries: Sequence[Scored]) -> list[list[float | None]]:
        return [[place[example], _number(value)] for example, value in entries]

    if isinstance(tab, Ranking):
        return {"kind": "ranking", "entries": scored(tab.entries)}
    if isinstance(tab, Distribution):
        return {"kind": "distribution", "parts": [[title, _bars(bars)] for title, bars in tab.parts]}
    queries = [
        {"of": place[q.example], "helped": scored(q.helped), "harmed": scored(q.harmed), "scores": _bars(q.scores)}
        | ({"tokens": _token_scores(q, place)} if q.token_scores else {})
        for q in tab.queries
    ]
    return {"kind": "queries", "queries": queries}


def _token_scores(query: Query, place: dict[Example, int]) -> dict[int, list[float | None]]:
    """By the example's place in the page."""
    shown = [example for side in (query.helped, query.harmed) for example, _ in side]
    there = [example for example in shown if example.tokens is not None and example.index in query.token_scores]
    return {place[one]: [_number(x) for x in query.token_scores[one.index][:_TOKENS]] for one in there}


def _bars(histogram: Histogram) -> list[Any]:
    return [_number(histogram.low), _number(histogram.high), histogram.counts]


def _number(value: float) -> float | None:
    """Four digits of it, which is more than is shown."""
    return float(f"{value:.4g}") if math.isfinite(value) else None


def _json(data: Any) -> str:
    """JSON in ASCII without <, > and &: nothing in it can end the block that it stands in, or begin another."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _sha256(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"

"""One self-contained HTML page of queries, each with the training examples that helped and harmed most."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from metagradient.reporting.figures.images import displayable


@dataclass(frozen=True, eq=False)
class Answer:
    """A training example and its score for a query.

    Attributes:
        row: its place in the training set.
        rank: 1 the most helpful, -1 the most harmful.
        score: in nats; positive: removing it raises the query's loss.
        says: the example in words, or its class.
        image: [C, H, W] or [H, W], or None where it is no picture.
        wrong: its label is known to be wrong.
    """

    row: int
    rank: int
    score: float
    says: str
    image: np.ndarray | None = None
    wrong: bool = False


@dataclass(frozen=True, eq=False)
class Query:
    """What was asked about, in words and as a picture, and the examples found."""

    says: str
    image: np.ndarray | None
    answers: Sequence[Answer]


def examples_page(title: str, queries: Sequence[Query]) -> str:
    """The page as text. All that data say is escaped; pictures are part of the page, and nothing is loaded."""
    environment = Environment(
        loader=PackageLoader("metagradient.reporting", "."), autoescape=True, undefined=StrictUndefined
    )
    shown = [
        {
            "says": query.says,
            "image": _png(query.image),
            "sides": [
                ("helped most", [_shown(a) for a in query.answers if a.rank > 0]),
                ("harmed most", [_shown(a) for a in query.answers if a.rank < 0]),
            ],
        }
        for query in queries
    ]
    return environment.get_template("examples.html.jinja").render(title=title, queries=shown)


def _shown(answer: Answer) -> dict[str, object]:
    return {
        "row": answer.row,
        "score": f"{answer.score:+.2g}",
        "says": answer.says,
        "image": _png(answer.image),
        "wrong": answer.wrong,
    }


def _png(image: np.ndarray | None) -> str | None:
    """A picture as base64 PNG, ink on white where it is grey."""
    if image is None:
        return None
    pixels = np.asarray(image, dtype=float)
    pixels = displayable(pixels[None] if pixels.ndim == 2 else pixels)
    pixels = 1 - pixels if pixels.ndim == 2 else pixels
    file = io.BytesIO()
    Image.fromarray((255 * pixels).round().astype(np.uint8)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()

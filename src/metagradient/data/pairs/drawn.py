"""Drawings of numbers and the words for them: a small pool of pairs whose good and bad sources are known, without a download."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from metagradient.data.pairs.files import paired
from metagradient.data.pairs.splits import PairSplits
from metagradient.data.pairs.texts import Words

_UNITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_TENS = ("nought", "teen", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_JUNK = ("untitled image", "picture", "icon small", "new drawing final", "scan copy", "number")


def _slanted(x: np.ndarray) -> np.ndarray:
    """Each row moved, the upper ones to the right."""
    shift = np.arange(x.shape[1])[::-1] // 3 - 1
    return np.stack([np.roll(x[:, row], by, axis=1) for row, by in enumerate(shift)], axis=1)


def _thick(x: np.ndarray) -> np.ndarray:
    """Each pixel as dark as its darkest neighbour across."""
    return np.maximum(x, 0.8 * np.maximum(np.roll(x, 1, axis=2), np.roll(x, -1, axis=2)))


_STYLES: dict[str, tuple[Callable[[np.ndarray], np.ndarray], str]] = {
    "plain": (lambda x: x, "right"),
    "thick": (_thick, "right"),
    "inverted": (lambda x: 1 - x, "right"),
    "mirrored": (lambda x: x[:, :, ::-1], "right"),
    "mislabelled": (_thick, "wrong"),
    "unnamed": (_slanted, "junk"),
}
"""How each style of the pool draws, and what its captions say."""

_TARGET = "slanted"


def drawn_digits(
    train: int = 2400, validation: int = 300, test: int = 300, noise: float = 0.1, seed: int = 0
) -> PairSplits:
    """Numbers of two digits of scikit-learn's, side by side in 8x16 pixels, with their names ("forty two").

    The pool has six styles in equal parts: plain, thick and inverted drawings with their names, mirrored ones, thick drawings
    with wrong names, and slanted ones whose captions are junk. The target style, slanted and thick, is not in the pool.
    Validation, test and pool are made of different handwritten digits.

    Args:
        train: pairs of the pool.
        validation: pairs of the target style; test likewise.
        test: see validation.
        noise: deviation of what is added to each pixel.
        seed: of all that is drawn.

    Raises:
        ValueError: no pairs in a split.
    """
    from sklearn.datasets import load_digits  # a second of import that other data sets need not pay

    if min(train // len(_STYLES), validation, test) < 1:
        raise ValueError(
            f"data.train, data.validation and data.test must be at least {len(_STYLES)}, 1 and 1, not {train}, {validation}, {test}"
        )
    raw = load_digits()
    images, labels = raw.images / 16, raw.target
    rng = np.random.default_rng([seed, 0])
    parts = dict(
        zip(("train", "validation", "test"), np.split(rng.permutation(len(labels)), [1100, 1450]), strict=True)
    )

    def drawn(split: str, n: int) -> tuple[np.ndarray, np.ndarray]:
        """n images [n, 8, 16] and their numbers."""
        pairs = rng.choice(parts[split], (n, 2))
        return np.concatenate([images[pairs[:, 0]], images[pairs[:, 1]]], axis=2), 10 * labels[pairs[:, 0]] + labels[
            pairs[:, 1]
        ]

    x, captions, sources, concepts = {}, {}, {}, {}
    for split, n in (("validation", validation), ("test", test)):
        plain, numbers = drawn(split, n)
        x[split] = _thick(_slanted(plain))
        concepts[split] = captions[split] = tuple(map(_name, numbers))
        sources[split] = (_TARGET,) * n
    pool = []
    for place, (style, (draw, said)) in enumerate(_STYLES.items()):
        n = train // len(_STYLES) + (place < train % len(_STYLES))
        plain, numbers = drawn("train", n)
        told = _captions(numbers, said, rng)
        pool += list(zip(draw(plain), told, [style] * n, map(_name, numbers), strict=True))
    order = rng.permutation(train)
    x["train"] = np.stack([pool[i][0] for i in order])
    captions["train"], sources["train"], concepts["train"] = (tuple(pool[i][k] for i in order) for k in (1, 2, 3))
    encoder = Words.of(captions["train"], 256, 4)

    def table(split: str) -> dict[str, torch.Tensor]:
        noisy = x[split] + noise * rng.standard_normal(x[split].shape)
        return paired(torch.from_numpy(noisy).float().unsqueeze(1), captions[split], encoder)

    right = {style for style, (_, said) in _STYLES.items() if said == "right" and style != "mirrored"}
    return PairSplits(
        "drawn_digits",
        table("train"),
        table("validation"),
        table("test"),
        encoder,
        captions,
        sources,
        concepts,
        _TARGET,
        torch.tensor([style in right for style in sources["train"]]),
    )


def _name(number: int) -> str:
    return f"{_TENS[number // 10]} {_UNITS[number % 10]}"


def _captions(numbers: np.ndarray, said: str, rng: np.random.Generator) -> list[str]:
    if said == "wrong":
        numbers = (numbers + rng.integers(1, 100, len(numbers))) % 100
    if said == "junk":
        return [_JUNK[i] for i in rng.integers(len(_JUNK), size=len(numbers))]
    return [_name(number) for number in numbers]

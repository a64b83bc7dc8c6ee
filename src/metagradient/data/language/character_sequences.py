"""Character sequences of a text, with planted sources: sequences whose origin is known."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from metagradient.data.language.splits import TextSplits
from metagradient.data.language.tokenizers import Characters

_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def characters(
    path: str,
    train: int = 1000,
    validation: int = 100,
    test: int = 100,
    length: int = 32,
    planted: int = 0,
    copies: int = 20,
    seed: int = 0,
) -> TextSplits:
    """Sequences of length + 1 characters cut from a text: train and validation from its train split, test from the other.

    Args:
        path: a hub name or a local folder of parquet files with a column `text`.
        planted: sources, each a made-up language of four words; `copies` training sequences and five test sequences
            of each replace as many of the text's, and come first.
        train: training sequences.
        validation: validation sequences.
        test: test sequences.
        length: characters of a sequence that are predicted.
        copies: training sequences of each planted source.
        seed: of the places that are cut and of the planted sources.

    Raises:
        FileNotFoundError: a path that is not there.
        ValueError: too few characters.
    """
    import datasets  # seconds of import that other data sets need not pay

    folder = Path(path).expanduser()
    if "/" in path and path.startswith((".", "/", "~")) and not folder.is_dir():
        raise FileNotFoundError(f"data.path={path} does not exist; give a local folder of parquet files or a hub name")
    loaded = datasets.load_dataset(str(folder.resolve()) if folder.is_dir() else path)
    texts = {split: "\n".join(rows["text"]) for split, rows in loaded.items()}
    vocabulary = "".join(sorted({*"".join(texts.values()), *_LETTERS, " "}))
    place = {character: i for i, character in enumerate(vocabulary)}
    rng = np.random.default_rng(seed)
    width = length + 1

    def cut(split: str, count: int) -> Tensor:
        text = texts[split]
        if len(text) < count * width:
            raise ValueError(
                f"{count} sequences of {width} characters need more than the {len(text)} of {split}: lower data.train"
            )
        starts = rng.permutation(len(text) // width)[:count] * width
        return torch.tensor([[place[c] for c in text[s : s + width]] for s in starts])

    pool, tests = cut("train", train + validation), cut("test", test)
    sources, query_sources = torch.full((train,), -1), torch.full((test,), -1)
    if planted * copies > train or 5 * planted > test:
        raise ValueError(
            f"data.planted={planted} sources of {copies} copies and five queries do not fit {train} and {test}"
        )
    for source in range(planted):
        words = ["".join(rng.choice(list(_LETTERS), size=rng.integers(3, 7))) for _ in range(4)]
        for table, labels, first, count in (
            (pool, sources, source * copies, copies),
            (tests, query_sources, 5 * source, 5),
        ):
            for row in range(first, first + count):
                said = " ".join(rng.choice(words, size=width))[:width]
                table[row] = torch.tensor([place[c] for c in said])
                labels[row] = source
    split = [{"tokens": x} for x in (pool[:train], pool[train:], tests)]
    return TextSplits(folder.name, split[0], split[1], split[2], Characters(vocabulary), sources, query_sources)

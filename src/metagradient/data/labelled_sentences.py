"""Labelled sentences, as the most frequent words of a vocabulary made from the training rows."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from metagradient.data.corruption import LabelNoise
from metagradient.data.splits import Splits, corrupt, draw

PADDING, UNKNOWN = 0, 1


@dataclass(frozen=True)
class SentenceSplits(Splits):
    """Classified sentences: x int64 [n, length], words by their place in `vocabulary`, 0 after the sentence's end."""

    vocabulary: tuple[str, ...] = ()

    def describe(self, x: Tensor) -> list[str]:
        """Rows [m, length] of words as strings."""
        return [" ".join(self.vocabulary[int(i)] for i in row if int(i) != PADDING) for row in x]


def sentences(
    path: str,
    train: int,
    validation: int,
    test: int,
    length: int = 24,
    words: int = 2000,
    noise: LabelNoise | None = None,
    seed: int = 0,
) -> SentenceSplits:
    """Random disjoint rows of a set's train split, with columns `sentence` and `label` (GLUE's SST-2).

    Args:
        path: a hub name or a local folder of parquet files.
        train: training rows; validation and test likewise.
        length: words of a sentence that are read.
        words: size of the vocabulary, padding and the unknown word included; it is made of the training rows alone.
        noise: on training labels.
        seed: of the rows drawn and of the noise.
        validation: validation rows.
        test: test rows.

    Raises:
        FileNotFoundError: a path that is not there.
        ValueError: missing columns or too few rows.
    """
    import datasets  # seconds of import that other data sets need not pay

    folder = Path(path).expanduser()
    if "/" in path and path.startswith((".", "/", "~")) and not folder.is_dir():
        raise FileNotFoundError(f"data.path={path} does not exist; give a local folder of parquet files or a hub name")
    # nyu-mll/glue/sst2 names a configuration of a hub set; a folder holds the files themselves.
    owner, _, configuration = path.rpartition("/")
    hub = (owner, configuration) if path.count("/") == 2 else (path,)
    table = datasets.load_dataset(*((str(folder.resolve()),) if folder.is_dir() else hub), split="train")
    if missing := {"sentence", "label"} - set(table.features):
        raise ValueError(
            f"data.path={path} has no column {', '.join(sorted(missing))}: try data.path=nyu-mll/glue/sst2"
        )
    wanted: dict[str, int | None] = {"train": train, "validation": validation, "test": test}
    rows = {split: table.select(r.tolist()) for split, r in draw(len(table), wanted, seed, f"{path}").items()}
    said = {split: [str(s).split()[:length] for s in part["sentence"]] for split, part in rows.items()}
    known = vocabulary(said["train"], words)
    tables = {
        split: {"x": tokens(said[split], known, length, len(said[split])), "y": torch.tensor(part["label"])}
        for split, part in rows.items()
    }
    names = getattr(table.features["label"], "names", None) or sorted({str(c) for c in table["label"]})
    splits = SentenceSplits(
        folder.name,
        tables["train"],
        tables["validation"],
        tables["test"],
        tuple(names),
        kind="text",
        vocabulary=known,
    )
    noisy = corrupt(splits, noise, seed)
    assert isinstance(noisy, SentenceSplits)
    return noisy


def vocabulary(said: Iterable[Sequence[str]], words: int) -> tuple[str, ...]:
    """The most frequent words of some texts, behind the padding and the unknown word.

    Raises:
        ValueError: no room for a word.
    """
    if words < 3:
        raise ValueError(
            f"data.words={words} leaves no word beside the padding and the unknown one: try data.words=2000"
        )
    counts = Counter(word for sentence in said for word in sentence)
    return ("", "?", *sorted(counts, key=lambda word: (-counts[word], word))[: words - 2])


def tokens(said: Iterable[Sequence[str]], known: Sequence[str], length: int, n: int) -> Tensor:
    """`n` texts as places in a vocabulary, int64 [n, length], padded at their ends."""
    place = {word: i for i, word in enumerate(known)}
    out = torch.full((n, length), PADDING)
    for row, sentence in zip(out, said, strict=True):
        row[: len(sentence)] = torch.tensor([place.get(word, UNKNOWN) for word in sentence], dtype=torch.long)
    return out

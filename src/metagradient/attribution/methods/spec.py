"""Names of attribution methods: `exact`, `dropout:4096`, `none:alpha`, `sjlt:512:path`, `trak:3`, `bm25`, a file of scores."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from metagradient.attribution.compression.compressors import Compressor, Dropout, FactorDropout
from metagradient.attribution.compression.projections import PCA, SJLT, DropoutSJLT, FactorGaussian, FactorPCA, Gaussian
from metagradient.attribution.methods.baselines import BASELINES
from metagradient.attribution.methods.packages import PACKAGES
from metagradient.errors import UserError

Where = Literal["end", "alpha", "path"]
"""The state that a method looks at: the end of the run, the end of the run at weight alpha, or several along the run."""

COMPRESSORS: dict[str, Callable[[int], Compressor]] = {
    "dropout": Dropout,
    "factor_dropout": FactorDropout,
    "gaussian": Gaussian,
    "factor_gaussian": FactorGaussian,
    "sjlt": SJLT,
    "dropout_sjlt": DropoutSJLT,
    "pca": PCA,
    "factor_pca": FactorPCA,
}
OWN = "own"
"""The name of the method of a compressor that is given as an object; its `word` is the compressor's name."""
UNCOMPRESSED = ("none", "gradient_dot", "cosine")
FILES = (".npy", ".safetensors")
NAMES = [
    "exact",
    *(f"{name}:k" for name in COMPRESSORS),
    *UNCOMPRESSED,
    "each of them with :alpha",
    "none:path",
    *(f"{name}:k:path" for name in COMPRESSORS),
    "tracin:checkpoints",
    "trak:models",
    *BASELINES,
    *PACKAGES,
    "a path to .npy or .safetensors",
]


@dataclass(frozen=True)
class MethodSpec:
    """A method by name.

    Attributes:
        word: as it was given.
        name: of the method: exact, a compressor, none, gradient_dot, cosine, tracin, trak, random, bm25, another package, file,
            or own, for a compressor given as an object.
        count: coordinates kept, checkpoints of TracIn, or models of TRAK; None where there is no such number.
        where: the state that it looks at.
    """

    word: str
    name: str
    count: int | None = None
    where: Where = "end"

    @classmethod
    def parse(cls, word: str) -> Self:
        """`name[:count][:alpha|:path]`, or the path of a file of scores.

        Raises:
            UserError: no such method, or none that can look there.
            FileNotFoundError: no such file.
        """
        if Path(word).suffix in FILES:
            if not Path(word).exists():
                raise FileNotFoundError(2, "no such file", word)
            return cls(word, "file")
        plain, where = word, "end"
        for suffix in ("alpha", "path"):
            if word.endswith(f":{suffix}"):
                plain, where = word.removesuffix(f":{suffix}"), suffix
        name, _, argument = plain.partition(":")
        counted = name in COMPRESSORS or (name in ("tracin", "trak") and where == "end")
        alone = plain == "exact" or plain in UNCOMPRESSED or word in (*BASELINES, *PACKAGES)
        if where == "path" and name not in ("none", *COMPRESSORS):
            alone = counted = False
        if alone:
            return cls(word, plain, where=where)  # type: ignore[arg-type]
        if counted and argument.isdigit() and int(argument) > 0:
            return cls(word, name, int(argument), where)  # type: ignore[arg-type]
        raise UserError(f"methods: no method '{word}'; there are: {', '.join(NAMES)}")

    @property
    def plain(self) -> str:
        """The method without where it looks."""
        if self.name == OWN:
            return self.word
        return self.name if self.count is None else f"{self.name}:{self.count}"

    @property
    def compressed(self) -> bool:
        """Whether it is an influence function on compressed gradients."""
        return self.name in COMPRESSORS or self.name == OWN

    @property
    def damped(self) -> bool:
        """Whether it has a damping to choose."""
        return self.compressed or self.name in ("none", "trak", *PACKAGES)

    @property
    def storable(self) -> bool:
        """Whether a store can keep its gradients: compressed ones, by a compressor that is not fitted on the examples."""
        return self.compressed and self.name not in ("pca", "factor_pca")

    @property
    def additive(self) -> bool:
        """Whether it scores a whole set at once."""
        return self.name not in PACKAGES and self.name != "file"

    @property
    def reflexive(self) -> bool:
        """Whether it scores training examples for themselves."""
        return self.additive and self.name not in ("cosine", *BASELINES)

    def compressor(self) -> Compressor:
        """The compressor that it names."""
        assert self.count is not None
        return COMPRESSORS[self.name](self.count)

    def unit(self, curvature: str) -> str:
        """`nats`, where scores are predicted changes of the query's loss; else units of the method's own."""
        product = self.name in (
            "gradient_dot",
            "cosine",
            *BASELINES,
            *PACKAGES,
        )  # or of another output, such as a margin
        plain = curvature == "identity" and (self.name == "none" or self.compressed)
        return "of the method" if product or plain else "nats"


def slug(name: str) -> str:
    """A method's name as part of a key or a file name."""
    return re.sub(r"[^\w.]+", "_", name).strip("_")

"""The words that name the methods of `attribution`: `exact`, `dropout:4096`, `none:alpha`, `sjlt:512:path`, a file."""

import re
from pathlib import Path

from metagradient.experiments._attribution_peers import PEERS

from metagradient import attribution as at
from metagradient.errors import UserError

COMPRESSORS = {
    "dropout": at.Dropout,
    "factor_dropout": at.FactorDropout,
    "gaussian": at.Gaussian,
    "factor_gaussian": at.FactorGaussian,
    "sjlt": at.SJLT,
    "dropout_sjlt": at.DropoutSJLT,
    "pca": at.PCA,
}
ALPHA, PATH = ":alpha", ":path"
WORDS = ["exact", *(f"{name}:k" for name in COMPRESSORS), "none", "gradient_dot", "cosine", "each of them with :alpha"]
WORDS += ["none:path", *(f"{name}:k:path" for name in COMPRESSORS)]
WORDS += ["tracin:checkpoints", "trak:models", *PEERS, "a path to .npy or .safetensors"]


def check_word(word: str) -> None:
    """Refuse a method at once, not after the retrainings.

    Raises:
        UserError: no such method. FileNotFoundError: no such file of scores.
    """
    if Path(word).suffix in (".npy", ".safetensors"):
        if not Path(word).exists():
            raise FileNotFoundError(2, "no such file", word)
        return
    plain = plain_word(word)
    name, _, argument = plain.partition(":")
    counts = name in COMPRESSORS or (name in ("tracin", "trak") and word == plain)
    alone = plain in ("exact", "none", "gradient_dot", "cosine") or word in PEERS
    if word.endswith(PATH) and name not in ("none", *COMPRESSORS):
        alone = counts = False
    if not alone and not (counts and argument.isdigit() and int(argument) > 0):
        raise UserError(f"methods: no method '{word}'; there are: {', '.join(WORDS)}")


def plain_word(word: str) -> str:
    """The method without where it looks."""
    return word.removesuffix(ALPHA) if word.endswith(ALPHA) else word.removesuffix(PATH)


def unit(word: str, curvature: str) -> str:
    """Nats, where scores are predicted changes of the loss."""
    name = word.partition(":")[0]
    product = name in ("gradient_dot", "cosine", *PEERS)  # or of another output, such as a margin
    return "of the method" if product or (curvature == "identity" and name in ("none", *COMPRESSORS)) else "nats"


def slug(name: str) -> str:
    """A method's name as part of a key or a file name."""
    return re.sub(r"[^\w.]+", "_", name).strip("_")

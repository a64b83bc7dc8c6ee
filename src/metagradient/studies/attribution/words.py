"""The words that name the methods of `attribution`: `exact`, `dropout:4096`, `none:alpha`, `sjlt:512:path`, a file."""

import re
from collections.abc import Callable
from pathlib import Path

from omegaconf import DictConfig

from metagradient import attribution as at
from metagradient.errors import UserError
from metagradient.studies.attribution.other_packages import PEERS
from metagradient.studies.attribution.task import Task

COMPRESSORS: dict[str, Callable[[int], at.Compressor]] = {
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


def check(cfg: DictConfig) -> None:
    """Refuse methods and settings at once, not after a training.

    Raises:
        UserError: what does not exist, cannot be had together, or lies out of range. FileNotFoundError: no such scores.
    """
    if not cfg.methods or not (cfg.drop or cfg.damping is not None):
        raise UserError("attribution needs methods, and drop or damping: for example methods=[exact] drop=[0.5]")
    if cfg.damping not in (None, "run") and not (isinstance(cfg.damping, int | float) and cfg.damping > 0):
        raise UserError(f"damping must be a number > 0, run, or null, not '{cfg.damping}'")
    if cfg.replay.check is not None:
        raise UserError("attribution has no replay.check: leave it null (selection checks its metagradients)")
    for word in map(str, cfg.methods):
        _check_word(word)
        name = word.partition(":")[0]
        if word.endswith(ALPHA) and not cfg.drop:
            raise UserError(f"{word} looks at shares removed: give some, drop=[0.5], or methods=[{plain_word(word)}]")
        if cfg.damping == "run" and (name == "trak" or name in PEERS):
            raise UserError("damping=run is for influence functions; for trak and other packages tune it: damping=null")
    for word in map(str, cfg.race.methods):
        name, _, k = word.partition(":")
        if name not in COMPRESSORS or not k.isdigit():
            known = ", ".join(f"{name}:k" for name in COMPRESSORS)
            raise UserError(f"race.methods: no compressor '{word}'; there are: {known}")


def check_run(cfg: DictConfig, task: Task) -> None:
    """Refuse what this run cannot have, before the retrainings.

    Raises:
        UserError: no damping of its own, too few steps or too many parameters.
    """
    if cfg.damping == "run":
        at.run_damping(task.learner, task.batches)
    steps, size = len(task.batches), task.state.params.numel()
    along = any(str(word).endswith(PATH) for word in cfg.methods)
    if along and not (isinstance(cfg.checkpoints, int) and 1 <= cfg.checkpoints <= steps):
        raise UserError(f"checkpoints must lie in [1, {steps}], the steps of the run, not {cfg.checkpoints}")
    if "none" + PATH in cfg.methods and size > cfg.none_primal:
        raise UserError(
            f"none:path holds the [P, P] curvature, and P = {size} is more than none_primal={cfg.none_primal}: "
            "compress, methods=[dropout:8192:path]"
        )


def _check_word(word: str) -> None:
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

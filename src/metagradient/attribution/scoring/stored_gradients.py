"""The training examples' compressed gradients on disk, for queries that come later."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from metagradient.attribution.scoring.blocks import BlockFile
from metagradient.attribution.scoring.curvature import Curvature, Dual, Identity, Primal
from metagradient.errors import UserError
from metagradient.files import digest, digest_of, named_tensors, replacing
from metagradient.learners.fingerprint import constants, named, settings
from metagradient.learners.learner import Learner
from metagradient.training.batches import Fields
from metagradient.training.sources import in_parts
from metagradient.training.state import TrainState

log = logging.getLogger(__name__)

_GRADIENTS = "gradients.safetensors"


class GradientFile(BlockFile):
    """Compressed gradients [n, k], one training example a row."""

    tensor = "gradients"
    kinds = ("training examples", "coordinates")


class StoredGradients:
    """A folder with compressed gradients [n, k] of training examples and their curvature.

    Args:
        folder: made where it is missing; what it holds already is used and, where a run was cut short, continued.
        about: what decides the gradients, by name; values of 64 hexadecimal digits are digests.
        n: training examples.
        k: coordinates.
        dtype: of the gradients.

    Raises:
        UserError: the folder holds gradients of something else, which is named; the disk is full.
    """

    def __init__(self, folder: Path, about: Mapping[str, str], n: int, k: int, dtype: torch.dtype) -> None:
        self.folder, self.about = folder, dict(about)
        self._curvature = folder / "curvature.safetensors"
        refuse_another(folder, self.about)
        self.gradients = GradientFile(folder / _GRADIENTS, (n, k), dtype, self.about)

    @property
    def missing(self) -> float:
        """The share of the training examples whose gradients are not there."""
        n = self.gradients.shape[0]
        return (n - self.gradients.done) / n

    def curvature(self, like: Tensor) -> Curvature | None:
        """The curvature as it was kept, on the device of `like`; None where it is not there, or damaged."""
        if not self._curvature.exists():
            return None
        try:
            with safe_open(self._curvature, framework="pt") as file:
                about, kept = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if about.get("sha256") != digest(*named_tensors(sorted(kept.items()))):
                raise ValueError("its checksum is wrong")
        except (OSError, ValueError, SafetensorError) as error:
            log.warning("%s cannot be read (%s): it is computed again", self._curvature, error)
            return None
        if "matrix" in kept:
            return Primal(kept["matrix"].to(like.device))
        return Dual(kept["rows"].to(like.device), int(about["n"])) if "rows" in kept else Identity()

    def keep(self, curvature: Curvature) -> None:
        """Keep the curvature beside the gradients."""
        tensors: dict[str, Tensor] = {}
        if isinstance(curvature, Primal):
            tensors = {"matrix": curvature.matrix.cpu().contiguous()}
        elif isinstance(curvature, Dual):
            tensors = {"rows": curvature.rows.cpu().contiguous()}
        about = {"sha256": digest(*named_tensors(sorted(tensors.items())))}
        if isinstance(curvature, Dual):
            about["n"] = str(curvature.n)
        with replacing(self._curvature, durable=True) as draft:
            save_file(tensors, draft, metadata=about)


def refuse_another(folder: Path, about: Mapping[str, str]) -> None:
    """Refuse a store that holds gradients of something else.

    Raises:
        UserError: names what differs.
    """
    if not (folder / _GRADIENTS).exists():
        return
    theirs = _header(folder / _GRADIENTS)
    different = [
        f"another {name.replace('_', ' ')}" + (f" ({theirs[name]}, not {own})" if len(own) < 64 else "")
        for name, own in about.items()
        if name in theirs and theirs[name] != own
    ]
    if different or theirs.keys() != about.keys():
        what = ", ".join(different) or "something else"
        raise UserError(f"store={folder} holds gradients of {what}: give another folder, or remove it")


def _header(file: Path) -> dict[str, str]:
    """The metadata of a safetensors file."""
    try:
        with safe_open(file, framework="pt") as opened:
            return dict(opened.metadata() or {})
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise UserError(f"{file} cannot be read ({error}): remove it, or give another store") from error


def model_digest(learner: Learner, states: Sequence[TrainState]) -> str:
    """What decides the gradients of a model at some states, in hexadecimal; of code only names are part of it."""
    tensors = {
        f"{name} {i}": x for i, s in enumerate(states) for name, x in (("params", s.params), ("buffers", s.buffers))
    }
    tensors |= constants(learner) | dict(learner.layout.named_constants())
    return digest("\n".join([named(learner), *settings(learner)]), *named_tensors(tensors.items()))


def examples_digest(examples: Fields) -> str:
    """The examples' values, in hexadecimal. Reads every row."""
    return digest_of(named_tensors(in_parts(examples)))

"""Weights that exist: read from a file or a folder of any of the usual kinds, into any module."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from metagradient.files import digest, named_tensors, replacing

_SUM = "metagradient.sha256"  # in the header of a file of ours
_FOLDER = ("model.safetensors", "artifacts/model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Tensors by name from a checkpoint; nothing in it is executed.

    Args:
        path: a `.safetensors` file; a Lightning `.ckpt` or a torch `.pt`, `.pth`, `.bin` (tensors only); a Hugging Face folder,
            in one file or several; or the directory of a run that saved a model.

    Raises:
        FileNotFoundError: no such file, or a folder without weights.
        ValueError: no checkpoint, or one that holds more than tensors.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        found = next((path / name for name in _FOLDER if (path / name).is_file()), None)
        if found is None:
            raise FileNotFoundError(f"checkpoint={path} is a folder without weights: none of {', '.join(_FOLDER)}")
        path = found
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint={path} does not exist")
    if path.name.endswith(".index.json"):
        shards = sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
        return {name: x for shard in shards for name, x in read_weights(path.parent / shard).items()}
    try:
        if path.suffix == ".safetensors":
            return _tensors(path)
        held = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, ValueError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"checkpoint={path} cannot be read as tensors ({str(error).splitlines()[0]}): give a .safetensors file, or a checkpoint "
            "that holds tensors alone"
        ) from error
    except Exception as error:  # safetensors has an error class of its own
        raise ValueError(f"checkpoint={path} cannot be read ({error}): it is damaged, or cut short") from error
    held = held.get("state_dict", held) if isinstance(held, dict) else held
    if not isinstance(held, dict) or not all(isinstance(x, Tensor) for x in held.values()):
        raise ValueError(f"checkpoint={path} holds no weights by name: save model.state_dict()")
    return held


def save_weights(tensors: dict[str, Tensor], path: Path) -> None:
    """Write contiguous tensors as a whole, with a checksum that `read_weights` looks at."""
    with replacing(path) as draft:
        save_file(tensors, draft, metadata={_SUM: _digest(tensors)})


def _tensors(path: Path) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as file:
        held = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        told = (file.metadata() or {}).get(_SUM)
    if told not in (None, _digest(held)):
        raise SafetensorError("its checksum is wrong")
    return held


def _digest(tensors: dict[str, Tensor]) -> str:
    return digest(*named_tensors(sorted(tensors.items())))


def load_weights(module: nn.Module, path: str | Path) -> None:
    """Copy a checkpoint's weights into a module whose names they have, but for a common prefix on either side.

    Raises:
        ValueError: names that are missing or left over, other shapes, numbers that are not finite.
    """
    held, own = read_weights(path), module.state_dict()
    named = _aligned(held, own)
    missing, left = sorted(own.keys() - named.keys()), sorted(named.keys() - own.keys())
    if missing or left:
        raise ValueError(
            f"checkpoint={path} is of another model: {_some('it lacks', missing)}{_some('it has', left)}".rstrip("; ")
            + " (model=... and its settings must be those it was made with)"
        )
    for name, x in named.items():
        if x.shape != own[name].shape:
            raise ValueError(
                f"checkpoint={path}: '{name}' has shape {list(x.shape)}, but the model's is {list(own[name].shape)}: a setting of "
                "model=... (a width, a length, a vocabulary) is not what it was made with"
            )
        if x.is_floating_point() and not bool(x.isfinite().all()):
            raise ValueError(f"checkpoint={path}: '{name}' has numbers that are not finite")
    module.load_state_dict(named)


def _some(words: str, names: list[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{words} {', '.join(names[:most])}{more}; " if names else ""


def _aligned(held: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """The checkpoint by the module's names: as it is, or without a prefix, or with one, whichever fits more."""
    candidates = [held]
    for prefix in _prefixes(held):
        candidates.append({name.removeprefix(prefix): x for name, x in held.items()})
    for prefix in _prefixes(own):
        candidates.append({prefix + name: x for name, x in held.items()})
    return max(candidates, key=lambda named: len(named.keys() & own.keys()))


def _prefixes(names: dict[str, Tensor]) -> list[str]:
    """ "model.", "model.net.": the prefixes that all names share."""
    parts = [name.split(".")[:-1] for name in names]
    shared: list[str] = []
    while parts and all(len(p) > len(shared) and p[: len(shared) + 1] == parts[0][: len(shared) + 1] for p in parts):
        shared.append(parts[0][len(shared)])
    return [".".join(shared[: i + 1]) + "." for i in range(len(shared))]

"""Other libraries, imported when they are used, and peft's adapters on their models."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

_LORA: Mapping[str, Any] = {"rank": 8, "alpha": 16, "targets": None, "dropout": 0.0}


def library_of(name: str, extra: str) -> Any:
    """A library that an extra of ours installs.

    Raises:
        ValueError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f"{name} cannot be imported ({error}): pip install 'metagradient[{extra}]'") from error


def low_rank(network: Any, lora: Mapping[str, Any], also: Sequence[str] = (), **settings: Any) -> Any:
    """A Hugging Face model with trainable low-rank adapters (peft) in its linear layers, and all else frozen.

    Args:
        network: the model, changed in place.
        lora: {rank: 8, alpha: 16, targets: ends of layers' names; None: peft's choice for the architecture, dropout: 0.0}.
        also: modules that are trained as well.
        settings: more of `peft.LoraConfig`.

    Raises:
        ValueError: peft is not installed, settings that there are not, or targets that match no layer.
    """
    peft = library_of("peft", "hf")
    if odd := [str(key) for key in lora if key not in _LORA]:
        raise ValueError(f"model.lora has no {', '.join(odd)}: it takes {', '.join(_LORA)}")
    wanted = {**_LORA, **lora}
    targets = [wanted["targets"]] if isinstance(wanted["targets"], str) else wanted["targets"]
    there = sorted({name.rpartition(".")[2] for name, m in network.named_modules() if _adaptable(m)})
    known = [name for name, _ in network.named_modules()]
    for target in targets or ():
        if not any(name == target or name.endswith(f".{target}") for name in known):
            raise ValueError(f"model.lora.targets: no layer is called {target}; there are {', '.join(there)}")
    if not isinstance(wanted["rank"], int) or isinstance(wanted["rank"], bool) or wanted["rank"] < 1:
        raise ValueError(f"model.lora.rank must be an integer >= 1, not {wanted['rank']}: set model.lora.rank=8")
    try:
        adapters = peft.LoraConfig(
            r=wanted["rank"],
            lora_alpha=wanted["alpha"],
            target_modules=list(targets) if targets else None,
            lora_dropout=wanted["dropout"],
            modules_to_save=list(also) or None,
            **settings,
        )
        return peft.get_peft_model(network, adapters)
    except (ValueError, TypeError) as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"model.lora={dict(lora)}: {said}; layers are called {', '.join(there)}") from error


def _adaptable(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"

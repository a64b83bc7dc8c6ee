"""Exact metagradients of a training run: which data, which schedule, how much harm.

`import metagradient as mg`; names are loaded when first used, so that the command line stays quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0.dev0"

_HOMES = (
    "metagradient.training",
    "metagradient.learners",
    "metagradient.replay",
    "metagradient.studies.saved",
    "metagradient.studies.calls",
)

if TYPE_CHECKING:
    from metagradient.learners import *  # noqa: F403
    from metagradient.replay import *  # noqa: F403
    from metagradient.studies.calls import *  # noqa: F403
    from metagradient.studies.saved import *  # noqa: F403
    from metagradient.training import *  # noqa: F403


def __getattr__(name: str) -> Any:
    if name.startswith("_"):
        raise AttributeError(name)
    for home in _HOMES:
        module = importlib.import_module(home)
        if name in module.__all__:
            return getattr(module, name)
    raise AttributeError(f"module 'metagradient' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({"__version__", *(n for home in _HOMES for n in importlib.import_module(home).__all__)})

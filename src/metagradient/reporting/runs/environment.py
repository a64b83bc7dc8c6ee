"""What a run was computed with: versions, commit, machine."""

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from metagradient import __version__

PACKAGES = ("torch", "lightning", "numpy", "scipy", "scikit-learn", "hydra-core", "datasets", "transformers")


def environment() -> dict[str, Any]:
    """Versions of metagradient, Python and the packages that decide numbers; the commit and the machine.

    Returns:
        JSON values: `metagradient`, `commit` (see `commit`), `python`, `packages` (name to version, of the installed
        ones), `platform`, `cpus` (those this process may use).
    """
    return {
        "metagradient": __version__,
        "commit": commit(Path(__file__)),
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := _version(name)) is not None},
        "platform": platform.platform(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }


def device() -> dict[str, Any]:
    """`threads` of torch, and the names of the `gpus` it sees; none as long as this process has used no GPU.

    Asking sooner would set up CUDA in this process: memory on the GPU, and no forks from then on. Without torch there
    is nothing to say.
    """
    torch = sys.modules.get("torch")
    if torch is None:
        return {}
    used = torch.cuda.device_count() if torch.cuda.is_initialized() else 0
    return {"threads": torch.get_num_threads(), "gpus": [torch.cuda.get_device_name(i) for i in range(used)]}


def commit(file: Path) -> str | None:
    """The commit of the git checkout that tracks `file`, ending in `-dirty` where tracked files were changed since.

    None where no git repository tracks it, such as an installed package, or where git is not there.
    """
    if _git(file.parent, "ls-files", "--error-unmatch", file.name) is None:
        return None  # a package installed below a checkout of something else
    return _git(file.parent, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None

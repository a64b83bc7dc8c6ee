"""The peak memory of a run: the CUDA allocator's where CUDA is in use, else the process's resident size."""

import re
import resource
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

MIB = 2**20


def reset_peak() -> None:
    """Forget earlier peaks, so that the next run in this process reports its own (resident size: Linux only)."""
    cuda = _cuda()
    if cuda is not None:
        for device in range(cuda.device_count()):
            cuda.reset_peak_memory_stats(device)
    with suppress(OSError):  # then the peak of the whole process is reported
        Path("/proc/self/clear_refs").write_text("5")  # 5: reset the resident high-water mark


def peak_mib() -> float:
    """Peak memory in MiB since `reset_peak`."""
    cuda = _cuda()
    if cuda is not None:
        return max(cuda.max_memory_allocated(device) for device in range(cuda.device_count())) / MIB
    try:
        high_water = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        high_water = None
    if high_water:
        return int(high_water.group(1)) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / MIB if sys.platform == "darwin" else peak / 1024


def _cuda() -> Any | None:
    """`torch.cuda`, if the run has loaded torch and touched a GPU."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_initialized() else None

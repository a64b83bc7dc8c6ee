"""The peak memory of a run: the CUDA allocator's where CUDA is in use, else the process's resident size."""

import re
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

MIB = 2**20

_earlier = [0.0]
"""The peak, in MiB, before a part of the run was measured by itself."""


def reset_peak() -> None:
    """Forget earlier peaks, so that the next run in this process reports its own (resident size: Linux only)."""
    _earlier[0] = 0.0
    cuda = _cuda()
    if cuda is not None:
        for device in range(cuda.device_count()):
            cuda.reset_peak_memory_stats(device)
    _forget_resident_peak()


def peak_mib() -> float:
    """Peak memory in MiB since `reset_peak`."""
    cuda = _cuda()
    if cuda is not None:
        return max(cuda.max_memory_allocated(device) for device in range(cuda.device_count())) / MIB
    if (high_water := _resident("VmHWM")) is not None:
        return max(_earlier[0], high_water / MIB)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / MIB if sys.platform == "darwin" else peak / 1024


@contextmanager
def resident_rise() -> Iterator[list[int]]:
    """How many bytes the resident size rises at the most inside: one number, once it is left; none where the system tells no peak."""
    rise: list[int] = []
    before, peak = _resident("VmRSS"), _resident("VmHWM")
    if before is None or peak is None or not _forget_resident_peak():
        yield rise
        return
    try:
        yield rise
    finally:
        _earlier[0] = max(_earlier[0], peak / MIB)
        rise.append(max(0, (_resident("VmHWM") or 0) - before))


def _forget_resident_peak() -> bool:
    with suppress(OSError):  # then the peak of the whole process is reported
        Path("/proc/self/clear_refs").write_text("5")  # 5: reset the resident high-water mark
        return True
    return False


def _resident(name: str) -> int | None:
    """Bytes that /proc/self/status tells under this name; None where there is no such thing."""
    try:
        found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        return None
    return None if found is None else int(found.group(1)) * 1024


def _cuda() -> Any | None:
    """`torch.cuda`, if the run has loaded torch and touched a GPU."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_initialized() else None

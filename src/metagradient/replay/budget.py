"""Which plan fits the memory: what a step takes in, a plan out."""

from __future__ import annotations

import re
from collections.abc import Callable

import psutil
import torch

from metagradient.errors import UserError
from metagradient.replay import plans
from metagradient.replay.plans import Plan
from metagradient.replay.trial import Footprint

_UNITS = {"": 1, "B": 1, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def parse_bytes(size: str | int | float) -> int:
    """'500MiB', '2 GB', 1e9 -> bytes."""
    if isinstance(size, int | float):
        return int(size)
    match = re.fullmatch(r"\s*([0-9]+\.?[0-9]*(?:[eE][+]?[0-9]+)?)\s*([A-Za-z]*)\s*", size)
    if match is None or match[2].upper() not in _UNITS:
        raise UserError(f"replay.memory must be a size such as 500MiB or 2GiB, not '{size}'")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def format_bytes(size: float) -> str:
    """Bytes in B, KiB, MiB or GiB."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def available_bytes(device: torch.device) -> int:
    """Memory that the replay may use by default: half of what is free on a GPU, a quarter on a CPU."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] // 2
    return int(psutil.virtual_memory().available) // 4


def choose(spec: str, steps: int, footprint: Footprint, memory: int, *, stored_in_memory: bool = True) -> Plan:
    """The plan for a spec: tape, all, sqrt, tree(k), binomial(slots), every(segment), or auto.

    `auto` takes the plan with the fewest recomputed steps whose predicted peak fits `memory`, and of equals the
    smaller; large steps are taped one at a time (`Footprint.one_at_a_time`). A plan whose prediction does not fit is refused with the smallest memory that works.
    """
    if spec.strip() == "auto":
        return _fewest_steps(steps, footprint, memory, stored_in_memory)
    try:
        plan = plan_named(spec, steps)
    except LookupError as error:
        raise UserError(
            f"replay.checkpoints must be auto, tape, all, sqrt, every(segment), tree(k) or binomial(slots), not '{spec}'"
        ) from error
    except ValueError as error:
        raise UserError(f"replay.checkpoints='{spec}': {error}") from error
    need = footprint.peak(plan, stored_in_memory)
    if need > memory:
        smallest = footprint.peak(_smallest(steps), stored_in_memory)
        raise UserError(
            f"checkpoints '{spec}' needs about {format_bytes(need)} for {steps} steps and replay.memory is "
            f"{format_bytes(memory)}: set replay.memory={_round_up(need)}, or replay.checkpoints=auto (works from "
            f"replay.memory={_round_up(smallest)})"
        )
    return plan


def plan_named(name: str, steps: int) -> Plan:
    """The plan with this `Plan.name`, or as it is written in settings: `binomial(5,3)` is `binomial(5, segment=3)`.

    Raises:
        LookupError: there is none of this name.
        ValueError: its numbers make no plan.
    """
    match = re.fullmatch(r"\s*(\w+)\s*(?:\(\s*(\d+)\s*(?:,\s*(?:segment\s*=\s*)?(\d+)\s*)?\))?\s*", name)
    kind = match[1] if match else ""
    numbers = [int(x) for x in match.groups()[1:] if x] if match else []
    least, most, make = _MAKERS.get(kind, (1, 0, plans.tape))
    if not least <= len(numbers) <= most:
        raise LookupError(name)
    return make(steps, *numbers)


_MAKERS: dict[str, tuple[int, int, Callable[..., Plan]]] = {
    "tape": (0, 0, plans.tape),
    "all": (0, 0, plans.all_steps),
    "sqrt": (0, 0, plans.sqrt),
    "every": (1, 1, plans.every),
    "tree": (1, 2, plans.tree),
    "binomial": (1, 2, plans.binomial),
}
"""By name: how many numbers each takes at least and at most, and what makes it."""


def _smallest(steps: int) -> Plan:
    return plans.binomial(steps, 1) if steps > 1 else plans.tape(steps)


def smallest_memory(steps: int, footprint: Footprint) -> int:
    """Bytes in which the cheapest plan of so many steps still fits."""
    return footprint.peak(_smallest(steps))


def _round_up(size: int) -> str:
    """A size to type that is not below `size`."""
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= 10 * factor or (factor == 2**10):
            return f"{-(-size // factor)}{unit}"
    return f"{size}B"


def _fewest_steps(steps: int, footprint: Footprint, memory: int, stored_in_memory: bool) -> Plan:
    state, stored, taped = footprint.state, footprint.stored, footprint.taped_step
    free = memory - footprint.working(stored_in_memory)
    longest = min(steps, 1 if footprint.one_at_a_time else steps, free // taped) if free > 0 else 0
    best: tuple[int, int, int, int] | None = None
    for segment in _candidates(longest):
        segments = -(-steps // segment)
        slots = segments if not stored_in_memory else min(segments, (free - segment * taped) // max(stored, 1))
        if segments > 1 and slots < 1:
            continue
        advanced = plans.binomial_advanced_steps(steps, slots, segment) if segments > 1 else 0
        needed = min(slots, max(segments - 1, 0)) * stored * stored_in_memory + segment * taped
        if best is None or (advanced, needed) < best[:2]:
            best = (advanced, needed, segment, slots)
    if best is None:
        smallest = footprint.peak(_smallest(steps), stored_in_memory)
        raise UserError(
            f"replay.memory={format_bytes(memory)} is too small: a state takes {format_bytes(state)} and a taped step "
            f"{format_bytes(taped)}; the smallest that works is replay.memory={_round_up(smallest)}"
        )
    _, _, segment, slots = best
    if segment >= steps:
        return plans.tape(steps)
    return plans.binomial(steps, slots, segment)


def _candidates(longest: int) -> list[int]:
    """Segment lengths to try: all of the small ones, then 2 % apart."""
    lengths, segment = [], 1
    while segment <= longest:
        lengths.append(segment)
        segment = max(segment + 1, int(segment * 1.02))
    return sorted({*lengths, longest}) if longest else []

"""How far a metagradient in each precision is from that in float64, and how long it takes."""

import logging
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from metagradient.studies.cost import contenders
from metagradient.studies.cost.contenders import Case
from metagradient.studies.cost.measuring import WARM_UP, Track, timed
from metagradient.training.modules.products import set_products

log = logging.getLogger(__name__)


class Compared(NamedTuple):
    """A precision of a model: |g - g64| / |g64| (None: not computed), and seconds in those of float32."""

    model: str
    precision: str
    error: float | None
    time: float | None


def policies(device: torch.device, unrolled: bool) -> dict[str, Callable[[Case], Tensor]]:
    """Metagradients of a case in each precision; with `unrolled` also of bfloat16 parameters, which no learner takes."""

    def ours(case: Case) -> Tensor:
        return contenders.ours(case, "auto")["weights"]

    found: dict[str, Callable[[Case], Tensor]] = {
        "float64": lambda case: ours(case.to(device, torch.float64)),
        "float32": ours,
    }
    if device.type == "cuda":
        found |= {name: partial(_with_products, name, ours) for name in ("high", "medium")}
    if unrolled:
        found["bf16 parameters"] = lambda case: contenders.naive(case.to(device, torch.bfloat16))
    return found


def _with_products(name: str, ours: Callable[[Case], Tensor], case: Case) -> Tensor:
    set_products(name)
    try:
        return ours(case)
    finally:
        set_products("highest")


def compare(
    model: str, steps: int, seed: int, device: torch.device, track: Track, *, unrolled: bool = True
) -> dict[str, tuple[float | None, float | None]]:
    """(error, time) of each precision but float64, for the metagradient of the data weights of a run of `steps` steps.

    `unrolled`: the whole run may be in one graph, which bfloat16 parameters take.
    """
    calls, case = policies(device, unrolled), contenders.make_case(model, steps, seed).to(device)
    before = torch.get_float32_matmul_precision()
    set_products("highest")
    results: dict[str, Tensor] = {}
    seconds: dict[str, float] = {}
    try:
        for name in track(list(calls), f"precision: {model}, {steps} steps"):
            try:
                calls[name](contenders.make_case(model, min(WARM_UP, steps), seed).to(device))
                results[name], seconds[name] = timed(calls[name], case)
            except (RuntimeError, NotImplementedError) as error:  # an operation that bfloat16 lacks
                log.warning("%s of %s: %s", name, model, str(error).split("\n")[0])
    finally:
        set_products(before)
    truth = results.pop("float64")
    return {
        name: (_error(results[name], truth), seconds[name] / seconds["float32"]) if name in results else (None, None)
        for name in calls
        if name != "float64"
    }


def _error(found: Tensor, truth: Tensor) -> float:
    return float((found.double() - truth).norm() / truth.norm())

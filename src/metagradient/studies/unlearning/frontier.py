"""What the adaptive period buys: error ratio against gradients saved, beside fixed periods, on the same requests."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from omegaconf import DictConfig

from metagradient.errors import UserError
from metagradient.evaluation import distance
from metagradient.reporting import Progress, Record
from metagradient.reporting.comparison.frontier import frontier
from metagradient.unlearning import Adaptive, DeltaGrad, Method, RecordedRun, Request, Retrain

Point = tuple[float, float]
"""(gradients saved: those of retraining / the method's, error ratio), medians over the requests."""


def compare(
    cfg: DictConfig, record: Record, run: RecordedRun, method: Method, requests: Sequence[Request], progress: Progress
) -> float:
    """frontier.csv, frontier.png and `frontier_gain`; returns the training runs it cost.

    The gain is the adaptive option's error ratio divided by that of fixed periods that save as many gradients
    (interpolated between their points, both logarithmic), the geometric mean over the targets within their range:
    above 1 the adaptive option is better. Gradients are counted, not timed, so the comparison has no noise of clocks.
    """
    if not isinstance(method, DeltaGrad):
        raise UserError("frontier.* varies the period of DeltaGrad: set method=deltagrad, or frontier.periods=[]")
    variants: dict[tuple[str, float], DeltaGrad] = {
        **{("period", p): replace(method, period=p, adaptive=None) for p in cfg.frontier.periods},
        **{("target", e): replace(method, adaptive=Adaptive(e)) for e in cfg.frontier.targets},
    }
    found: dict[tuple[str, float], list[Point]] = {key: [] for key in variants}
    spent = 0.0
    for request in progress.track(requests, "frontier: requests", stage="frontier"):
        truth = Retrain()(run, request, progress=progress.callback())
        moved = distance(run.final, truth.state)
        for key, variant in variants.items():
            answer = variant(run, request, progress=progress.callback())
            saved = truth.gradients / answer.gradients
            found[key].append((saved, moved / distance(answer.state, truth.state)))
            spent += 1 / saved
    points = {key: tuple(map(statistics.median, zip(*seen, strict=True))) for key, seen in found.items()}
    record.csv("frontier", ["rule", "setting", "saved", "error_ratio"], [[*key, *p] for key, p in points.items()])
    curves = {
        name: sorted((x, y) for (rule, _), (x, y) in points.items() if rule == kind)
        for name, kind in {"fixed period": "period", "adaptive": "target"}.items()
    }
    record.result({"frontier_gain": gain(curves["adaptive"], curves["fixed period"])})
    record.figure("frontier", frontier({"": {name: [curve] for name, curve in curves.items()}}))
    return spent + len(requests)


def gain(adaptive: Sequence[Point], fixed: Sequence[Point]) -> float | None:
    """See `compare`; None where no adaptive point lies in the range of the fixed ones."""
    x, y = np.log(np.array(sorted(fixed))).T
    inside = [(a, b) for a, b in np.log(np.array(adaptive)) if x[0] <= a <= x[-1]]
    return math.exp(statistics.fmean(b - np.interp(a, x, y) for a, b in inside)) if inside else None

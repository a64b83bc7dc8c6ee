"""What one looks at after unlearning: the two paths, and how far each request was from the truth."""

from collections.abc import Mapping, Sequence

import torch
from matplotlib.figure import Figure
from omegaconf import DictConfig

from metagradient.reporting import Record
from metagradient.reporting.figures.distances import paired_distances, path_distances
from metagradient.studies.unlearning.recording import storage
from metagradient.unlearning import DeltaGrad, Method, RecordedRun, Request, Retrain


def draw(
    cfg: DictConfig,
    record: Record,
    run: RecordedRun,
    method: Method,
    request: Request,
    rows: Sequence[Mapping[str, float]],
) -> None:
    """distances.png; of DeltaGrad also path.png."""
    record.figure(
        "distances",
        paired_distances(
            [row["distance_original_to_retrained"] for row in rows],
            [row["distance_to_retrained"] for row in rows],
            ("untouched model", "after the request"),
        ),
    )
    if isinstance(method, DeltaGrad):
        record.figure("path", _path(cfg, run, method, request))


def _path(cfg: DictConfig, run: RecordedRun, method: DeltaGrad, request: Request) -> Figure:
    """Distances to the retrained path at every step: both are run again, keeping their steps."""
    again = [call(run, request, keep=storage(cfg)).run for call in (method, Retrain())]
    assert all(again)
    old, new = [], []
    for (w, _), (w_new, _), (w_true, _) in zip(run.history, *(a.history for a in again if a), strict=True):
        old.append(float((w - w_true).norm()))
        new.append(float((w_new - w_true).norm()))
    steps = torch.arange(len(old))
    seen = [i for i in range(len(old)) if old[i] > 0]
    return path_distances(
        steps[seen].tolist(), {"untouched run": [old[i] for i in seen], "DeltaGrad": [new[i] for i in seen]}
    )

"""LESS: which training examples would move an Adam run the way a few target examples ask for (arXiv 2402.04333)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from metagradient.attribution.compression.compressors import Dropout, coordinates
from metagradient.attribution.gradients.hooks import ExampleGradients
from metagradient.errors import UserError
from metagradient.learners.learner import Learner
from metagradient.training.batches import Batch, Fields
from metagradient.training.run import Progress
from metagradient.training.sources import in_order
from metagradient.training.state import TrainState
from metagradient.training.updates import Adam


def less(
    learner: Learner,
    trajectory: Sequence[tuple[TrainState, float]],
    examples: Fields,
    targets: Fields,
    subtasks: Tensor | None = None,
    *,
    steps: int,
    k: int = 8192,
    seed: int = 0,
    batch: int = 64,
    progress: Progress | None = None,
) -> Tensor:
    """LESS scores [n]: max over subtasks of sum over checkpoints of rate * cos(Adam's step for the example, subtask's gradient).

    Adam's step for example z at a checkpoint with moments (m, v) after t steps is m' / (sqrt(v' + eps_root) + eps), with
    m' = (b1 m + (1 - b1) g_z) / (1 - b1^(t+1)) and v' = (b2 v + (1 - b2) g_z^2) / (1 - b2^(t+1)); a subtask's gradient is the
    plain mean over its targets. Gradients are compressed by dropout, which keeps single coordinates, so that the
    preconditioner acts on each of them exactly; cosines are between the kept coordinates.

    Args:
        learner: of the run, trained with Adam or AdamW.
        trajectory: (state, learning rates spent until it) of checkpoints at equal distances (`tracin.checkpoints`).
        examples: the n training examples.
        targets: the m target examples.
        subtasks: int64 [m], which subtask each belongs to; None: all to one.
        steps: of the whole run.
        k: coordinates kept, at most all of them.
        seed: of the coordinates.
        batch: examples whose gradients are taken at once.
        progress: called now and then.

    Raises:
        UserError: the optimizer is not Adam.
    """
    optimizer = learner.update.optimizer
    if not isinstance(optimizer, Adam):
        raise UserError(
            f"LESS preconditions with Adam's moments, and the optimizer is {type(optimizer).__name__}: set learner=adam"
        )
    count = len(next(iter(targets.values())))
    groups = torch.zeros(count, dtype=torch.int64) if subtasks is None else subtasks
    scores = torch.zeros(int(groups.max()) + 1, len(next(iter(examples.values()))))
    for place, (state, rate) in enumerate(trajectory):
        if progress is not None:
            progress("LESS", place, len(trajectory))
        gradients = ExampleGradients(learner, state)
        kept = coordinates(min(k, gradients.size), gradients.parameters, seed, state.params.device)
        dropout = Dropout(min(k, gradients.size), seed).bind(gradients.parameters, state.params, lambda: [])
        scale = (gradients.size / dropout.k) ** 0.5
        flat = torch.cat(
            [
                p.start + rows * p.columns + columns
                for p, (rows, columns) in zip(gradients.parameters, kept, strict=True)
            ]
        )
        m, v = (slot.index_select(0, flat) for slot in state.slots[:2])
        t = round((place + 1) / len(trajectory) * steps)
        b1, b2 = optimizer.betas
        asked = torch.zeros(len(scores), dropout.k, dtype=state.params.dtype, device=state.params.device)
        for rows, fields in in_order(targets, batch):
            for pieces in gradients(Batch(0, rows, dict(fields))):
                asked.index_add_(0, groups[rows].to(asked.device), dropout(pieces) / scale)
        directions = F.normalize(asked, dim=1)
        for rows, fields in in_order(examples, batch):
            for pieces in gradients(Batch(0, rows, dict(fields))):
                g = dropout(pieces) / scale
                first = (b1 * m + (1 - b1) * g) / (1 - b1 ** (t + 1))
                second = (b2 * v + (1 - b2) * g.square()) / (1 - b2 ** (t + 1))
                step = first / ((second + optimizer.eps_root).sqrt() + optimizer.eps)
                scores[:, rows] += rate * (directions @ F.normalize(step, dim=1).T).cpu()
    if progress is not None:
        progress("LESS", len(trajectory), len(trajectory))
    return scores.max(0).values

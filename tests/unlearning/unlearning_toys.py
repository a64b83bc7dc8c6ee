"""Small runs that the unlearning tests share, in float64."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

import metagradient as mg
from metagradient.unlearning import RecordedRun, Request, record

N, INPUTS, CLASSES = 60, 5, 3


def examples(n: int = N, seed: int = 0) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, INPUTS, generator=g, dtype=torch.float64)
    return {"x": x, "y": (x[:, :CLASSES] + 0.5 * torch.randn(n, CLASSES, generator=g, dtype=torch.float64)).argmax(1)}


def learner(
    optimizer: mg.Optimizer | None = None, schedule: mg.Schedule | float = 0.2, hidden: int | None = None
) -> mg.Classifier:
    torch.manual_seed(1)
    layers = [nn.Linear(INPUTS, CLASSES)]
    if hidden:
        layers = [nn.Linear(INPUTS, hidden), nn.Tanh(), nn.Linear(hidden, CLASSES)]  # type: ignore[list-item]
    optimizer = mg.SGD(weight_decay=0.01) if optimizer is None else optimizer
    return mg.Classifier(nn.Sequential(*layers).double(), optimizer, schedule)


PLANS: dict[str, Tensor] = {
    "full": mg.full_batch_plan(N, 60),
    "batches": mg.epoch_plan(N, 16, 15, seed=3),
    # rows 0 and 1 are batches of their own: deleting them empties steps 4, 21 and 40
    "holes": mg.given_plan(
        [[0, 1] if t in (4, 21, 40) else [(7 * t + k) % (N - 2) + 2 for k in range(12)] for t in range(60)]
    ),
}


def recorded(plan: str = "full", present: Sequence[int] | None = None, **settings: object) -> RecordedRun:
    mask = None if present is None else torch.isin(torch.arange(N), torch.tensor(present))
    return record(learner(**settings), mg.Batches(examples(), PLANS[plan]), mask)  # type: ignore[arg-type]


def delete(*rows: int) -> Request:
    return Request("delete", torch.tensor(rows, dtype=torch.int64))


def add(*rows: int) -> Request:
    return Request("add", torch.tensor(rows, dtype=torch.int64))


def by_hand(run: RecordedRun, present: Tensor, optimizer: object, rate: object) -> Tensor:
    """The parameters [P] after training on the rows present, by `torch.optim`: nothing of the library but the plan."""
    shapes = run.learner.layout.shapes
    params = [p.clone().requires_grad_() for p in run.learner.layout.views(run.initial.params)]
    assert [p.shape for p in params] == shapes
    opt = optimizer(params)  # type: ignore[operator]
    x, y = run.batches.examples["x"], run.batches.examples["y"]
    for t, row in enumerate(run.batches.plan):
        rows = row[row >= 0]
        rows = rows[present[rows]]
        if len(rows) == 0:
            continue
        for group in opt.param_groups:
            group["lr"] = rate(t)  # type: ignore[operator]
        out = x[rows]
        for i in range(0, len(params), 2):
            out = out @ params[i].T + params[i + 1]
            out = torch.tanh(out) if i + 2 < len(params) else out
        opt.zero_grad()
        nn.functional.cross_entropy(out, y[rows]).backward()
        opt.step()
    return torch.cat([p.detach().reshape(-1) for p in params])

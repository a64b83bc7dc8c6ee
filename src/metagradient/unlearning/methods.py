"""What every way of meeting a request has in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch

from metagradient.errors import UserError
from metagradient.replay.storage import Storage
from metagradient.streams import Library
from metagradient.training.random import generator
from metagradient.training.run import Progress
from metagradient.training.state import TrainState
from metagradient.unlearning.requests import Request
from metagradient.unlearning.run import RecordedRun


@dataclass(frozen=True, eq=False)
class Unlearned:
    """The answer to a request.

    Attributes:
        state: the model after it.
        gradients: the gradients of single examples that it took (a Hessian product counts 3).
        run: the run as it would have been, ready for the next request; None where it was not kept.
        details: further numbers: exact steps, refused pairs, ...
    """

    state: TrainState
    gradients: int
    run: RecordedRun | None = None
    details: Mapping[str, float] = field(default_factory=dict)


class Method(Protocol):
    """A way to meet a request. With `keep`, a storage, the run as it would have been is written there and returned.

    Raises:
        UserError: a request that the run cannot meet; the run is never changed.
    """

    def __call__(
        self, run: RecordedRun, request: Request, *, keep: Storage | None = None, progress: Progress | None = None
    ) -> Unlearned: ...


def perturbed(state: TrainState, sigma: float, seed: int) -> TrainState:
    """The state with N(0, sigma^2) noise on every parameter, drawn from `seed`.

    Noise on the output is what certified removal adds to hide the distance that is left. How much is needed depends on
    a bound on that distance, which nothing here proves: this is the mechanism, not a certificate.
    """
    if not sigma >= 0:
        raise UserError(f"the noise's standard deviation must be >= 0, not {sigma}: set output_noise=0")
    rng = generator(seed, Library.OUTPUT_NOISE)
    noise = torch.randn(state.params.shape, generator=rng, dtype=state.params.dtype).to(state.params.device)
    return replace(state, params=state.params + sigma * noise)

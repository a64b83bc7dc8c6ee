"""What attribution methods are given: a trained run, and their settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Self

from metagradient.attribution.scoring.influence import CurvatureName
from metagradient.learners.learner import Learner
from metagradient.learners.routine import Routine
from metagradient.training.batches import Batches, Fields
from metagradient.training.run import Progress, train
from metagradient.training.state import TrainState


@dataclass(frozen=True, eq=False, kw_only=True)
class TrainedRun:
    """A training run and its end: what attribution asks about.

    Attributes:
        learner: holds the parameters at which the run started.
        batches: the run's training examples and their order.
        state: the end of the run.
        routine: how such models are trained; only TRAK, which trains several, needs it.
        words: of each of some texts; only bm25 needs it.
    """

    learner: Learner
    batches: Batches
    state: TrainState
    routine: Routine | None = field(default=None, repr=False)
    words: Callable[[Fields], list[list[str]]] | None = field(default=None, repr=False)

    @classmethod
    def of(cls, learner: Learner, batches: Batches, progress: Progress | None = None) -> Self:
        """Train `learner` on `batches`; its own parameters stay where the run started."""
        return cls(learner=learner, batches=batches, state=train(learner, batches, progress=progress))

    @property
    def train(self) -> Fields:
        """The training examples' fields."""
        return self.batches.examples

    @property
    def n(self) -> int:
        """The number of training examples."""
        return self.batches.n_examples


@dataclass(frozen=True)
class MethodSettings:
    """What the methods need besides their names; the defaults are those of the command line.

    Attributes:
        curvature: gauss_newton, fisher (empirical) or identity.
        labels: draws from the model for each example of the Gauss-Newton matrix; None: every class, exactly.
        damping: relative to the mean eigenvalue of the curvature; "run": what the run itself amounts to.
        batch: examples whose gradients are taken at once.
        checkpoints: of the run, for methods along its path.
        seed: of masks, projections and drawn labels; `mask_seed` varies masks and projections alone.
        none_primal: `none` forms the [P, P] curvature up to this P, and works with kernels beyond.
        pca_examples: that PCA is fitted on.
        trak_k: the projection of TRAK.
        replay_checkpoints, replay_memory: of exact scores, as for `metagradient`; the memory is also what the gradients
            of queries that are scored together may take.
        store: a folder that keeps compressed gradients of the training examples, one within it for each method: asked
            again about the same model, such a method passes over no training example.
    """

    curvature: CurvatureName = "gauss_newton"
    labels: int | None = None
    damping: float | Literal["run"] = 1.0
    batch: int = 512
    checkpoints: int = 4
    seed: int = 0
    mask_seed: int = 0
    none_primal: int = 8192
    pca_examples: int = 4096
    trak_k: int = 2048
    replay_checkpoints: str = "auto"
    replay_memory: str | int | None = None
    store: str | None = None

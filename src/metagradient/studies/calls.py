"""The questions in one call each, for notebooks: `mg.select`, `mg.attribute`, `mg.unlearn`.

They are given a model and data as one has them, train, and answer. The command line does the same with presets, judges,
baselines, files and figures; `DescentProblem`, `attribution.method` and `unlearning.record` are the parts they are made of.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metagradient import streams
from metagradient.attribution import TrainedRun, method
from metagradient.descent import DescentProblem, Selection, WeightSelection
from metagradient.descent.selection import CountSelection
from metagradient.errors import UserError
from metagradient.evaluation import distance, mean_cross_entropy
from metagradient.files import write_csv
from metagradient.learners import Classifier, Learner, Regressor, Routine
from metagradient.replay import metagradient
from metagradient.reporting import Progress
from metagradient.training.batches import Batches, Fields
from metagradient.training.random import fold_in, generator
from metagradient.training.run import initial_state
from metagradient.training.sources import examples_of, take
from metagradient.training.updates import SGD, Cosine
from metagradient.unlearning import DeltaGrad, Method, Request, Retrain, record
from metagradient.unlearning.requests import row_numbers

__all__ = ["Forgotten", "Scores", "Training", "attribute", "select", "unlearn"]

Model = nn.Module | Callable[[], nn.Module]
"""A Learner, any module, or a function that makes a fresh one. A module that is no Learner is given the cross entropy of its
logits as its loss; where y are numbers [n] or [n, 1] with fractions, its squared error."""

_SMALL = 8192  # parameters of models whose curvature is taken whole
_LOOKED_AT = 256  # targets of a data set whose rows are read


@dataclass(frozen=True)
class Training:
    """How a model is trained where it does not say so itself.

    Attributes:
        epochs: passes over the data.
        batch_size: examples of a step; None: all of them at every step.
        learning_rate: of SGD with momentum, where the model is no Learner, which has an optimizer of its own; it falls
            to 0 in half a cosine.
        seed: of the order and of fresh models.
    """

    epochs: int = 10
    batch_size: int | None = 50
    learning_rate: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        counts = {"epochs": self.epochs, "batch_size": 1 if self.batch_size is None else self.batch_size}
        for name, count in counts.items():
            if not isinstance(count, int) or count < 1:
                also = " (or None, all examples at every step)" if name == "batch_size" else ""
                raise UserError(f"Training's {name} must be a whole number from 1{also}, not {count!r}")
        if not isinstance(self.learning_rate, int | float) or not 0 < self.learning_rate < float("inf"):
            raise UserError(f"Training's learning_rate must be a number > 0, not {self.learning_rate!r}")

    def routine(
        self,
        model: Model,
        normalize: str = "batch",
        momentum: float = 0.9,
        kind: type[Classifier | Regressor] = Classifier,
    ) -> Routine:
        """Runs that each begin at a fresh model, or at a copy of the one given; a plain module becomes a learner of this kind."""

        def make(schedule: Any) -> Learner:
            made = copy.deepcopy(model) if isinstance(model, nn.Module) else model()
            if isinstance(made, Learner):
                return made
            return kind(made, SGD(momentum), schedule, normalize=normalize)

        return Routine(make, lambda steps: Cosine(self.learning_rate, steps), self.batch_size, self.epochs)


@dataclass(frozen=True, eq=False)
class Scores:
    """How much each training example matters to each query.

    Attributes:
        values: [n_train, n_query]; in nats, the predicted rise of the query's loss without the example: positive helps.
        method: as it was named.
        learner: the trained model, in evaluation mode.
    """

    values: Tensor
    method: str
    learner: Learner = field(repr=False)

    def top(self, query: int, k: int = 10) -> tuple[list[int], list[int]]:
        """The rows of the k most helpful and of the k most harmful training examples, the strongest first."""
        order = self.values[:, query].argsort(descending=True).tolist()
        return order[:k], order[::-1][:k]

    def csv(self, path: str | Path, k: int = 10) -> None:
        """Write the k most helpful and harmful training examples of each query."""
        rows = [
            [query, rank if sign > 0 else -rank, row, float(self.values[row, query])]
            for query in range(self.values.shape[1])
            for sign, side in zip((1, -1), self.top(query, k), strict=True)
            for rank, row in enumerate(side, 1)
        ]
        write_csv(Path(path), ["query", "rank", "train_index", "score"], rows)


def attribute(
    model: Model,
    train: Fields | Any,
    queries: Fields | Any,
    method_name: str | None = None,
    *,
    training: Training | None = None,
    trained: bool = False,
    aggregate: bool = False,
    **settings: Any,
) -> Scores:
    """Which training examples matter to these queries, and in which direction?

    Args:
        model: see `Model`; it is copied.
        train: fields {"x": [n, ...], "y": [n]}, a map-style data set, or the `Batches` of a run.
        queries: the examples asked about, likewise.
        method_name: as on the command line: `exact`, `dropout:2048`, `gradient_dot`, ...; by default `none` (nothing is
            compressed) of models up to 8192 parameters, else `dropout:2048`.
        training: how the model is trained.
        trained: the model is trained already, and asked as it is.
        aggregate: one score for each training example, for the mean loss of all queries: values [n_train, 1].
        **settings: of the method: damping=, curvature=, store=, ... (see `MethodSettings`).

    Raises:
        UserError: no such method or setting, data that do not fit the model.
    """
    how = Training() if training is None else training
    routine = how.routine(model, kind=_kind(_examples(train)))
    batches = _batches(train, routine, how)
    learner = routine.learner(how.seed, len(batches))
    if method_name is None:
        size = sum(p.numel() for p in learner.parameters() if p.requires_grad)
        method_name = "none" if size <= _SMALL else "dropout:2048"
    chosen = method(method_name, **settings)
    with Progress() as progress:
        if trained:
            learner.configure_for(batches)
            run = TrainedRun(learner=learner, batches=batches, state=initial_state(learner), routine=routine)
        else:
            run = replace(TrainedRun.of(learner, batches, progress.callback()), routine=routine)
        asked, told = _examples(queries), progress.callback()
        values = (
            chosen.aggregate(run, asked, progress=told)[:, None] if aggregate else chosen(run, asked, progress=told)
        )
    return Scores(values, method_name, copy.deepcopy(learner).adopt(run.state).eval())


def select(
    model: Model,
    train: Fields | Any,
    validation: Fields | Any,
    *,
    descent: WeightSelection | CountSelection | None = None,
    training: Training | None = None,
    held_out: float = 0.25,
    memory: str | None = None,
) -> Selection:
    """Which training data should be used, for the sake of these trusted examples?

    Metagradient descent on the weights (or counts) of the training examples; part of the validation rows chooses the
    metastep, the others steer. `found.kept` says which rows to keep, `found.apply(train)` gives the data to train on.

    Args:
        model: see `Model`; a function gives every metastep a fresh initialisation, a module its own parameters.
        train: fields {"x": [n, ...], "y": [n]}, a map-style data set, or `Batches`, of which the examples are taken.
        validation: trusted examples, likewise.
        descent: `WeightSelection(metasteps=20)` by default, or `CountSelection(...)`.
        training: how the model is trained.
        held_out: share of the validation rows that only choose the metastep.
        memory: what the replay may take, "2GiB" for instance.

    Raises:
        UserError: too few validation rows, data that do not fit the model.
    """
    how = Training() if training is None else training
    examples, trusted = _examples(train), _examples(validation)
    n = len(next(iter(trusted.values())))
    held = round(held_out * n)
    if not 0 < held < n:
        raise UserError(f"held_out={held_out} of {n} validation rows leaves nothing to choose by, or to steer by")
    order = torch.randperm(n, generator=generator(how.seed, streams.Selection.HELD_OUT))
    chooses, steers = take(trusted, order[:held]), take(trusted, order[held:])
    with Progress() as progress:
        problem = DescentProblem(
            examples,
            steers,
            score=lambda learner, state: {"held_out_loss": mean_cross_entropy(learner, state, chooses)},
            routine=how.routine(model, kind=_kind(examples)),
            fit=lambda learner, batches, z, objective: metagradient(
                learner, batches, z, objective, memory=memory, progress=progress.callback()
            ),
            seed=fold_in(how.seed, streams.Selection.DESCENT),
        )
        chosen = WeightSelection() if descent is None else descent
        return chosen.run(problem, progress=progress.callback("descent"))


@dataclass(frozen=True, eq=False)
class Forgotten:
    """A model before and after it has forgotten some rows.

    Attributes:
        learner: after, in evaluation mode.
        before: trained on all rows, in evaluation mode.
        distance: between the two, in the 2-norm of the parameters.
        distance_to_retrained: of `learner` from a model retrained without the rows; None where that was not asked for.
    """

    learner: Learner
    before: Learner
    distance: float
    distance_to_retrained: float | None = None


def unlearn(
    model: Model,
    train: Fields | Any,
    rows: Sequence[int] | Tensor,
    *,
    by: Method | None = None,
    training: Training | None = None,
    judge: bool = False,
) -> Forgotten:
    """What would the model be without these rows?

    Args:
        model: see `Model`; it is copied, trained on all rows, and its run recorded.
        train: fields {"x": [n, ...], "y": [n]}, a map-style data set, or the `Batches` of a run.
        rows: row numbers to forget, or a mask [n] bool.
        by: `DeltaGrad()` by default; `Retrain()`, `Newton()`, ...
        training: how the model is trained.
        judge: also retrain, and say how far the answer is from the truth.

    Raises:
        UserError: rows that are not there, a model whose examples' losses depend on one another.
    """
    how = Training() if training is None else training
    routine = how.routine(model, normalize="kept", momentum=0.0, kind=_kind(_examples(train)))
    batches = _batches(train, routine, how)
    request = Request("delete", row_numbers(rows, batches.n_examples))
    learner = routine.learner(how.seed, len(batches))
    with Progress() as progress:
        run = record(learner, batches, progress=progress.callback())
        after = (DeltaGrad() if by is None else by)(run, request, progress=progress.callback()).state
        truth = Retrain()(run, request, progress=progress.callback()).state if judge else None
    return Forgotten(
        copy.deepcopy(learner).adopt(after).eval(),
        copy.deepcopy(learner).adopt(run.final).eval(),
        distance(run.final, after),
        None if truth is None else distance(truth, after),
    )


def _kind(examples: Fields) -> type[Classifier | Regressor]:
    """What a plain module becomes: a Regressor where the targets are numbers with fractions, else a Classifier."""
    y: Any = examples.get("y")
    if not hasattr(y, "is_floating_point") or not y.is_floating_point() or y[:1].numel() != 1:
        return Classifier
    some = y if isinstance(y, Tensor) else y[:_LOOKED_AT]
    return Regressor if bool((some[some.isfinite()] % 1 != 0).any()) else Classifier


def _examples(data: Fields | Any) -> Fields:
    return data.examples if isinstance(data, Batches) else examples_of(data)


def _batches(train: Fields | Any, routine: Routine, how: Training) -> Batches:
    return train if isinstance(train, Batches) else routine.batches(examples_of(train), how.seed)

"""One request met by the method and by retraining, timed in turn, and what the judges say of the difference."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter

import torch
from omegaconf import DictConfig

import metagradient as mg
from metagradient.data import Splits
from metagradient.evaluation import (
    MEASURES,
    distance,
    mean_cross_entropy,
    membership_auc,
    take,
)
from metagradient.files import read_sealed, write_sealed
from metagradient.reporting import Progress
from metagradient.streams import Unlearning
from metagradient.training.random import fold_in
from metagradient.unlearning import Method, RecordedRun, Request, Retrain, Unlearned, perturbed

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer:
    """One request met twice, by retraining and by the method; seconds of each."""

    request: Request
    retrained: Unlearned
    unlearned: Unlearned
    retrain_seconds: float
    seconds: float


def ask(method: Method, run: RecordedRun, request: Request, turn: int, cfg: DictConfig, progress: Progress) -> Answer:
    """Both in an order that alternates with `turn`; nothing but them lies inside the clocks."""
    both = {"retrain": Retrain(), "method": method}
    order = sorted(both, reverse=turn % 2 == 0)
    done = {name: timed(both[name], run, request, progress) for name in order}
    (retrained, slow), (unlearned, fast) = done["retrain"], done["method"]
    unlearned = replace(unlearned, state=handed_out(cfg, unlearned.state, turn))
    return Answer(request, retrained, unlearned, slow, fast)


def handed_out(cfg: DictConfig, state: mg.TrainState, turn: int) -> mg.TrainState:
    """The state that is handed out: with the noise of `output_noise`, drawn for this `turn`."""
    return perturbed(state, cfg.output_noise, fold_in(cfg.seed, Unlearning.NOISE, turn)) if cfg.output_noise else state


def timed(method: Method, run: RecordedRun, request: Request, progress: Progress) -> tuple[Unlearned, float]:
    """A method's answer and the seconds it took."""
    started = perf_counter()
    result = method(run, request, progress=progress.callback())
    if result.state.params.is_cuda:
        torch.cuda.synchronize()
    return result, perf_counter() - started


def judge(run: RecordedRun, answer: Answer, splits: Splits) -> dict[str, float]:
    """What tells the method's model from the retrained one: `asked`, `kept` and `test` are examples, a gap is
    (method - retrained)."""
    measure = MEASURES[splits.task]
    learner, new, true = run.learner, answer.unlearned.state, answer.retrained.state
    asked = take(splits.train, answer.request.rows)
    kept = take(splits.train, answer.request.apply(run.present) & run.present)
    error, moved = distance(new, true), distance(run.final, true)
    row = {
        "distance_to_retrained": error,
        "distance_original_to_retrained": moved,
        "error_ratio": moved / error if error else float("inf"),
        "speedup": answer.retrain_seconds / answer.seconds,
        "gradient_saving": answer.retrained.gradients / max(answer.unlearned.gradients, 1),
        "agreement": measure.agreement(learner, new, true, splits.test),
    }
    for name, examples in {"asked": asked, "kept": kept, "test": splits.test}.items():
        row[f"{name}_{measure.name}"] = measure(learner, new, examples)
        row[f"{name}_{measure.name}_retrained"] = measure(learner, true, examples)
        row[f"{name}_loss"] = mean_cross_entropy(learner, new, examples)
        row[f"{name}_loss_gap"] = row[f"{name}_loss"] - mean_cross_entropy(learner, true, examples)
    aucs = [membership_auc(learner, state, asked, splits.test) for state in (new, true)]
    return {**row, "membership_auc": aucs[0], "membership_gap": aucs[0] - aucs[1]}


class Judged:
    """The rows of the judges, kept in a file as they come: whoever goes on there (`resume`) repeats none of them.

    A file that is damaged, or of another run (`of` says of which it must be), is named, and its rows are judged again.
    """

    def __init__(self, file: Path, of: str = "", resume: bool = True) -> None:
        self.file, self.of = file, of
        self.rows: list[dict[str, float]] = []
        self.damaged = False
        if resume:
            try:
                self.rows = read_sealed(file, of)
            except FileNotFoundError:
                pass
            except ValueError as error:
                self.damaged = True
                log.warning("%s: everything in it is judged again", error)

    def add(self, row: dict[str, float]) -> None:
        self.rows.append(row)
        write_sealed(self.file, self.rows, self.of)

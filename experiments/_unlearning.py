"""The parts of an unlearning experiment: whom to forget, timing beside the truth, what the judges say."""

import json
import logging
import math
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter

import lightning
import torch
from metagradient.experiments import _setup
from omegaconf import DictConfig
from safetensors.torch import save_file
from torch import Tensor

import metagradient as mg
from metagradient.data import Splits
from metagradient.errors import UserError
from metagradient.evaluation import (
    accuracy,
    agreement,
    distance,
    example_losses_of,
    mean_cross_entropy,
    membership_auc,
    take,
)
from metagradient.replay.storage import Storage
from metagradient.reporting import Progress, Record
from metagradient.reporting.record import write_atomically
from metagradient.training.random import fold_in, generator
from metagradient.unlearning import Method, RecordedRun, RecordRun, Request, Retrain, Unlearned, perturbed, stored

log = logging.getLogger(__name__)

CHOICES = ("random", "class", "highest_loss", "highest_influence", "file")
DTYPES = {None: None, "float32": torch.float32, "float64": torch.float64}


def storage(cfg: DictConfig) -> Storage:
    """A place for one history."""
    return mg.make_storage(cfg.history.storage, cfg.history.folder)


def recorded(cfg: DictConfig, routine: mg.Routine, splits: Splits, present: Tensor, progress: Progress) -> RecordedRun:
    """The run: trained with Lightning's Trainer, every step kept; or found in `run_folder`, where it is kept from then
    on."""
    if cfg.history.dtype not in DTYPES:
        raise UserError(f"history.dtype must be float32, float64 or null, not '{cfg.history.dtype}'")
    batches = routine.batches(splits.train, fold_in(cfg.seed, 1))
    learner = routine.learner(fold_in(cfg.seed, 1), len(batches))
    folder = None if cfg.run_folder is None else Path(cfg.run_folder) / "start"
    if folder is not None and stored.exists(folder):
        run, _, _ = stored.load(folder, learner, batches, storage(cfg))
        if not torch.equal(run.present, present):
            raise UserError(
                f"the run stored in {folder} was trained on other rows: give its add.* and seed, or another run_folder"
            )
        log.info("the run was found in %s", folder)
        return run
    callback = RecordRun(
        batches, present, storage=storage(cfg), dtype=DTYPES[cfg.history.dtype], progress=progress.callback()
    )
    trainer = lightning.Trainer(
        max_epochs=1,
        callbacks=[callback],
        accelerator="gpu" if _setup.device(cfg).type == "cuda" else "cpu",
        devices=1,
        precision=cfg.trainer.precision,
        deterministic=cfg.trainer.deterministic,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(learner, callback.batches)
    learner.to(_setup.device(cfg))
    assert callback.run is not None
    if folder is not None:
        stored.save(callback.run, folder)
    return callback.run


def amount(settings: DictConfig, total: int, name: str) -> int:
    """The number of rows that `fraction` or `count` asks for."""
    if settings.count is not None:
        if not isinstance(settings.count, int) or settings.count < 0:
            raise UserError(f"{name}.count must be a whole number of rows, not {settings.count}: set {name}.count=1")
        return settings.count
    if not 0 <= settings.fraction <= 1:
        raise UserError(f"{name}.fraction must lie in [0, 1], not {settings.fraction}: set {name}.fraction=0.01")
    return max(1, round(settings.fraction * total)) if settings.fraction else 0


def to_add(cfg: DictConfig, n: int) -> list[Tensor]:
    """`sets` disjoint random sets of rows that the run is first trained without; empty where nothing is added."""
    size = amount(cfg.add, n, "add")
    if size * cfg.sets >= n:
        raise UserError(f"{cfg.sets} sets of {size} added rows leave none of the {n} to train on first: set sets=1")
    order = torch.randperm(n, generator=generator(cfg.seed, 21))
    return [part.sort().values for part in order[: size * cfg.sets].split(size)] if size else []


def check(cfg: DictConfig) -> None:
    """Refuse at once what would be refused after the run that is recorded."""
    if cfg.delete.rows not in CHOICES:
        raise UserError(f"delete.rows must be one of {', '.join(CHOICES)}, not '{cfg.delete.rows}'")
    if cfg.history.storage not in ("memory", "disk"):
        raise UserError(
            f"history.storage must be memory or disk, not '{cfg.history.storage}': set history.storage=memory"
        )
    if cfg.stream.requests and cfg.delete.rows != "random":
        raise UserError(
            f"a stream draws its rows at random, not by delete.rows={cfg.delete.rows}: set delete.rows=random"
        )
    if not isinstance(cfg.output_noise, int | float) or not 0 <= cfg.output_noise < math.inf:
        raise UserError(f"output_noise must be a standard deviation >= 0, not {cfg.output_noise}: set output_noise=0")


def to_delete(cfg: DictConfig, run: RecordedRun, splits: Splits, progress: Progress) -> list[Tensor]:
    """`sets` sets of rows after the rule `delete.rows`; a rule that leaves nothing to chance gives one set."""
    rows, settings = run.present.nonzero().flatten(), cfg.delete
    size = amount(settings, len(rows), "delete")
    if settings.rows == "file":
        return [_read_rows(settings.file)]
    if settings.rows == "class":
        label, labels = settings.label, splits.train["y"]
        if not isinstance(label, int) or not 0 <= label < splits.num_classes:
            raise UserError(
                f"delete.label must be one of 0 .. {splits.num_classes - 1}, not {label}: set delete.label=0"
            )
        rows = rows[labels[rows] == label]
        if settings.count is None and settings.fraction == 1:
            return [rows]
    if size == 0:
        raise UserError("there is nothing to delete or to add: set delete.fraction=0.01 or add.fraction=0.01")
    if size > len(rows):
        raise UserError(f"cannot delete {size} of {len(rows)} rows: set a smaller delete.fraction")
    if settings.rows == "highest_loss":
        losses = example_losses_of(run.learner, run.final, take(splits.train, rows))
        return [rows[losses.argsort(descending=True)[:size]].sort().values]
    if settings.rows == "highest_influence":
        influence = _influence(run, splits, progress)
        return [influence.abs().argsort(descending=True)[:size].sort().values]
    draws = (torch.randperm(len(rows), generator=generator(cfg.seed, 22, i)) for i in range(cfg.sets))
    return [rows[order[:size]].sort().values for order in draws]


def _influence(run: RecordedRun, splits: Splits, progress: Progress) -> Tensor:
    """d (test loss) / d (weight) of every row, by an exact replay of the run."""
    run.learner.adopt(run.initial)
    weights, objective = mg.DataWeights(run.present.float()), mg.mean_loss(splits.test)
    found = mg.metagradient(run.learner, run.batches_of(run.present), weights, objective, progress=progress.callback())
    return found["weights"].cpu() * run.present


def _read_rows(file: str | None) -> Tensor:
    if file is None:
        raise UserError("delete.rows=file needs row numbers, one a line: set delete.file=rows.txt")
    words = Path(file).read_text(encoding="utf-8").split()
    wrong = [word for word in words if not word.isdigit()]
    if wrong or not words:
        raise UserError(f"{file} must hold row numbers, one a line, not {wrong[0]!r}" if wrong else f"{file} is empty")
    return torch.tensor([int(word) for word in words])


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
    """The model as it leaves the house: with the noise of `output_noise`, drawn for this `turn`."""
    return perturbed(state, cfg.output_noise, fold_in(cfg.seed, 7, turn)) if cfg.output_noise else state


def timed(method: Method, run: RecordedRun, request: Request, progress: Progress) -> tuple[Unlearned, float]:
    """A method's answer and the seconds it took."""
    started = perf_counter()
    result = method(run, request, progress=progress.callback())
    if result.state.params.is_cuda:
        torch.cuda.synchronize()
    return result, perf_counter() - started


def save_model(record: Record, learner: mg.Learner, state: mg.TrainState) -> None:
    """model.safetensors: the model under the names of its own state dict."""
    model = learner.adopt(state).state_dict()
    save_file({name: x.contiguous() for name, x in model.items()}, record.artifact_path("model.safetensors"))


def judge(run: RecordedRun, answer: Answer, splits: Splits) -> dict[str, float]:
    """What tells the method's model from the retrained one: `asked`, `kept` and `test` are examples, a gap is
    (method - retrained)."""
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
        "agreement": agreement(learner, new, true, splits.test),
    }
    for name, examples in {"asked": asked, "kept": kept, "test": splits.test}.items():
        row[f"{name}_accuracy"] = accuracy(learner, new, examples)
        row[f"{name}_accuracy_retrained"] = accuracy(learner, true, examples)
        row[f"{name}_loss"] = mean_cross_entropy(learner, new, examples)
        row[f"{name}_loss_gap"] = row[f"{name}_loss"] - mean_cross_entropy(learner, true, examples)
    aucs = [membership_auc(learner, state, asked, splits.test) for state in (new, true)]
    return {**row, "membership_auc": aucs[0], "membership_gap": aucs[0] - aucs[1]}


class Judged:
    """The rows of the judges, kept in a file as they come: whoever goes on there (`resume`) repeats none of them."""

    def __init__(self, file: Path, resume: bool = True) -> None:
        self.file = file
        self.rows: list[dict[str, float]] = json.loads(file.read_text()) if resume and file.exists() else []

    def add(self, row: dict[str, float]) -> None:
        self.rows.append(row)
        write_atomically(self.file, json.dumps(self.rows))

"""One run's record: its folder, its log, its numbers, its W&B run, and the table it ends with."""

import json
import logging
import math
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from metagradient.errors import UserError
from metagradient.files import digest, read_sealed, replacing, write_csv, write_sealed, write_text
from metagradient.memory import peak_mib, reset_peak
from metagradient.reporting.runs.context import RunContext, identify
from metagradient.reporting.runs.environment import device, environment
from metagradient.reporting.runs.reading import settings
from metagradient.reporting.runs.sums import SUMS, write_sums
from metagradient.reporting.runs.tensorboard import Board
from metagradient.reporting.runs.tracking import WANDB_ID, Tracker, track
from metagradient.reporting.runs.writer import only_writer
from metagradient.reporting.table import print_end, print_table
from metagradient.reporting.terminal import FILE_ONLY, logging_to

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)

Value = float | int | str | bool | None

_CURVES = ".curves.json"  # curves.csv with a checksum, for whoever goes on


class Record:
    """Writes the files of a run into its directory, and logs the same to W&B.

    config.yaml, run.log (with any traceback), metrics.json (flat: `result/...`, `cost/...`, `meta/...`, `seed`,
    `experiment`, `objective`, `status`, of a failed run `error`), environment.json (versions, commit, machine),
    curves.csv, figures/*.png, artifacts/. All of it is written on failure and Ctrl-C too, as far as it got.

    `asked` is a digest of the settings that decide what is computed: two runs with the same do the same.

        with Record.open(cfg, experiment="selection") as record:
            record.curve(step, {"objective": loss})
            record.result({"test_accuracy": 0.91})
            record.cost(training_runs=3.5)
            record.figure("weights", weight_histogram(...))
    """

    def __init__(self, config: dict[str, Any], experiment: str, context: RunContext) -> None:
        self.config = config
        self.experiment = experiment
        self.directory = context.directory
        asked = settings(config)
        self.asked = digest(experiment, json.dumps(asked, sort_keys=True, default=str))
        self._context = context
        self._metrics: dict[str, Value] = {}
        self._curve: list[dict[str, Value]] = []
        self._earlier: dict[int, dict[str, Value]] = {}
        self._training_runs = 0.0
        self._answers: list[str] = []
        self._scratch: list[str] = [_CURVES, WANDB_ID]
        self._tracker, self._board = Tracker(), Board()
        self._exit = ExitStack()

    @classmethod
    def open(
        cls, cfg: DictConfig | Mapping[str, Any], experiment: str, directory: str | os.PathLike[str] | None = None
    ) -> Self:
        """The record of a run of `experiment`, for a `with` statement; it begins there.

        The directory is Hydra's output directory unless given, without Hydra a new one below outputs/. `cfg.logger`
        = {mode, project, group, name, tags} describes the W&B run (all optional), `cfg.seed` is noted if present.

        Raises:
            UserError: a setting without a value, or an interpolation that leads nowhere.
        """
        try:
            node = cfg if isinstance(cfg, DictConfig) else OmegaConf.create(dict(cfg))
            config: Any = OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
        except MissingMandatoryValue as error:
            raise UserError(f"no value for {error.full_key}; give one: {error.full_key}=...") from error
        except OmegaConfBaseException as error:
            raise UserError(f"config: {str(error).partition(chr(10))[0]} (in {error.full_key})") from error
        return cls(config, experiment, identify(experiment, directory))

    def __enter__(self) -> Self:
        self.directory.mkdir(parents=True, exist_ok=True)
        logger = dict(self.config.get("logger") or {})
        identity = self._context.identity(self.experiment, logger, self.config.get("seed"))
        with ExitStack() as stack:  # undone if what follows fails, else kept until __exit__
            stack.enter_context(only_writer(self.directory, "hydra.run.dir"))
            resumed = self.config.get("resume") == str(self.directory)
            if resumed:  # a resumed loop does not log all earlier steps again
                self._earlier = _read_curves(self.directory / _CURVES, self.asked)
            for name in ("metrics.json", SUMS):  # left by an earlier run in this directory
                (self.directory / name).unlink(missing_ok=True)
            write_text(self.directory / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(self.config)))
            self._environment = environment()
            self._save_environment()  # a run that is killed leaves it too
            stack.enter_context(logging_to(self.directory / "run.log"))
            self._board = Board(self.directory / "tensorboard" if logger.get("tensorboard") else None)
            mode, kept = str(logger.get("mode", "auto")), self.directory / WANDB_ID
            self._tracker = track(identity, mode, self.config, self._context.outputs, kept, resumed)
            self._exit = stack.pop_all()
        reset_peak()
        self._begun = monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        status = "finished"
        if error is not None:
            status = "failed" if isinstance(error, Exception | SystemExit) else "interrupted"
            log.error("the run was not finished: %s", status, exc_info=error, extra=FILE_ONLY)
        with self._exit:
            self._metrics |= {
                "cost/training_runs": self._training_runs,
                "cost/seconds": round(monotonic() - self._begun, 3),
                "cost/peak_memory_mib": round(peak_mib(), 1),
                "meta/steps": max((int(row["step"] or 0) for row in self._curve), default=0),
                **({"seed": plain(self.config["seed"])} if "seed" in self.config else {}),
                "experiment": self.experiment,
                "status": status,
                **({"answer": " ".join(self._answers)} if self._answers else {}),
                **({} if error is None else {"error": one_line(error)}),
            }
            mode, place = self._tracker.mode, self._tracker.place
            scratch = [path for pattern in self._scratch for path in self.directory.glob(pattern)]
            text = json.dumps(self._metrics, indent=2) + "\n"
            try:
                self._save_curves()
                self._save_environment()
                if error is None:
                    write_sums(self.directory, scratch, text)
                write_text(self.directory / "metrics.json", text)
            finally:
                self._board.finish(self._metrics)
                self._tracker.finish(self._metrics, failed=error is not None)
        if error is None:
            for path in scratch:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            self._summarise(mode, place)

    def result(self, values: Mapping[str, Any]) -> None:
        """Add results: `test_accuracy` becomes `result/test_accuracy`. Accuracies are fractions, losses nats."""
        self._metrics |= {f"result/{key}": plain(value) for key, value in values.items()}

    def scratch(self, *patterns: str) -> None:
        """Files and folders of the run directory that only an interrupted run needs: a finished run leaves without them."""
        self._scratch += patterns

    def answer(self, sentence: str) -> None:
        """Say in one sentence what the run found: it ends the terminal's output, and `answer` in metrics.json."""
        self._answers.append(sentence)

    def objective(self, value: Any) -> None:
        """Note what the experiment returned, the number that a sweeper optimises."""
        if value is not None:
            self._metrics["objective"] = plain(value)

    def cost(self, training_runs: float) -> None:
        """Add compute that was spent, in plain-training equivalents; seconds and peak memory are measured anyway."""
        self._training_runs += float(training_runs)

    def curve(self, step: int, values: Mapping[str, Any]) -> None:
        """Log `meta/<key>` at metastep `step`: 0 is before the first update, so that the last one is `meta/steps`."""
        row = self._earlier.get(int(step), {}) | {key: plain(value) for key, value in values.items()}
        self._curve.append({"step": int(step), **row})
        self._metrics |= {f"meta/{key}": value for key, value in row.items()}  # W&B's summary also has the last one
        self._board.log(int(step), {f"meta/{key}": value for key, value in row.items()})
        self._tracker.log({"meta/step": int(step)} | {f"meta/{key}": value for key, value in row.items()})
        self._save_curves()

    def table(self, name: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], title: str | None = None) -> None:
        """Print a table of results under its title (default: its name), save it as artifacts/<name>.csv, log it to W&B."""
        plain_rows = [[plain(value) for value in row] for row in rows]
        print_table(title or name.replace("_", " "), columns, plain_rows)
        self.csv(name, columns, plain_rows)
        self._tracker.table(f"tables/{name}", columns, plain_rows)

    def csv(self, name: str, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> Path:
        """Write artifacts/<name>.csv; its path. Ids and file names (`id`, `train_file`, ...) are written as they are."""
        joined = [column for column in header if column.rpartition("_")[2] in ("id", "file")]
        path = self.artifact_path(name if name.endswith(".csv") else f"{name}.csv")
        write_csv(path, header, ([plain(value) for value in row] for row in rows), verbatim=joined)
        return path

    def artifact_path(self, name: str) -> Path:
        """Where to write an artifact: artifacts/<name>, whose folder exists."""
        path = self.directory / "artifacts" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def page(self, html: str) -> None:
        """Write artifacts/report.html."""
        write_text(self.artifact_path("report.html"), html)

    def figure(self, name: str, figure: "Figure", folder: str = "figures") -> Path:
        """Save figures/<name>.png (or in another folder) and log it to W&B; its path."""
        path = self.directory / folder / f"{name}.png"
        with replacing(path) as draft:
            figure.savefig(draft, format="png")
        self._board.image(f"figures/{name}", path)
        self._tracker.image(f"figures/{name}", path)
        return path

    def _save_environment(self) -> None:
        values = {**self._environment, **device()}
        write_text(self.directory / "environment.json", json.dumps(values, indent=2) + "\n")

    def _save_curves(self) -> None:
        if not self._curve:
            return
        columns = list(dict.fromkeys(key for row in self._curve for key in row))
        rows = [[plain(row.get(key)) for key in columns] for row in self._curve]
        write_sealed(self.directory / _CURVES, self._curve, self.asked)
        write_csv(self.directory / "curves.csv", columns, rows)

    def _summarise(self, mode: str, place: str) -> None:
        """The last thing on the terminal: what was found, what it cost, where it lies."""
        m = self._metrics
        seconds = timedelta(seconds=round(float(m["cost/seconds"] or 0)))
        lines = [
            *self._answers,
            f"cost: {float(m['cost/training_runs'] or 0):.4g} training runs, {seconds}, peak memory {m['cost/peak_memory_mib']:.0f} MiB",
            f"run directory: {_short(self.directory)}",
        ]
        if mode == "online":
            lines.append(f"W&B: {place}")
        elif mode == "offline":
            folder = _short(Path(place))
            lines.append(f"W&B (offline): look with `wandb leet {folder}`, send with `wandb sync {folder}`")
        print_end(f"{self.experiment}: {self._context.title}", lines)


def plain(value: Any) -> Value:
    """A number of any library as a Python one; what JSON cannot hold (nan, inf) becomes None."""
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, float | int | str | bool):
        return value
    raise TypeError(f"expected a number or a string, got {type(value).__name__}: {value!r}")


def leave_failure(directory: Path, cfg: DictConfig, experiment: str, error: BaseException) -> None:
    """Write metrics.json of a run that failed or was interrupted before its record was open, and what else is not there."""
    import traceback

    directory.mkdir(parents=True, exist_ok=True)
    if not (directory / "config.yaml").exists():
        write_text(directory / "config.yaml", OmegaConf.to_yaml(cfg))
    if not (directory / "run.log").exists():
        write_text(directory / "run.log", "".join(traceback.format_exception(error)))
    status = "failed" if isinstance(error, Exception) else "interrupted"
    metrics = {"experiment": experiment, "status": status, "error": one_line(error)}
    write_text(directory / "metrics.json", json.dumps(metrics, indent=2) + "\n")


def one_line(error: BaseException) -> str:
    """`Class: message`, as at the end of a traceback, but on one line."""
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def _read_curves(path: Path, asked: str) -> dict[int, dict[str, Value]]:
    """Step -> values of the curves that an interrupted run left.

    Raises:
        UserError: they are damaged; nobody computes them again.
    """
    try:
        rows = read_sealed(path, asked)
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise UserError(f"{error}: remove it to go on without the curves so far, or start anew: resume=null") from error
    return {int(row["step"]): {key: value for key, value in row.items() if key != "step"} for row in rows}


def _short(path: Path) -> str:
    """Relative to the current directory where that is shorter to type."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)

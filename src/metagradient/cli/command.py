"""The console command `metagradient <experiment> [hydra overrides]`.

It finds the experiment and hands it its arguments. Nothing heavy is imported before the experiment itself runs,
so that listing, `--help` and bad input answer at once.
"""

import ast
import importlib
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from metagradient.cli.errors import bad_input, check_flags, composition_error, flags_first, last_line, no_room
from metagradient.cli.follower import follow, following, run_experiment
from metagradient.cli.help import help_text
from metagradient.cli.interrupts import interruptible, was_interrupted
from metagradient.cli.jobs import Placed, place, resumed, tell_of_jobs
from metagradient.cli.presets import with_own_model, with_preset
from metagradient.cli.search import with_search
from metagradient.cli.values import check_values
from metagradient.errors import UserError
from metagradient.escapes import speak_anywhere, visible

if TYPE_CHECKING:
    from omegaconf import DictConfig

USAGE = """usage: metagradient <experiment> [key=value ...]   run it
       metagradient <experiment> --help            its choices and settings
       metagradient <experiment> -m seed=0,1,2     run a sweep
       metagradient compare PATH...                runs side by side, over seeds
       metagradient completion [bash|zsh|fish]     a script for your shell: eval "$(metagradient completion)"
       metagradient --version
"""
BAD_INPUT, FAILED, INTERRUPTED = 2, 1, 130


def main(argv: Sequence[str] | None = None) -> None:
    """Run the experiment named by the first argument (`sys.argv` by default); without one, list the experiments."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    speak_anywhere()
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"{USAGE}\nexperiments:")
        for name, path in experiments().items():
            print(f"  {name:<14}{first_line(path)}")
    elif arguments[0] == "--version":
        print(f"metagradient {_version()}")
    elif arguments[0] == "completion":
        from metagradient.cli.completion import script

        try:
            print(script(list(experiments()), *arguments[1:2]))
        except UserError as error:
            _stop(BAD_INPUT, "metagradient completion", str(error))
    elif arguments[0] == "compare":
        _compare(arguments[1:])
    elif arguments[0] in experiments():
        launch(arguments[0], arguments[1:])
    else:
        _stop(BAD_INPUT, "metagradient", _unknown_experiment(arguments[0]))


def experiments() -> dict[str, Path]:
    """Name -> source file of every experiment, in alphabetical order; none is imported."""
    package = importlib.import_module("metagradient.experiments")
    files = (file for folder in package.__path__ for file in Path(folder).glob("[!_]*.py"))
    return {file.stem: file for file in sorted(files, key=lambda file: file.stem)}


def first_line(path: Path) -> str:
    """The first line of a Python file's docstring, read without importing the file."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0]


class JobFailed(Exception):
    """One job of a sweep failed: the message says which and why; its traceback is in its own run.log."""


def launch(name: str, argv: Sequence[str] | None = None) -> None:
    """Compose the config of experiment `name` from the overrides in `argv` and run it (with `-m`: sweep it).

    `metagradient.experiments.<name>.run(cfg, record)` returns the number a Hydra sweeper should optimise. Bad input
    ends in one line on stderr and status 2, a failure in one line that names the log and status 1 (a sweep first runs
    its other jobs), Ctrl-C and SIGTERM in status 130. `HYDRA_FULL_ERROR=1` lets the raw tracebacks through.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    speak_anywhere()
    program = f"metagradient {name}"
    raw = os.environ.get("HYDRA_FULL_ERROR") == "1"
    directories: list[Path] = []

    if following(arguments):
        raise SystemExit(follow())

    def task(cfg: "DictConfig") -> Any:
        directory, sweep = _where()
        directories.append(directory)
        try:
            done = resumed(cfg, directory)
            if done is not None:
                _tell(f"{program}: {directory} is finished already, nothing to do")
                return done.metrics.get("objective")
            return _run(name, cfg)
        except BaseException as error:
            interrupted = was_interrupted(error)
            if sweep or interrupted:
                _note_failure(name, cfg, directory, error)
            if interrupted:
                raise KeyboardInterrupt from error
            if isinstance(error, SystemExit):  # of a model or a module of somebody else's
                error = RuntimeError(f"the program was ended from within the run, by sys.exit({error.code})")
            if not isinstance(error, Exception):
                raise
            status, message = _verdict(error, directory)
            if raw or not message:
                raise
            if not sweep:  # out past Hydra, which would print a line of its own
                _stop(status, program, message)
        _tell(f"{program}: job {directory.name} failed: {message}")
        # Hydra keeps this error until the sweep ends; raised in here it would keep the job's tensors as well
        raise JobFailed(f"job {directory.name}: {message}")

    placed, held = Placed(arguments, None), ExitStack()
    try:
        held.enter_context(interruptible())
        import hydra

        from metagradient.schema import register

        register()
        arguments = flags_first(arguments)
        check_flags(arguments)
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())  # a user's own package, for model._target_ and the like
        arguments = with_preset(name, with_own_model(arguments))
        if {"-h", "--help"} & set(arguments):
            print(visible(help_text(name, first_line(experiments()[name]), arguments), keep="\n"))
            return
        check_values(name, arguments)
        placed = place(name, arguments)
        if placed.sweep is not None:
            from metagradient.reporting.runs.writer import only_writer

            placed.sweep.mkdir(parents=True, exist_ok=True)
            held.enter_context(only_writer(placed.sweep, "hydra.sweep.dir"))
            placed = Placed(with_search(name, placed.arguments, placed.sweep), placed.sweep)
        with _full_errors(), _command_line(program, placed.arguments):
            hydra.main(version_base="1.3", config_path="pkg://metagradient.conf", config_name=name)(task)()
        if placed.sweep is not None and not tell_of_jobs(placed.sweep):  # a search goes on after a failed trial
            _stop(FAILED, program, "the sweep has jobs without a result, each named above")
    except KeyboardInterrupt:
        if placed.sweep is not None:
            tell_of_jobs(placed.sweep)
        where = (
            f"partial results lie in {directories[-1]}; go on with resume=true"
            if directories
            else "nothing had been run"
        )
        _stop(INTERRUPTED, program, f"interrupted; {where}")
    except JobFailed as error:
        if placed.sweep is not None:
            tell_of_jobs(placed.sweep)
        _stop(FAILED, program, f"the sweep has failed jobs, each named above; the first is {error}")
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        message = None if raw else composition_error(error, name, arguments)
        if placed.sweep is not None and not raw and type(error).__name__ == "TerminatedWorkerError":  # joblib's
            tell_of_jobs(placed.sweep)
            _stop(FAILED, program, "a process of the sweep was killed (too little memory?); go on with resume=true")
        if message is None:
            raise
        _stop(BAD_INPUT, program, message)
    finally:
        held.close()


def _compare(arguments: list[str]) -> None:
    from metagradient.cli.compare import compare

    try:
        if not compare(arguments):
            raise SystemExit(FAILED)
    except UserError as error:
        _stop(BAD_INPUT, "metagradient compare", str(error))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(name: str, cfg: "DictConfig") -> Any:
    """One run: everything from here on, imports included, is written down in the record."""
    from metagradient.reporting import Record
    from metagradient.studies import processes

    with processes.leading(cfg, name, _where()[0]) as team, Record.open(cfg, experiment=name) as record:
        try:
            with team.together():
                value = run_experiment(name, cfg, record)
            record.objective(value)
            return value
        except BaseException as error:
            if was_interrupted(error):
                raise KeyboardInterrupt from error
            raise


def _note_failure(name: str, cfg: "DictConfig", directory: Path, error: BaseException) -> None:
    """A job that ended before its record was open leaves its reason all the same; one that was refused touches nothing."""
    if not (directory / ("config.yaml" if isinstance(error, Exception) else "metrics.json")).exists():
        from metagradient.reporting.runs.record import leave_failure

        leave_failure(directory, cfg, name, error)


def _verdict(error: Exception, directory: Path) -> tuple[int, str]:
    """Exit status and the line to print for an error raised within a run; no line if there is no log to refer to."""
    from metagradient.studies.processes import ProcessLost

    if isinstance(error, ProcessLost):
        return FAILED, f"{error}; partial results lie in {directory}; go on with resume=true"
    message = bad_input(error)
    if message is not None:
        return BAD_INPUT, message
    full = no_room(error)
    if full is not None:
        return FAILED, full
    log = directory / "run.log"
    return FAILED, f"{last_line(error)} (traceback: {log})" if log.exists() else ""


def _where() -> tuple[Path, bool]:
    """This run's directory, and whether it is a job of a sweep."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    cfg = HydraConfig.get()
    return Path(cfg.runtime.output_dir), cfg.mode == RunMode.MULTIRUN


@contextmanager
def _full_errors() -> Iterator[None]:
    """Make Hydra raise its errors instead of printing them and exiting."""
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = before


@contextmanager
def _command_line(program: str, arguments: list[str]) -> Iterator[None]:
    """Hydra reads `sys.argv` and nothing else."""
    before = sys.argv
    sys.argv = [program, *arguments]
    try:
        yield
    finally:
        sys.argv = before


def _unknown_experiment(given: str) -> str:
    from difflib import get_close_matches

    names = list(experiments())
    nearest = get_close_matches(given, names, n=1, cutoff=0.4)
    hint = f"; did you mean {nearest[0]}?" if nearest else ";"
    return f"no experiment {given!r}{hint} there are: {', '.join(names)}"


def _version() -> str:
    try:
        return version("metagradient")
    except PackageNotFoundError:
        return "(not installed)"


def _tell(line: str) -> None:
    print(visible(line), file=sys.stderr)


def _stop(status: int, program: str, message: str) -> NoReturn:
    _tell(f"{program}: {message}")
    raise SystemExit(status)


if __name__ == "__main__":
    main()

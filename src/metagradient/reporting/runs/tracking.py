"""The W&B run beside a record. It must never stop an experiment: whatever fails here is a warning."""

import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metagradient.errors import UserError
from metagradient.files import write_text

log = logging.getLogger(__name__)

WANDB_ID = ".wandb_id"
"""The file of a run directory that holds the W&B run's id, for whoever goes on."""
_ID = re.compile(r"[a-zA-Z0-9_-]{1,64}")
MODES = ("auto", "online", "offline", "disabled")


@dataclass(frozen=True)
class Identity:
    """How a run is found again in a dashboard; W&B takes group and job type at the start and never later."""

    project: str
    group: str
    job_type: str
    name: str
    tags: tuple[str, ...]


class Tracker:
    """A W&B run, or nothing if `run` is None; every method is then a no-op.

    W&B drops `log(step=k)` silently when k is below its own counter, so no step is ever passed: curves `meta/*` are
    drawn against the logged value `meta/step`.
    """

    def __init__(self, run: Any = None, restore: Callable[[], None] = lambda: None) -> None:
        self._run = run
        self._restore = restore
        self._warned = False

    @property
    def mode(self) -> str:
        """`online`, `offline` or `disabled`."""
        return "disabled" if self._run is None else str(self._run.settings.mode)

    @property
    def place(self) -> str:
        """Where to look: the address of an online run, else the folder with all offline runs."""
        if self._run is None:
            return ""
        return str(self._run.url) if self.mode == "online" else str(Path(self._run.dir).parent.parent)

    def log(self, values: Mapping[str, Any]) -> None:
        """Append one row to the run's history."""
        self._try(lambda run: run.log(dict(values)))

    def image(self, key: str, path: Path) -> None:
        """Log a picture."""
        self._try(lambda run: run.log({key: _wandb().Image(str(path))}))

    def table(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Log a table."""
        data = [list(row) for row in rows]
        self._try(lambda run: run.log({key: _wandb().Table(columns=list(columns), data=data, allow_mixed_types=True)}))

    def finish(self, summary: Mapping[str, Any], failed: bool) -> None:
        """Write the summary and close the run, marked failed or finished."""
        self._try(lambda run: run.summary.update(dict(summary)))
        self._try(lambda run: run.finish(exit_code=int(failed)))
        self._run = None
        self._restore()

    def _try(self, action: Callable[[Any], Any]) -> None:
        if self._run is None:
            return
        try:
            action(self._run)
        except Exception as error:
            log.log(logging.DEBUG if self._warned else logging.WARNING, "W&B: %s; the run goes on", error)
            self._warned = True


def track(
    identity: Identity, mode: str, config: Mapping[str, Any], outputs: Path, kept: Path, resumed: bool
) -> Tracker:
    """Start a W&B run whose files lie in `outputs`/wandb; its id is written to the file `kept`, and read there by a
    `resumed` run, which goes on under it.

    `auto` is offline unless the user is logged in and the server answers; `WANDB_MODE` decides it as well. `online`
    without a login or a network is offline with a warning. `disabled` does not even import wandb.

    Raises:
        UserError: unknown `mode`.
    """
    if mode not in MODES:
        raise UserError(f"logger.mode={mode}: expected one of {', '.join(MODES)}")
    if mode == "auto" and os.environ.get("WANDB_MODE") in MODES:
        mode = os.environ["WANDB_MODE"]
    if mode == "disabled":
        return Tracker()
    folder = Path(os.environ.get("WANDB_DIR", outputs)).absolute()
    restore = _environment(
        WANDB_DATA_DIR=str(folder / "wandb" / ".data"),  # tables and artifacts are staged here, not in the run
        WANDB_CACHE_DIR=str(folder / "wandb" / ".cache"),
        WANDB_SILENT="true",
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        run = _wandb().init(
            project=identity.project,
            group=identity.group,
            job_type=identity.job_type,
            name=identity.name,
            tags=list(identity.tags),
            config=dict(config),
            dir=str(folder),
            mode=_reachable_mode(mode),
            id=_id_in(kept) if resumed else None,
            resume="allow",
            reinit="finish_previous",  # otherwise a second run in one process gets the first one back
            settings=_wandb().Settings(silent=True, console="off", init_timeout=30, finish_timeout=600),
        )
        write_text(kept, f"{run.id}\n")
        run.define_metric("meta/step", summary="none")
        run.define_metric("meta/*", step_metric="meta/step")
    except Exception as error:
        restore()
        log.warning("no W&B run: %s; the run goes on without (logger.mode=disabled silences this)", error)
        return Tracker()
    return Tracker(run, restore)


def _id_in(kept: Path) -> str | None:
    """The id that an interrupted run left; None where there is none, or something else."""
    try:
        found = kept.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return found if _ID.fullmatch(found) else None


def _reachable_mode(mode: str) -> str:
    """`online` if that was asked for or left open, the user is logged in and the server says so; else `offline`.

    `login` verifies the key with the server within seconds, where `init` would retry for a long time.
    """
    if mode == "offline":
        return mode
    problem = "not logged in (`wandb login`)"
    try:
        if _wandb().login(prompt=False):
            return "online"
    except Exception as error:
        problem = str(error)
        mode = "online"  # there are credentials, so the user would expect to see the run in the dashboard
    if mode == "online":
        log.warning("W&B is offline: %s; send the run later with `wandb sync`", problem)
    return "offline"


def _environment(**variables: str) -> Callable[[], None]:
    """Set the variables that the user has not set; calling the result unsets them."""
    ours = {key: value for key, value in variables.items() if key not in os.environ}
    os.environ.update(ours)

    def restore() -> None:
        for key in ours:
            os.environ.pop(key, None)

    return restore


def _wandb() -> Any:
    import wandb

    return wandb

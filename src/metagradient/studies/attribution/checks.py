"""What `attribution` refuses before anything is trained, and before the retrainings."""

import logging
from collections.abc import Sequence

from omegaconf import DictConfig

from metagradient import attribution as at
from metagradient.attribution.methods.spec import COMPRESSORS
from metagradient.errors import UserError
from metagradient.evaluation import check_scores, subsets
from metagradient.studies.attribution.methods import settings_of
from metagradient.studies.attribution.task import Task

log = logging.getLogger(__name__)


def check(cfg: DictConfig) -> list[at.MethodSpec]:
    """The methods that a configuration names; what is wrong with them is refused at once, not after a training.

    Raises:
        UserError: what does not exist, cannot be had together, or lies out of range.
        FileNotFoundError: no such scores.
    """
    if not cfg.methods or not (cfg.drop or cfg.damping is not None):
        raise UserError("attribution needs methods, and drop or damping: for example methods=[exact] drop=[0.5]")
    if cfg.damping not in (None, "run") and not (isinstance(cfg.damping, int | float) and cfg.damping > 0):
        raise UserError(f"damping must be a number > 0, run, or null, not '{cfg.damping}'")
    if cfg.replay.check is not None:
        raise UserError("attribution has no replay.check: leave it null (selection checks its metagradients)")
    specs = [at.MethodSpec.parse(str(word)) for word in cfg.methods]
    if cfg.checkpoint is not None:
        _check_checkpoint(cfg, specs)
    if cfg.aggregate not in (None, "queries", "validation", "test"):
        raise UserError(f"aggregate must be queries, validation, test or null, not '{cfg.aggregate}'")
    if cfg.aggregate is not None:
        _told(f"aggregate={cfg.aggregate}", specs, [s for s in specs if s.additive])
    if cfg.self_influence:
        _told("self_influence=true", specs, [s for s in specs if s.reflexive])
    if cfg.store is not None:
        _told(f"store={cfg.store}", specs, [s for s in specs if s.storable])
    for spec in specs:
        if spec.where == "alpha" and not cfg.drop:
            raise UserError(f"{spec.word} looks at shares removed: give some, drop=[0.5], or methods=[{spec.plain}]")
        if cfg.damping == "run" and spec.damped and not (spec.compressed or spec.name == "none"):
            raise UserError("damping=run is for influence functions; for trak and other packages tune it: damping=null")
        if spec.name == "file" and (shape := list(at.read_scores(spec.word).shape))[1] != cfg.queries:
            raise UserError(
                f"{spec.word} holds {shape} = [n_train, n_query], but queries={cfg.queries}: set queries={shape[1]}, or transpose it"
            )
    for word in map(str, cfg.race.methods):
        name, _, k = word.partition(":")
        if name not in COMPRESSORS or not k.isdigit():
            known = ", ".join(f"{name}:k" for name in COMPRESSORS)
            raise UserError(f"race.methods: no compressor '{word}'; there are: {known}")
    return specs


def _told(setting: str, specs: Sequence[at.MethodSpec], able: Sequence[at.MethodSpec]) -> None:
    """Which methods a setting does not concern.

    Raises:
        UserError: it concerns none.
    """
    others = ", ".join(spec.word for spec in specs if spec not in able)
    if not able:
        raise UserError(f"{setting} is not for {others}: add dropout:4096 to methods, or leave it out")
    if others:
        log.info("%s is not for %s, which goes without", setting, others)


def _check_checkpoint(cfg: DictConfig, specs: Sequence[at.MethodSpec]) -> None:
    """What a model alone cannot answer: its training is not known here.

    Raises:
        UserError: names what needs trainings of ours, and what to set instead.
    """
    needing = [s.word for s in specs if s.name in ("exact", "tracin", "trak") or s.where in ("alpha", "path")]
    if needing:
        raise UserError(
            f"checkpoint={cfg.checkpoint} is a model without its training, which {', '.join(needing)} replay: ask for "
            "methods=[dropout:4096], or leave checkpoint out"
        )
    if cfg.qld.queries:
        raise UserError(
            f"qld retrains the model, and of checkpoint={cfg.checkpoint} the training is not known: set qld.queries=0"
        )
    if cfg.token_scores:
        raise UserError(
            f"token_scores replays the training, and of checkpoint={cfg.checkpoint} it is not known: set token_scores=false"
        )
    for name, off in {"drop": "[]", "leave_one_out": "null", "brittleness": "[]"}.items():
        if cfg[name]:
            raise UserError(
                f"{name} retrains the model, and of checkpoint={cfg.checkpoint} the training is not known: set {name}={off}"
            )
    if not isinstance(cfg.damping, int | float):
        raise UserError(
            f"damping={cfg.damping} is found by trainings, and checkpoint={cfg.checkpoint} has none: give it, damping=0.1"
        )


def check_run(cfg: DictConfig, specs: Sequence[at.MethodSpec], task: Task) -> None:
    """Refuse what this run cannot have, before the retrainings.

    Raises:
        UserError: no damping of its own, scores of other rows, too few steps or too many parameters, a store of something else.
    """
    if cfg.qld.queries > cfg.queries:
        raise UserError(
            f"qld.queries={cfg.qld.queries}, but queries={cfg.queries}: set qld.queries={cfg.queries}, or more queries"
        )
    if cfg.qld.queries:
        subsets(task.n, cfg.qld.share, 1, 0)
    if cfg.token_scores and not hasattr(task.learner, "position_weights"):
        raise UserError("token_scores is of language models, which weight their tokens: set token_scores=false")
    if cfg.damping == "run":
        at.run_damping(task.learner, task.batches)
    for spec in specs:
        if spec.name == "bm25" and task.words is None:
            raise UserError("bm25 compares the words of texts, and these data are none: leave it out of methods")
        if spec.name == "file":
            check_scores(at.read_scores(spec.word), task.n, cfg.queries)
    for count in cfg.brittleness:
        if count >= task.n:
            raise UserError(
                f"brittleness={list(cfg.brittleness)}: {count} rows are all of the {task.n}: set brittleness=[{max(1, task.n // 10)}]"
            )
    steps, size = len(task.batches), task.state.params.numel()
    along = [spec for spec in specs if spec.where == "path"]
    if along and not (isinstance(cfg.checkpoints, int) and 1 <= cfg.checkpoints <= steps):
        raise UserError(f"checkpoints must lie in [1, {steps}], the steps of the run, not {cfg.checkpoints}")
    if any(spec.name == "none" for spec in along) and size > cfg.none_primal:
        raise UserError(
            f"none:path holds the [P, P] curvature, and P = {size} is more than none_primal={cfg.none_primal}: "
            "compress, methods=[dropout:8192:path]"
        )
    if cfg.store is not None:
        for spec in (spec for spec in specs if spec.storable and spec.where == "end"):
            at.Method(spec, settings_of(cfg)).influence(task.n).check_store(task.learner, task.state, task.train)

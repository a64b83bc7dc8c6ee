"""Settings that the chosen mode does not read: who gives one by hand is told, in one place for all experiments."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from metagradient.schema.experiments import EXPERIMENTS
from metagradient.schema.groups import PARTS
from metagradient.schema.ranges import shown


@dataclass(frozen=True)
class Rule:
    """`settings` (or groups of them) are not read where `unless` is false; `why` says so, and what to set.

    It is told; and `refused` where the run would not be the one that was asked for.
    """

    settings: tuple[str, ...]
    unless: Callable[[Callable[[str], Any]], Any]
    why: str
    refused: bool = False


_ANY = (
    Rule(("learner.warmup",), lambda at: at("learner.schedule") not in ("constant", "halved", "cosine"),
         "learner.schedule={learner.schedule} has no warm-up: set learner.schedule=one_cycle"),
    Rule(("learner.arguments",), lambda at: at("learner._target_"),
         "they are those of a learner of yours: set learner._target_=package.Class", refused=True),
    Rule(("replay.folder",), lambda at: at("replay.storage") == "disk",
         "replay.storage={replay.storage}: set replay.storage=disk", refused=True),
    Rule(("replay.save_every",), lambda at: (at("trainer.devices") or 1) * (at("trainer.num_nodes") or 1) == 1,
         "replays that several processes share are not saved: set trainer.devices=1 trainer.num_nodes=1", refused=True),
    Rule(("replay.save_every",), lambda at: at("replay.checkpoints") != "tape",
         "replay.checkpoints=tape keeps the graph of the whole run, of which nothing can be saved: set replay.checkpoints=auto"),
    Rule(("data.noise.kind",), lambda at: at("data.noise.fraction"), "no label is changed: set data.noise.fraction=0.2"),
)  # fmt: skip
"""Rules of all experiments."""

_PAIRS = ("metagradient.data.image_text_pairs", "metagradient.data.drawn_digits")
_DEFENCES = ("filter_fractions", "augmentation", "influence", "defender")
_RULES: dict[str, tuple[Rule, ...]] = {
    "selection": (
        Rule(("method.shard",), lambda at: at("method.swap"), "only a swap looks at a share of the data: set method.swap=50"),
        Rule(("method.probability",), lambda at: not at("method.swap"), "a swap moves so many counts: set method.swap=null"),
        Rule(("rivals",), lambda at: str(at("data._target_")).endswith((".characters", "instructions")),
             "they choose among texts: set data=made_instructions"),
        Rule(("pretraining",), lambda at: at("data.corpus"), "the data have no corpus: set data=made_instructions data.corpus=800", refused=True),
        Rule(("pairs",), lambda at: at("data._target_") in _PAIRS, "the data are no pairs of images and texts: set data=drawn_digits"),
        Rule(("filter_fractions",), lambda at: at("data._target_") not in _PAIRS,
             "filters of pairs have settings of their own: set pairs.shares=[0.5]"),
    ),
    "poisoning": (
        Rule(_DEFENCES, lambda at: at("defences"), "it is for the defence table: set defences=true"),
        Rule(("method.settle",), lambda at: at("method.harm") == "loss", "it is for the loss: set method.harm=loss"),
    ),
    "attribution": (
        Rule(("store",), lambda at: (at("trainer.devices") or 1) * (at("trainer.num_nodes") or 1) == 1,
             "a store is kept by one process: set trainer.devices=1 trainer.num_nodes=1", refused=True),
        Rule(("retrainings",), lambda at: at("drop"), "no share is left out: set drop=[0.5]"),
        Rule(("dampings",), lambda at: at("damping") is None, "damping={damping} is taken as it is: set damping=null"),
        Rule(("labels",), lambda at: at("curvature") == "gauss_newton",
             "curvature={curvature} draws none: set curvature=gauss_newton"),
        Rule(("at_once", "workers", "keep_retrainings"),
             lambda at: at("drop") or at("leave_one_out") or at("brittleness") or at("qld.queries"),
             "nothing is retrained: set drop=[0.5]"),
        Rule(("qld.share", "qld.randoms"), lambda at: at("qld.queries"), "no query's top rows are removed: set qld.queries=10"),
        Rule(("source_top",), lambda at: str(at("data._target_")).endswith((".characters", "instructions")),
             "only texts come from sources: set data=made_instructions"),
        Rule(("checkpoints",), lambda at: _method(at, "", ":path"), "no method looks along the run: add dropout:2048:path"),
        Rule(("pca_examples",), lambda at: _method(at, "pca") or _method(at, "factor_pca"), "no method is a PCA: add pca:256 to methods"),
        Rule(("queries_per_replay", "replay.save_every"), lambda at: _method(at, "exact") or at("token_scores"), "no method replays: add exact to methods"),
        Rule(("trak_k",), lambda at: _method(at, "trak") or _method(at, "dattri"), "no method is TRAK: add trak:3 to methods"),
        Rule(("none_primal",), lambda at: _method(at, "none"), "no method is uncompressed: add none to methods"),
        Rule(("race.examples", "race.repeats"), lambda at: at("race.methods"),
             "nothing is timed: set race.methods=[dropout:256]"),
    ),
    "unlearning": (
        Rule(("delete.label",), lambda at: at("delete.rows") == "class", "delete.rows={delete.rows}: set delete.rows=class", refused=True),
        Rule(("delete.file",), lambda at: at("delete.rows") == "file", "delete.rows={delete.rows}: set delete.rows=file", refused=True),
        Rule(("delete.fraction", "delete.count"), lambda at: at("delete.rows") != "file",
             "delete.file says which rows: set delete.rows=random"),
        Rule(("delete.fraction",), lambda at: at("delete.count") is None,
             "delete.count={delete.count} says how many: set delete.count=null", refused=True),
        Rule(("add.fraction",), lambda at: at("add.count") is None, "add.count={add.count} says how many: set add.count=null", refused=True),
        Rule(("delete",), lambda at: at("stream.requests") or not (at("add.fraction") or at("add.count")),
             "rows are added, and only a stream does both: set add.fraction=0 add.count=null", refused=True),
        Rule(("sets", "klom", "frontier"), lambda at: not at("stream.requests"),
             "a stream has requests of its own: set stream.requests=0"),
        Rule(("stream.judge_every",), lambda at: at("stream.requests"), "there is no stream: set stream.requests=10"),
        Rule(("klom.examples",), lambda at: at("klom.models"), "there is no KLOM: set klom.models=20"),
        Rule(("frontier.targets",), lambda at: at("frontier.periods"),
             "there is nothing to compare with: set frontier.periods=[2,5,10]", refused=True),
        Rule(("sets",), lambda at: at("delete.rows") in ("random", "class"), "delete.rows={delete.rows} gives one: set sets=1"),
        Rule(("history.folder",), lambda at: at("history.storage") == "disk",
             "history.storage={history.storage}: set history.storage=disk", refused=True),
    ),
    "smoothness": (
        Rule(("replay.save_every",), lambda at: at("gradient"), "nothing is replayed: set gradient=true"),
    ),
    "cost": (
        Rule(("tight_memory",), lambda at: any("tight" in str(plan) for plan in at("plans")),
             "no plan is tight: add 'auto, tight memory' to plans"),
    ),
}  # fmt: skip


def unread(plain: Mapping[str, Any], experiment: str, given: Sequence[str]) -> Iterator[tuple[str, bool]]:
    """(one line, whether to refuse it) for each setting among those `given` by hand that nobody reads: what, why, and what to set."""

    def at(key: str) -> Any:
        node: Any = plain
        for part in key.split("."):
            node = node.get(part) if isinstance(node, Mapping) else None
        return node

    known = {setting.name for setting in fields(EXPERIMENTS[experiment])} | PARTS[experiment]
    for key in dict.fromkeys(given):
        top = key.partition(".")[0]
        if at(key) is not None and top not in known:
            line = f"{key}={shown(at(key))} is read by nothing but a ${{{key}}} elsewhere: "
            yield f"{line}{experiment} has no setting of this name", False
        if not at(key):  # null, 0, [] and false ask for nothing
            continue
        for rule in (*_ANY, *_RULES.get(experiment, ())):
            if any(f"{key}.".startswith(f"{name}.") for name in rule.settings) and not rule.unless(at):
                why = rule.why
                for part in {word.partition("}")[0] for word in why.split("{")[1:]}:
                    why = why.replace(f"{{{part}}}", shown(at(part)))
                yield f"{key}={shown(at(key))} is not read: {why}, or leave it out", rule.refused
                break
    epochs, steps = at("learner.epochs"), at("learner.steps")
    for key, other in (("learner.epochs", "learner.steps"), ("learner.steps", "learner.epochs")):
        if None not in (epochs, steps) and key in given and other not in given:
            line = f"{key}={at(key)} beside {other}={at(other)}: a run has one of the two; set {other}=null as well"
            yield line, True


def _method(at: Callable[[str], Any], start: str, end: str = "") -> bool:
    words = [str(word) for word in (*at("methods"), *at("race.methods"))]
    return any(word.startswith(start) and word.endswith(end) for word in words)

"""From a configuration to the routine of its runs: the model, the learner, their optimizer and schedule, a checkpoint."""

import functools
import importlib
import inspect
import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from torch import nn

import metagradient as mg
from metagradient.data import PairSplits, Splits, TextSplits
from metagradient.errors import UserError
from metagradient.learners.supervised import say_once
from metagradient.models import load_weights
from metagradient.schema import Decay
from metagradient.studies import setup, trainer
from metagradient.studies.setup import build, without
from metagradient.training.state import refuse_unusable

log = logging.getLogger(__name__)


def classifier_routine(cfg: DictConfig, splits: Splits) -> mg.Routine:
    """The routine of `cfg.learner` and `cfg.model` for a data set: a `Classifier`, `Regressor` or `MultiLabel`."""
    kind, own = _learner_of(cfg, splits)
    ours = str(cfg.model._target_).startswith("metagradient.models.") and cfg.learner._target_ is None
    if splits.kind == "text" and ours and "vocab" not in cfg.model and "text" not in cfg.model._target_:
        raise UserError("the data are words, which this model takes for numbers: set model=sentence_classifier")
    coded = {"categories": splits.category_sizes} if splits.categories else {}
    return _routine(cfg, kind, own, input_shape=splits.input_shape, classes=splits.outputs, **coded)


def _learner_of(cfg: DictConfig, splits: Splits) -> tuple[type[mg.Learner], dict[str, Any]]:
    """The learner for what a data set predicts, and its own settings."""
    loss = cfg.learner.get("loss")
    if splits.task == "numbers":
        y = splits.train["y"].double()
        spread = y.std(0, unbiased=False)
        scale = torch.where(spread > 0, spread, 1.0)
        units = {"center": _floats(y.mean(0)), "scale": _floats(scale)}
        return mg.Regressor, {**units, **({} if loss is None else {"loss": _word(loss)})}
    if loss is not None:
        raise UserError(
            f"learner.loss={_word(loss)} is of numbers to be predicted, and these targets are {splits.task}: set learner.loss=null"
        )
    return mg.MultiLabel if splits.task == "labels" else mg.Classifier, {}


def _floats(x: torch.Tensor) -> list[float]:
    """The numbers of a tensor [] or [k]."""
    return x.reshape(-1).tolist()


def language_routine(cfg: DictConfig, splits: TextSplits) -> mg.Routine:
    """The routine of `cfg.learner` and `cfg.model` for a language model."""
    length = splits.train["tokens"].shape[1] - 1
    if cfg.learner.get("loss") is not None:
        raise UserError(f"learner.loss={_word(cfg.learner.loss)} is of numbers to be predicted: set learner.loss=null")
    return _routine(cfg, mg.LanguageModel, {}, vocab=splits.tokenizer.size, block=length)


def pairs_routine(cfg: DictConfig, splits: PairSplits) -> mg.Routine:
    """The routine of `cfg.learner` and `cfg.model` for pairs: a `ContrastiveLearner`."""
    loss = "clip" if cfg.learner.get("loss") is None else _word(cfg.learner.loss)
    sizes = {"input_shape": splits.input_shape, "vocab": splits.vocab, "length": splits.length}
    return _routine(cfg, mg.ContrastiveLearner, {"loss": loss}, **sizes)


class OwnRates:
    """Stands for the schedule of a learner that has one of its own."""

    def __call__(self, t: int) -> float:
        raise UserError("this learner's rates are those of its configure_optimizers: ask the learner, not the routine")


def _routine(cfg: DictConfig, kind: type[mg.Learner], own: Mapping[str, Any], **sizes: Any) -> mg.Routine:
    settings, where = cfg.learner, trainer.device(cfg)
    target = None if settings._target_ is None else _located(settings._target_, "learner")
    configures = target is not None and _configures(target)
    optimizer = build(settings.optimizer, _convert_="all")
    offered = {
        "optimizer": optimizer,
        "decay": _is_matrix if _word(settings.decay) == Decay.matrices.value else None,
        "normalize": _word(settings.normalize),
        "clip_norm": settings.clip_norm,
        "clip_value": settings.clip_value,
        "average": settings.average,
        "micro_batch": settings.micro_batch,
        "compiled": settings.compiled,
    }
    if target is not None and "model" not in _takes(target)[0] and _named("model"):
        raise UserError(
            f"model: {settings._target_} takes no model, it is one; leave it out (its arguments: learner.arguments)"
        )
    if target is not None and settings.get("loss") is not None:
        raise UserError(f"learner.loss: {settings._target_} has losses of its own; leave it out")
    if configures:
        _refuse_unread(settings._target_)
        offered = {name: value for name, value in offered.items() if name not in ("optimizer", "decay")}
    if settings.label_smoothing:
        if not issubclass(kind, mg.Classifier) or target is not None:
            raise UserError("learner.label_smoothing is of our own classifiers: set learner.label_smoothing=0")
        offered["label_smoothing"] = settings.label_smoothing

    def make_learner(schedule: mg.Schedule) -> mg.Learner:
        given = dict(offered) if isinstance(schedule, OwnRates) else {**offered, "learning_rate": schedule}
        if target is None:
            learner: mg.Learner = kind(_model(cfg, sizes), **own, **given)  # type: ignore[arg-type]
        else:
            learner = _own(target, cfg, sizes, given)
        if cfg.get("checkpoint") is not None:
            _load(learner, cfg.checkpoint)
        refuse_unusable(learner)  # before it is converted
        return learner.to(device=where, dtype=torch.float64 if cfg.trainer.precision == "64-true" else torch.float32)

    return mg.Routine(
        make_learner,
        schedule=(lambda steps: OwnRates()) if configures else functools.partial(_schedule, settings),
        batch_size=settings.batch_size,
        epochs=settings.epochs,
        steps=settings.steps,
        group=setup.group(),
    )


def _model(cfg: DictConfig, sizes: Mapping[str, Any]) -> nn.Module:
    """`cfg.model`, called with those of its settings and of the data's sizes that it takes."""
    path = str(cfg.model._target_)
    if path.startswith("metagradient."):
        if "categories" in sizes and "categories" not in _takes(_located(path, "model"))[0]:
            raise UserError(
                "data.encode=codes: codes are no numbers to this model; set model=table_mlp, which embeds them, or data.encode=onehot"
            )
        return build(_without_strangers(cfg, sizes), **sizes)
    target = _located(path, "model")
    (takes, anything), meant = _takes(target), _meant()
    left = [
        str(key)
        for key in cfg.model
        if not str(key).startswith("_") and ((not anything and key not in takes) or not (meant is None or key in meant))
    ]
    for key in left:
        if _named(f"model.{key}"):
            raise UserError(
                f"model.{key}: {path} takes {', '.join(takes)}; leave it out, or let {target.__name__} take it"
            )
    model = build(without(cfg.model, left), **{name: value for name, value in sizes.items() if name in takes})
    if not isinstance(model, nn.Module):
        raise UserError(f"model._target_={path} gives a {type(model).__name__}, not a torch.nn.Module")
    return model


def _without_strangers(cfg: DictConfig, sizes: Mapping[str, Any]) -> DictConfig:
    """`cfg.model` without what a preset sets of another model."""
    path, meant = str(cfg.model._target_), _meant()
    takes, anything = _takes(_located(path, "model"))
    left = [str(key) for key in cfg.model if not (anything or key in takes or str(key).startswith("_"))]
    for key in left:
        if meant is not None and key in meant:
            known = ", ".join(name for name in takes if name not in sizes)
            raise UserError(f"no setting model.{key} of {path}; there are: {known or 'none'}")
    if left:
        say_once(f"of the preset {', '.join(f'model.{key}' for key in left)} are not read: {path} has no such settings")
    return without(cfg.model, left)


def _meant() -> set[str] | None:
    """The settings of a foreign model that its own file or the command line gives: others come from presets for other models.

    None where there is no telling (without Hydra).
    """
    if not HydraConfig.initialized():
        return None
    hydra = HydraConfig.get()
    files = [
        Path(s.path) / "model" / f"{hydra.runtime.choices.get('model')}.yaml" for s in hydra.runtime.config_sources
    ]
    own = [OmegaConf.load(file) for file in files if file.is_file()]
    typed = {str(item).lstrip("+~").partition("=")[0] for item in hydra.overrides.task}
    keys = {str(key) for node in own if isinstance(node, DictConfig) for key in node}
    return keys | {name.split(".")[1] for name in typed if name.startswith("model.")}


def _own(target: Any, cfg: DictConfig, sizes: Mapping[str, Any], given: Mapping[str, Any]) -> mg.Learner:
    """A learner of the user's: a Learner or LightningModule class, or a function that makes a learner."""
    path = cfg.learner._target_
    takes, anything = _takes(target)
    own = cfg.learner.arguments
    arguments: dict[str, Any] = {} if own is None else OmegaConf.to_container(own, resolve=True)  # type: ignore[assignment]
    offered: dict[str, Any] = {**sizes, **({"model": _model(cfg, sizes)} if "model" in takes else {})}
    is_module = inspect.isclass(target) and issubclass(target, lightning.LightningModule)
    adopt = is_module and not issubclass(target, mg.Learner)
    if not adopt:
        known = inspect.signature(mg.Learner.__init__).parameters if is_module and anything else {}
        offered |= {name: value for name, value in given.items() if name in takes or name in known}
    accepted = {name: value for name, value in offered.items() if name in takes or name in given}
    try:
        made = target(**accepted, **arguments)
    except TypeError as error:
        raise UserError(
            f"learner._target_={path}: {error}; its arguments are learner.arguments, for example +learner.arguments.width=64"
        ) from error
    if adopt:
        return mg.Learner.from_lightning(made, **given)
    if not isinstance(made, mg.Learner):
        raise UserError(
            f"learner._target_={path} gives a {type(made).__name__}, neither a Learner nor a LightningModule"
        )
    return made


def _located(path: str, group: str) -> Any:
    """The class or function of a dotted path; the current folder is searched as well."""
    name, _, attribute = path.rpartition(".")
    try:
        return getattr(importlib.import_module(name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"{group}._target_={path} cannot be imported ({error}): give package.Class, in the current folder or installed"
        ) from error


def _takes(target: Any) -> tuple[list[str], bool]:
    """The names of a callable's arguments, and whether it takes any other by name."""
    parameters = inspect.signature(target).parameters.values()
    plain = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return plain, any(p.kind is p.VAR_KEYWORD for p in parameters)


def _configures(target: Any) -> bool:
    """Whether a class decides its optimizer by itself."""
    if not (inspect.isclass(target) and issubclass(target, lightning.LightningModule)):
        return False
    return not issubclass(target, mg.Learner) or target.configure_optimizers is not mg.Learner.configure_optimizers


def _refuse_unread(path: str) -> None:
    """Settings of ours that a learner's own `configure_optimizers` decides."""
    for key in (
        "learner",
        *(f"learner.{name}" for name in ("optimizer", "learning_rate", "schedule", "warmup", "decay")),
    ):
        if _named(key, below=key != "learner"):
            raise UserError(f"{key}: {path} has a configure_optimizers of its own, which decides it; leave it out")


def _named(key: str, below: bool = True) -> bool:
    """Whether the command line names a setting, or one below it."""
    if not HydraConfig.initialized():
        return False
    names = [str(item).lstrip("+~").partition("=")[0] for item in HydraConfig.get().overrides.task]
    return any(name == key or (below and name.startswith(f"{key}.")) for name in names)


def _load(learner: mg.Learner, path: str) -> None:
    try:
        load_weights(learner, path)
    except ValueError as error:
        raise UserError(str(error)) from error


def _word(choice: Any) -> str:
    """A choice of the schema by name; a configuration that was read back from a file holds the name itself."""
    return str(getattr(choice, "value", choice))


def _is_matrix(_name: str, shape: torch.Size) -> bool:  # no lambda: learners go to other processes
    return len(shape) > 1


def _schedule(settings: Any, steps: int) -> mg.Schedule:
    """The schedule of a run of `steps` steps: one of ours by name, or what `_target_` builds."""
    rate, shape = settings.learning_rate, settings.schedule
    if not isinstance(shape, str):
        return build(shape, rate, steps)
    if shape not in SCHEDULES:
        raise UserError(
            f"learner.schedule={shape}: there are {', '.join(SCHEDULES)}, or {{_target_: package.function}}, called with "
            "(learning rate, steps)"
        )
    return SCHEDULES[shape](rate, steps, settings.warmup)


SCHEDULES: dict[str, Callable[[float, int, float], mg.Schedule]] = {
    "constant": lambda rate, steps, warmup: mg.Constant(rate),
    "halved": lambda rate, steps, warmup: mg.Halved(rate, steps),
    "cosine": lambda rate, steps, warmup: mg.Cosine(rate, steps),
    "one_cycle": lambda rate, steps, warmup: mg.OneCycle(rate, steps, warmup=warmup),
    "warmup_decay": lambda rate, steps, warmup: mg.WarmupDecay(rate, steps, warmup=math.floor(warmup * steps)),
}
"""Learning-rate schedules by name: (learning rate, steps, share of warm-up) -> schedule."""

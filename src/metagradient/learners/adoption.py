"""A `LightningModule` that exists, turned into a learner."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import partial
from typing import Any

import lightning
from torch import Tensor

from metagradient.errors import UserError
from metagradient.learners.settings import StepSettings
from metagradient.learners.translation import idle_hooks
from metagradient.training.batches import Batch
from metagradient.training.updates import SGD


def adopted(
    learner: type[Any],
    module: lightning.LightningModule,
    losses: Callable[[Any, Batch], Tensor] | None,
    steps_per_epoch: int | None,
    eps_root: float,
    settings: Mapping[str, Any],
) -> Any:
    """The module itself, its class extended by `learner` (`Learner.from_lightning`)."""
    kind = type(module)
    if isinstance(module, learner):
        raise UserError(f"{kind.__name__} is a Learner already: pass it to the Trainer as it is")
    if not isinstance(module, lightning.LightningModule):
        raise UserError(
            f"from_lightning needs a LightningModule, not {kind.__name__}: a plain model goes into mg.Classifier"
        )
    if not module.automatic_optimization:
        raise UserError(
            f"{kind.__name__} optimizes by itself (automatic_optimization=False), which no replay would see"
        )
    changed = idle_hooks(kind)
    if changed:
        raise UserError(
            f"{kind.__name__} defines {', '.join(changed)}, which would act outside the differentiated step: for clipping give "
            "from_lightning clip_norm=..., otherwise leave them out"
        )
    for name in ("optimizer", "decay"):
        if name in settings:
            raise UserError(f"from_lightning takes the {name} from configure_optimizers: leave {name}=... out")
    if losses is None and not callable(getattr(kind, "losses", None)):
        raise UserError(
            f"{kind.__name__} has no method losses(batch): give from_lightning losses=lambda module, batch: ..., the loss of each "
            "example, [B] (reduction='none')"
        )
    known = [field.name for field in fields(StepSettings) if field.name != "decay"]
    rest = dict(settings)
    rate = rest.pop("learning_rate", None)
    unknown = [name for name in rest if name not in known]
    if unknown:
        raise UserError(
            f"from_lightning takes no {', '.join(unknown)}; there are: {', '.join(['learning_rate', *known])}"
        )
    _refuse_names(learner, module, kind)
    checked = StepSettings(**rest)
    of = kind.losses if losses is None else losses  # type: ignore[attr-defined]
    configure = partial(kind.configure_optimizers, module)
    module.__class__ = _extended(learner, kind, of)
    assert isinstance(module, learner)
    module._set_up(checked, SGD(), 0.0 if rate is None else rate)  # until the run's length is known
    module._own_rates = rate is None
    module._configure, module._steps_per_epoch, module._eps_root = configure, steps_per_epoch, eps_root
    return module


def _extended(learner: type[Any], kind: type, losses: Callable[[Any, Batch], Tensor]) -> type[Any]:
    """The module's class with a learner's in front."""
    namespace = {
        "losses": lambda self, batch: losses(self, batch),
        "__module__": kind.__module__,
        "__doc__": kind.__doc__,
        "__reduce__": lambda self: (
            _remade,
            (learner, kind, losses),
            self.__dict__,
        ),  # the class has no name to be found by
    }
    return type(kind.__name__, (learner, kind), namespace)


def _remade(learner: type[Any], kind: type, losses: Callable[[Any, Batch], Tensor]) -> Any:
    """An empty module of the extended class, for copies and other processes."""
    extended = _extended(learner, kind, losses)
    return object.__new__(extended)


def _refuse_names(learner: type[Any], module: lightning.LightningModule, kind: type) -> None:
    """A learner's attributes must be free in the module."""
    ours = {name for name in (*vars(learner()), *dir(learner)) if not hasattr(lightning.LightningModule, name)}
    own = {*vars(module), *module._modules, *module._parameters, *module._buffers, *dir(kind)}
    plain = {*vars(lightning.LightningModule()), *dir(lightning.LightningModule)}
    taken = sorted((ours & own) - plain - {"losses"})
    if taken:
        raise UserError(
            f"{kind.__name__} has attributes of its own called {', '.join(taken)}, which a Learner needs: rename them"
        )

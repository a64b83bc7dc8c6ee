"""A `LightningModule` that exists, turned into a learner."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import lightning
from torch import Tensor

from metagradient.errors import UserError
from metagradient.learners.translation import idle_hooks
from metagradient.training.batches import Batch


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
    _refuse_names(learner, module, kind)
    of = kind.losses if losses is None else losses  # type: ignore[attr-defined]
    configure = partial(kind.configure_optimizers, module)
    namespace = {"losses": lambda self, batch: of(self, batch), "__module__": kind.__module__, "__doc__": kind.__doc__}
    module.__class__ = type(kind.__name__, (learner, kind), namespace)
    assert isinstance(module, learner)
    module._set_up(**settings)
    module._own_rates = "learning_rate" not in settings
    module._configure, module._steps_per_epoch, module._eps_root = configure, steps_per_epoch, eps_root
    return module


def _refuse_names(learner: type[Any], module: lightning.LightningModule, kind: type) -> None:
    """A learner's attributes must be free in the module."""
    blank = learner()
    ours = {name for name in (*vars(blank), *dir(learner)) if not hasattr(lightning.LightningModule, name)}
    own = {*vars(module), *module._modules, *module._parameters, *module._buffers, *dir(kind)}
    plain = {*vars(lightning.LightningModule()), *dir(lightning.LightningModule)}
    taken = sorted((ours & own) - plain - {"losses"})
    if taken:
        raise UserError(
            f"{kind.__name__} has attributes of its own called {', '.join(taken)}, which a Learner needs: rename them"
        )

"""`torch.optim` optimizers and their schedulers, as `configure_optimizers` returns them, in terms of `Update`'s rules."""

from __future__ import annotations

import glob
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import lightning
import torch
from torch import nn

from metagradient.errors import UserError
from metagradient.training.updates import (
    SGD,
    Adam,
    AdamW,
    Constant,
    Group,
    Groups,
    Knots,
    Muon,
    Optimizer,
    Schedule,
    Scheduled,
)

Settings = dict[str, Any]
"""A parameter group of torch's, without its parameters."""


class Run(NamedTuple):
    """What a configuration may ask of the run: its number of steps, and of steps in an epoch (None: unknown)."""

    steps: int
    steps_per_epoch: int | None


class _Unknown(UserError, AttributeError):
    """Also an AttributeError, so that `getattr(trainer, name, default)` gives its default."""


@dataclass
class _Trainer:
    """What `configure_optimizers` may read of `self.trainer`."""

    run: Run

    world_size = num_devices = num_nodes = accumulate_grad_batches = 1
    current_epoch = global_step = global_rank = 0
    is_global_zero = True

    @property
    def estimated_stepping_batches(self) -> int:
        return self.run.steps

    @property
    def max_steps(self) -> int:
        return self.run.steps

    @property
    def num_training_batches(self) -> int:
        if self.run.steps_per_epoch is None:
            raise UserError(  # no AttributeError, which would ask __getattr__
                "configure_optimizers asks for the length of an epoch, which the plan does not say: give from_lightning "
                "steps_per_epoch=..., or compute from trainer.estimated_stepping_batches"
            )
        return self.run.steps_per_epoch

    @property
    def max_epochs(self) -> int:
        return -(-self.run.steps // self.num_training_batches)

    def __getattr__(self, name: str) -> Any:
        raise _Unknown(
            f"configure_optimizers reads trainer.{name}, which is not known before the run: compute it from "
            "trainer.estimated_stepping_batches, max_epochs or num_training_batches, or give the learner an optimizer of ours"
        )


def translate(
    module: lightning.LightningModule, configure: Callable[[], Any], run: Run, eps_root: float, clipped: bool = False
) -> tuple[Optimizer, Schedule]:
    """The optimizer and the learning rates of a run with what `configure()` returns, an optimizer with its schedulers.

    The schedulers are stepped through the run once and their values kept, step by step, so that any scheduler that looks at
    nothing but the clock is exact. Groups of parameters stay groups; trainable parameters in none stay as they are.

    Raises:
        UserError: several optimizers, an optimizer or an option without a differentiable rule here, a scheduler that looks at
            metrics, an epoch-wise scheduler where the length of an epoch is unknown.
    """
    before = module._trainer
    module._trainer = _Trainer(run)  # type: ignore[assignment]
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            optimizer, schedulers = _returned(configure())
            table = _table(optimizer, schedulers, run)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"configure_optimizers fails for a run of {run.steps} steps ({type(error).__name__}: {error}); it is called before the "
            "run, after __init__ and before setup()"
        ) from error
    finally:
        module._trainer = before
    names = {id(p): name for name, p in module.named_parameters() if p.requires_grad}
    idle = sorted(
        set(names.values()) - {names[id(p)] for g in optimizer.param_groups for p in g["params"] if id(p) in names}
    )
    if idle and clipped:
        raise UserError(
            f"clip_norm would count the gradients of parameters that configure_optimizers leaves out ({', '.join(idle[:3])}), as torch does "
            "not: freeze them, requires_grad_(False)"
        )
    return _composed(optimizer, table, names, idle, eps_root)


def _returned(found: Any) -> tuple[torch.optim.Optimizer, list[Settings]]:
    """The one optimizer and its schedulers' configurations, of all the forms that Lightning takes."""
    if found is None:
        raise UserError("configure_optimizers returns None: give the learner an optimizer, Learner(optimizer=...)")
    schedulers: Any = []
    if isinstance(found, tuple | list):
        if len(found) == 2 and all(isinstance(part, tuple | list) for part in found):
            found, schedulers = found
        if len(found) != 1:
            raise UserError(f"configure_optimizers returns {len(found)} optimizers, and a run here has one")
        found = found[0]
    if isinstance(found, dict):
        schedulers = [found["lr_scheduler"]] if found.get("lr_scheduler") is not None else []
        found = found["optimizer"]
    usual = {"interval": "epoch", "frequency": 1}
    return found, [usual | (s if isinstance(s, dict) else {"scheduler": s}) for s in schedulers]


def _table(optimizer: torch.optim.Optimizer, schedulers: Sequence[Settings], run: Run) -> list[list[Settings]]:
    """[steps][groups]: each group's settings at each step."""
    for config in schedulers:
        _refuse_scheduler(config, run)
    for group in optimizer.param_groups:
        _rule(type(optimizer), _settings(group), 0.0)  # refuses what is none of torch's before it is stepped
    optimizer.zero_grad(set_to_none=True)  # nothing moves
    rows = []
    for t in range(run.steps):
        rows.append([_settings(group) for group in optimizer.param_groups])
        optimizer.step()
        epoch, within = divmod(t, run.steps_per_epoch or run.steps)
        for config in schedulers:
            ended = run.steps_per_epoch is not None and within + 1 == run.steps_per_epoch
            index = within if config["interval"] == "step" else epoch if ended else None
            if index is not None and (index + 1) % config["frequency"] == 0:
                config["scheduler"].step()
    return rows


def _refuse_scheduler(config: Settings, run: Run) -> None:
    scheduler, interval = config["scheduler"], config["interval"]
    name = type(scheduler).__name__
    known = isinstance(scheduler, torch.optim.lr_scheduler.LRScheduler)
    if not known or isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
        raise UserError(
            f"{name} is no function of the step alone, which a replay needs: use a torch.optim.lr_scheduler that looks at no metric"
        )
    if interval not in ("step", "epoch"):
        raise UserError(f"the scheduler's interval must be step or epoch, not {interval}")
    if interval == "epoch" and run.steps_per_epoch is None:
        raise UserError(
            f"{name} steps once an epoch (Lightning's default), and the length of an epoch is not known: give from_lightning "
            "steps_per_epoch=..., or return {'scheduler': ..., 'interval': 'step'}"
        )


def _settings(group: Settings) -> Settings:
    plain = {k: float(v) if isinstance(v, torch.Tensor) else v for k, v in group.items() if k != "params"}
    return {k: tuple(v) if isinstance(v, list) else v for k, v in plain.items()}


def _composed(
    optimizer: torch.optim.Optimizer,
    table: list[list[Settings]],
    names: dict[int, str],
    idle: list[str],
    eps_root: float,
) -> tuple[Optimizer, Schedule]:
    members = [[names[id(p)] for p in group["params"] if id(p) in names] for group in optimizer.param_groups]
    base = [max(float(settings["lr"]) for settings in row) for row in table]
    groups = []
    for i, group in enumerate(members):
        rows = [row[i] for row in table]
        ratio = _filled([float(s["lr"]) / rate if rate else None for s, rate in zip(rows, base, strict=True)])
        first = {**rows[0], **({"momentum": max(s["momentum"] for s in rows)} if "momentum" in rows[0] else {})}
        rule = _rule(type(optimizer), first, eps_root)
        varying = {k: v for k, v in _varying(optimizer, rows).items() if k in rule.hyper(0)}
        patterns = tuple(glob.escape(name) for name in group)
        groups.append(Group(patterns, Scheduled(rule, varying) if varying else rule, _sequence(ratio)))
    rates = _sequence(base)
    schedule = rates if callable(rates) else Constant(rates)
    if len(groups) == 1 and not idle:
        return groups[0].optimizer, schedule
    return Groups([*groups, *([Group(tuple(map(glob.escape, idle)), SGD(), 0.0)] if idle else [])]), schedule


def _filled(ratios: list[float | None]) -> list[float]:
    """Where all rates are 0 a ratio means nothing; there it is that of the step before, or else of the first one known."""
    last = next((ratio for ratio in ratios if ratio is not None), 1.0)
    filled = []
    for ratio in ratios:
        last = last if ratio is None else ratio
        filled.append(last)
    return filled


def _sequence(values: Sequence[float]) -> float | Schedule:
    return values[0] if len(set(values)) == 1 else Knots(tuple(values), len(values))


def _varying(optimizer: torch.optim.Optimizer, rows: Sequence[Settings]) -> dict[str, Schedule]:
    """The settings that a scheduler changes besides the rate, by our names."""
    found: dict[str, Schedule] = {}
    for key in rows[0]:
        values = [row[key] for row in rows]
        if key == "lr" or all(value == values[0] for value in values):
            continue
        if key == "betas":
            columns = {f"beta{i + 1}": [float(betas[i]) for betas in values] for i in range(2)}
        elif key in ("momentum", "weight_decay"):
            columns = {key: [float(value) for value in values]}
        elif key in ("initial_lr", "max_lr", "min_lr", "max_momentum", "base_momentum"):
            continue  # a scheduler's own notes
        else:
            raise UserError(f"a scheduler changes {key} of {type(optimizer).__name__}, which is fixed for a run here")
        found |= {k: s for k, v in columns.items() if callable(s := _sequence(v))}
    return found


def _rule(kind: type[torch.optim.Optimizer], s: Settings, eps_root: float) -> Optimizer:
    """The rule of one group at its first settings."""
    for option in ("maximize", "amsgrad", "dampening"):
        if s.get(option):
            raise UserError(f"{kind.__name__}({option}={s[option]}) has no differentiable rule here: leave it out")
    decay = float(s.get("weight_decay", 0.0))
    if kind is torch.optim.SGD:
        return SGD(float(s["momentum"]), bool(s["nesterov"]), decay)
    if kind in (torch.optim.Adam, torch.optim.AdamW):
        b1, b2 = (float(b) for b in s["betas"])
        decoupled = kind is torch.optim.AdamW or s.get("decoupled_weight_decay", False)
        return (AdamW if decoupled else Adam)((b1, b2), float(s["eps"]), eps_root, decay)
    if kind is getattr(torch.optim, "Muon", None):
        return Muon(
            float(s["momentum"]),
            decay,
            bool(s["nesterov"]),
            s["ns_coefficients"],
            int(s["ns_steps"]),
            float(s["eps"]),
            s["adjust_lr_fn"] or "original",
        )
    raise UserError(
        f"{kind.__module__}.{kind.__name__} has no differentiable rule here: use torch.optim's SGD, Adam, AdamW or Muon, or give "
        "the learner an optimizer of ours, Learner(optimizer=...)"
    )


def idle_hooks(kind: type[nn.Module]) -> list[str]:
    """Hooks that a class defines and that would change an update, which happens inside the differentiated step here."""
    names = (
        "backward",
        "configure_gradient_clipping",
        "on_after_batch_transfer",
        "on_before_batch_transfer",
        "transfer_batch_to_device",
        "lr_scheduler_step",
        "on_after_backward",
        "on_before_backward",
        "on_before_optimizer_step",
        "on_before_zero_grad",
        "optimizer_step",
        "optimizer_zero_grad",
    )
    return [name for name in names if getattr(kind, name) is not getattr(lightning.LightningModule, name)]

"""Per-example gradients of a learner's losses, taken with hooks from one forward and one backward pass."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from metagradient.attribution.gradients.pieces import Dense, Piece, Sum
from metagradient.attribution.gradients.rules import Batched, Call, by_vmap, rule_of
from metagradient.errors import UserError
from metagradient.learners.learner import Learner
from metagradient.training.batches import Batch
from metagradient.training.state import TrainState

log = logging.getLogger(__name__)

Target = Callable[[Learner, Batch], Tensor]
"""(learner, batch) -> [B], the scalar of each example that is differentiated, or [S, B] for S of them."""


@dataclass(frozen=True)
class Parameter:
    """A trainable parameter as the compressors see it: `rows` x `columns` entries from `start` on in the vector [P].

    Vectors have one column; a convolution's [O, C, kh, kw] has O rows.
    """

    name: str
    start: int
    rows: int
    columns: int

    @property
    def size(self) -> int:
        return self.rows * self.columns


def losses(learner: Learner, batch: Batch) -> Tensor:
    """The target of influence functions: the learner's own losses, [B]."""
    return learner.losses(batch)


class ExampleGradients:
    """Per-example gradients at a state, in evaluation mode, parameter by parameter as `Piece`s.

    For `nn.Linear`, `Conv1D` of transformers, `nn.Conv2d`, `nn.Embedding`, `nn.LayerNorm` and batch norms they come from the layer's input and
    the gradient of its output; for any other module that owns parameters from a vmap over examples of that module
    alone, which is slower and said once. The first batch is checked against single backward passes.

    Raises:
        UserError: losses in which one example sees another, and for parameters used outside their own module.
    """

    def __init__(self, learner: Learner, state: TrainState) -> None:
        if getattr(learner, "label_smoothing", 0):
            raise UserError(
                "influence functions read losses in evaluation mode, where labels are not smoothed, but the model was trained on "
                "smoothed ones: set learner.label_smoothing=0, or ask for methods=[exact]"
            )
        self.learner, self.state = learner, learner.update.read(state.detach())
        layout = learner.layout
        self.parameters: list[Parameter] = []
        self._place: dict[tuple[int, str], int] = {}
        start = 0
        for i, (name, shape, owners) in enumerate(zip(layout.names, layout.shapes, layout.owners, strict=True)):
            rows = shape[0] if shape else 1
            self.parameters.append(Parameter(name, start, rows, shape.numel() // rows))
            start += shape.numel()
            for owner, key in owners:
                self._place[id(owner), key] = i
        self._modules = list({id(o): o for owners in layout.owners for o, _ in owners}.values())
        self._checked = False
        self._batched: list[Batched] = []
        slow = sorted({type(m).__name__ for m in self._modules if rule_of(m) is None})
        if slow:
            _tell_slow(", ".join(slow))

    @property
    def size(self) -> int:
        """P, the number of trainable parameters."""
        return sum(p.size for p in self.parameters)

    def __call__(self, batch: Batch, target: Target = losses) -> Iterator[list[Piece]]:
        """The pieces of every parameter, in the order of `parameters`: once, or S times for a target [S, B]."""
        if not self._checked:
            self._checked = True
            self._check(batch)
        yield from self._pieces(batch, target)

    def total(self, batches: Iterable[Batch], weights: Tensor) -> list[Piece]:
        """sum_b weights[b] g_b over examples b, as the pieces of one example: an ordinary backward pass for each batch.

        Args:
            batches: examples, whose `index` counts into the weights.
            weights: [n].
        """
        gradient = torch.zeros_like(self.state.params)
        for batch in batches:
            moved, leaf = batch.to(gradient.device, gradient.dtype), self.state.leaf()
            with torch.enable_grad(), self.learner.evaluating(leaf):
                values = self.learner.losses(moved)
                (part,) = torch.autograd.grad((values * weights[batch.index].to(values)).sum(), leaf.params)
            gradient += part
        return [Dense(gradient[p.start : p.start + p.size].view(1, p.rows, p.columns)) for p in self.parameters]

    def _pieces(self, batch: Batch, target: Target) -> Iterator[list[Piece]]:
        batch = batch.to(self.state.params.device, self.state.params.dtype)
        leaf = self.state.leaf()
        with torch.enable_grad(), self.learner.evaluating(leaf), self._recorded(len(batch)) as calls:
            value = target(self.learner, batch)
        if value.shape[-1] != len(batch) or value.dim() > 2:
            raise UserError(
                f"per-example gradients need one value for each of {len(batch)} examples, not {value.shape}"
            )
        rows = value.unsqueeze(0) if value.dim() == 1 else value
        outputs = [call.output for call in calls]
        for s, row in enumerate(rows):
            deltas = torch.autograd.grad(
                row.sum(), outputs, retain_graph=s + 1 < len(rows), allow_unused=True, materialize_grads=True
            )
            with torch.no_grad(), self.learner.evaluating(self.state):
                yield self._assemble(calls, deltas, len(batch))

    @contextmanager
    def _recorded(self, examples: int | None = None) -> Iterator[list[Call]]:
        """The calls of the modules that own parameters. What all examples share, [1, ...], is given to each of `examples`."""
        calls: list[Call] = []

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Tensor | None:
            if not isinstance(output, Tensor):
                raise UserError(
                    f"per-example gradients need modules that return one tensor, not {type(module).__name__}'s"
                )
            batched = None if examples is None else self._batched[len(calls)]
            shared = batched is not None and not batched.output and output.dim() > 0 and output.shape[0] == 1
            if shared and examples is not None:
                output = output.expand(examples, *output.shape[1:])
            calls.append(Call(module, args, kwargs, output, batched))
            return output if shared else None

        handles = [m.register_forward_hook(hook, with_kwargs=True) for m in self._modules]
        try:
            yield calls
        finally:
            for handle in handles:
                handle.remove()

    def _assemble(self, calls: Sequence[Call], deltas: Sequence[Tensor], examples: int) -> list[Piece]:
        found: dict[int, list[Piece]] = {}
        for call, delta in zip(calls, deltas, strict=True):
            rule = rule_of(call.module) or by_vmap
            keys = [k for k in call.module._parameters if (id(call.module), k) in self._place]
            assert call.batched is not None
            if not call.batched.output and call.output.shape[0] != examples:
                raise UserError(
                    f"per-example gradients need the batch (or 1) as the first dimension of {type(call.module).__name__}'s "
                    f"output, [{examples}, ...], not {list(call.output.shape)}"
                )
            for key, piece in rule(call, delta, keys).items():
                found.setdefault(self._place[id(call.module), key], []).append(piece)
        missing = [p.name for i, p in enumerate(self.parameters) if i not in found]
        if missing:
            raise UserError(
                f"per-example gradients of {', '.join(missing)}: the module that owns them is never called; use the "
                "parameter inside its own module's forward"
            )
        lists = [found[i] for i in range(len(self.parameters))]
        return [parts[0] if len(parts) == 1 else Sum(parts) for parts in lists]

    def _check(self, batch: Batch) -> None:
        """Two examples of the first batch against the backward pass of the first one alone."""
        two = _rows(batch, 2).to(self.state.params.device, self.state.params.dtype)
        with torch.no_grad(), self.learner.evaluating(self.state):
            with self._recorded() as alone:
                self.learner.losses(_rows(two, 1))
            with self._recorded() as together:
                self.learner.losses(two)
        if [id(call.module) for call in alone] != [id(call.module) for call in together]:
            raise UserError("per-example gradients need losses that call the same modules for any number of examples")
        self._batched = [Batched.of(one, both) for one, both in zip(alone, together, strict=True)]
        pieces = next(self._pieces(two, losses))
        leaf = self.state.leaf()
        with torch.enable_grad(), self.learner.evaluating(leaf):
            (single,) = torch.autograd.grad(self.learner.losses(_rows(two, 1)).sum(), leaf.params)
        tolerance = 1e-3 * float(single.norm())
        for p, piece in zip(self.parameters, pieces, strict=True):
            difference = piece.dense(0, p.rows)[0] - single[p.start : p.start + p.size]
            if float(difference.norm()) > tolerance:
                raise UserError(
                    f"the per-example gradient of {p.name} is not that of the example alone: its loss depends on the "
                    "other examples of the batch (a contrastive loss, say), or the parameter is used outside its module"
                )


def _rows(batch: Batch, count: int) -> Batch:
    """The first rows; a batch of one is repeated."""
    rows = torch.arange(count) % len(batch)
    fields = {k: v[rows.to(v.device)] for k, v in batch.fields.items()}
    return Batch(batch.t, batch.index[rows.to(batch.index.device)], fields, batch.seed)


@functools.cache
def _tell_slow(kinds: str) -> None:
    """Once, though scorers are made many times over."""
    log.info("no rule for the per-example gradients of %s: taken by vmap, slower", kinds)

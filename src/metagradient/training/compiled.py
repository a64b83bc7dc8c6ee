"""The loss gradient of a step, and its adjoint, as machine code (TorchInductor).

`torch.compile` does not differentiate twice what it compiled. But the loss gradient of a step is a function like any
other, (params, buffers, coefficients, fields) -> (gradient, buffers, loss): AOTAutograd traces it together with its
vector-Jacobian product, both are compiled, and a replay asks for no derivative beyond that.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor

from metagradient.errors import UserError
from metagradient.training.batches import Batch, Batches
from metagradient.training.model import LossGradient, Model
from metagradient.training.saved_tensors import watching_saved_tensors
from metagradient.training.steps import loss_gradient

log = logging.getLogger(__name__)

Key = tuple[Any, ...]

_WAY_OUT = "set learner.compiled=false"


@dataclass
class _Run:
    """What is known of a learner's run: its modules in words, the longest batch, and its calls of each graph."""

    structure: str
    longest: int | None = None
    calls: dict[Key, int] = field(default_factory=dict)


class Graphs:
    """Compiled loss gradients, shared by learners that are built alike: same code, same modules, other values.

    Called like `step.loss_gradient`, whose values it gives up to rounding. There is one graph for each combination of
    shapes, dtypes and of what is differentiated, made when first needed. Batches shorter than the longest of their run
    (the last of an epoch) and stacked runs are computed without. Copies of a learner share its graphs; another process
    makes its own.

    A graph knows parameters, buffers and fields; what else the losses read is frozen in it. So in every run calls
    1, 2, 4, 8, ... and every 64th of a graph are checked against the plain computation. Making the first graph sets
    `torch._functorch.config.donated_buffer = False` for the process: an adjoint that writes into what was saved for it
    could not be called once for each of several objectives.

    Raises:
        UserError: the losses draw random numbers, read the step or assign integer buffers, where they cannot be
            traced, where there is no C++ compiler, and where a check fails.
    """

    def __init__(self) -> None:
        self._graphs: dict[Key, Callable[..., LossGradient]] = {}
        self._runs: WeakKeyDictionary[Model, _Run] = WeakKeyDictionary()

    def __deepcopy__(self, memo: dict[int, Any]) -> Graphs:
        return self

    def __reduce__(self) -> tuple[type[Graphs], tuple[()]]:
        return Graphs, ()

    def __call__(
        self,
        learner: Model,
        params: Tensor,
        buffers: Tensor,
        batch: Batch,
        coefficients: Tensor | None,
        t: int,
        *,
        tape: bool,
    ) -> LossGradient:
        run = self._runs.get(learner)
        if run is None:
            run = self._runs[learner] = _Run(repr(learner))
        if run.longest is not None and len(batch) < run.longest:
            return loss_gradient(learner, params, buffers, batch, coefficients, t, tape=tape)
        # An empty vector of buffers requires grad in the first state of a tape only: no reason for a second graph.
        state = (params, buffers if buffers.numel() else buffers.detach())
        if not tape:
            state = params.detach(), buffers.detach()
        given = [] if coefficients is None else [coefficients]
        inputs = (*state, given, learner.layout.constants(), batch.fields, batch.index)
        key = (type(learner), run.structure, tape, *_signature(inputs))
        if key not in self._graphs:
            self._graphs[key] = _compile(learner, inputs, tape)
        with torch.set_grad_enabled(tape):
            result = self._graphs[key](*inputs)
        calls = run.calls[key] = run.calls.get(key, 0) + 1
        if calls & (calls - 1) == 0 or calls % 64 == 0:
            with _nothing_saved():
                _verify(learner, result, params, buffers, batch, coefficients, t)
        return result

    def new_run(self, learner: Model, batches: Batches) -> None:
        """Look at the learner anew: its modules may have changed, and its longest batch."""
        plan = batches.plan[:1] if batches.plan.stride(0) == 0 else batches.plan
        self._runs[learner] = _Run(repr(learner), int((plan >= 0).sum(dim=1).max()))


def can_compile() -> bool:
    """Whether there is a C++ compiler."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return False
    return True


def _compile(learner: Model, inputs: tuple[Any, ...], tape: bool) -> Callable[..., LossGradient]:
    """The graph for inputs like these."""
    from functorch.compile import aot_function, min_cut_rematerialization_partition
    from torch._inductor.compile_fx import compile_fx_inner
    from torch._inductor.decomposition import select_decomp_table

    if learner.needs.foreign_randomness:
        raise UserError(f"the losses draw from torch's global generator, which a compiled step cannot: {_WAY_OUT}")

    owner = ref(learner)  # a graph outlives the learner that it was made from

    def function(
        params: Tensor,
        buffers: Tensor,
        coefficients: Sequence[Tensor],  # none or one
        constants: Sequence[Tensor],
        fields: dict[str, Tensor],
        index: Tensor,
    ) -> LossGradient:
        learner, batch = owner(), _Timeless(index, fields)
        assert learner is not None
        params = params if tape else params.detach().requires_grad_()
        with learner.layout.holding(constants):
            own = coefficients[0] if coefficients else None
            gradient, new, loss = loss_gradient(learner, params, buffers, batch, own, 0, tape=tape)
        return (gradient, new, loss.detach()) if tape else (gradient.detach(), new.detach(), loss.detach())

    def forward(graph: torch.fx.GraphModule, examples: Sequence[Any]) -> Any:
        return compile_fx_inner(graph, examples, is_inference=not tape)

    def backward(graph: torch.fx.GraphModule, examples: Sequence[Any]) -> Any:
        return compile_fx_inner(graph, examples, is_backward=True)

    compiled: Callable[..., LossGradient] = aot_function(
        function,
        fw_compiler=forward,
        bw_compiler=backward,
        inference_compiler=forward,
        partition_fn=min_cut_rematerialization_partition,
        decompositions=select_decomp_table(),
    )
    what = f"the {'taped' if tape else 'plain'} step of {inputs[-1].shape[-1]} examples"
    log.info("compiling %s, which takes seconds to a minute ...", what)
    start = time.perf_counter()
    torch._functorch.config.donated_buffer = False
    # Convolutions that choose a layout would not fit the strides of the trace. The tape keeps what is costly to compute
    # and computes the rest again: 40 % less memory in the same time (measured on an MLP).
    layout = torch._inductor.config.patch(layout_optimization=False)
    memory = torch._functorch.config.patch(activation_memory_budget=0.9)
    try:
        with layout, memory, torch.set_grad_enabled(tape), _nothing_saved():
            compiled(*inputs)  # compiles; the result is the next call's
    except UserError:
        raise
    except Exception as error:
        reason = (str(error) or type(error).__name__).strip().split("\n")[0]
        raise UserError(
            f"the step could not be compiled ({reason}): what the losses compute with must be parameters, buffers and "
            f"fields, and nothing is logged in them; or {_WAY_OUT}"
        ) from error
    log.info("compiled %s in %.0f s", what, time.perf_counter() - start)
    return compiled


class _Timeless(Batch):
    """A batch inside a trace: nothing may depend on its step, and nothing random can be drawn from its seed."""

    def __init__(self, index: Tensor, fields: Mapping[str, Tensor]) -> None:
        self.index, self.fields, self.seed = index, dict(fields), None  # type: ignore[assignment]

    @property
    def t(self) -> int:  # type: ignore[override]
        raise UserError(f"the losses read the step of their batch, which a compiled step would freeze: {_WAY_OUT}")

    def replace(self, **fields: Tensor) -> Batch:
        return _Timeless(self.index, {**self.fields, **fields})


def _signature(inputs: tuple[Any, ...]) -> Iterator[Any]:
    """What a graph is made for: names, shapes, strides, dtypes, devices, and what is differentiated."""
    params, buffers, coefficients, constants, fields, index = inputs
    yield tuple(fields)
    yield len(coefficients)
    for x in (params, buffers, *coefficients, *constants, *fields.values(), index):
        yield x.shape, x.stride(), x.dtype, x.device, x.requires_grad


def _verify(
    learner: Model,
    result: LossGradient,
    params: Tensor,
    buffers: Tensor,
    batch: Batch,
    coefficients: Tensor | None,
    t: int,
) -> None:
    plain = params.detach().requires_grad_()
    expected = loss_gradient(learner, plain, buffers.detach(), batch, coefficients, t, tape=False)
    tolerance = torch.finfo(params.dtype).eps ** 0.5
    rounding = tolerance * float(plain.detach().norm())  # of a gradient that cancels to nothing
    for name, got, want in zip(("gradient", "buffers", "loss"), result, expected, strict=True):
        difference = float((got.detach() - want.detach()).norm())
        size = float(want.detach().norm())
        if not difference <= tolerance * (size + rounding):
            if not bool(torch.isfinite(want).all()):
                return  # the run itself diverges, and says so
            raise UserError(
                f"the compiled step gave another {name} than the plain one at step {t} (apart by {difference:.1e} of "
                f"{size:.1e}): the losses read more than parameters, buffers and fields, or what they read changed "
                f"since it was compiled, or they write into their batch: {_WAY_OUT}"
            )


def _nothing_saved() -> AbstractContextManager[None]:
    """What is saved for a backward pass inside is not seen by the hooks outside, which measure the tape."""
    return watching_saved_tensors(lambda _: None)

"""Other ways to the adjoint of one training step, each measured against the taped step and its pull.

`python benchmarks/adjoints.py`, one thread, some minutes. Each way computes the cotangents of the parameters and of the data
weights for one step of SGD with momentum (momenta: of Adam as well) from the same state; CPU seconds are medians of interleaved
repeats, bytes are those of all tensors made. `--tiny` rehearses it.

- momenta: the gradient that the optimizer's adjoint needs is taken from two consecutive momenta, g = (m' - mu m) or, of Adam,
  (m' - b m) / (1 - b), and c . g is differentiated with the optimizer's cotangent c at hand;
- tangents: c . g is the tangent of the loss along c, computed forwards, and its derivative is taken backwards;
- micro-batches: a quarter of the rows at a time, `micro_batch`;
- skipped: the same where micro-batches of zero weights are left out; half of the weights are zero, at random.
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable

import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F
from torch import Tensor

import metagradient as mg
from metagradient.replay.trial.allocations import Allocations
from metagradient.studies.cost import contenders
from metagradient.training import initial_state
from metagradient.training.losses import losses_and_buffers
from metagradient.training.microbatches import MicroBatches
from metagradient.training.run import cast, run_mode, train
from metagradient.training.steps import step

Cotangents = tuple[Tensor, ...]
MODELS = {"mlp": 50, "resnet9": 5, "gpt": 5}


def log_softmax(x: Tensor, dim: int) -> Tensor:
    """In operations whose tangents have a derivative; torch's own rule for it writes in place."""
    shifted = x - x.detach().amax(dim, keepdim=True)
    return shifted - shifted.exp().sum(dim, keepdim=True).log()


class Step:
    """One step of a case, from a state some steps into its run."""

    def __init__(self, model: str, optimizer: mg.SGD | mg.Adam, weights: Tensor | None = None) -> None:
        case = contenders.make_case(model, 4)
        self.learner = contenders.CaseLearner(case, None)
        self.learner.optimizer = optimizer
        self.batches = mg.Batches(case.examples, case.plan)
        self.weights = mg.DataWeights(case.weights if weights is None else weights)
        with run_mode(self.learner, self.batches):
            self.state = train(self.learner, mg.Batches(case.examples, case.plan[:2]))
            self.t, self.batch = 2, cast(self.batches(2), initial_state(self.learner))
            self.after = step(self.learner, self.state, self.batch, 2, (self._leaf(False),)).state
        self.cotangent = torch.randn(self.state.params.shape, generator=torch.Generator().manual_seed(0))

    def _leaf(self, differentiable: bool = True) -> mg.DataWeights:
        leaf = self.weights.leaf(self.state.params)
        return leaf if differentiable else leaf.with_value(leaf.value.detach())

    def plain(self) -> None:
        step(self.learner, self.state, self.batch, self.t, (self._leaf(False),))

    def taped(self) -> Cotangents:
        """What a replay does."""
        leaf, start = self._leaf(), self.state.leaf()
        end = step(self.learner, start, self.batch, self.t, (leaf,), tape=True).state
        return torch.autograd.grad(end.params, (start.params, leaf.value), self.cotangent)

    def recovered(self) -> Tensor:
        """The gradient, from the momenta before and after the step."""
        optimizer = self.learner.optimizer
        decay = optimizer.momentum if isinstance(optimizer, mg.SGD) else optimizer.betas[0]
        scale = 1.0 if isinstance(optimizer, mg.SGD) else 1 - decay
        return (self.after.slots[0] - decay * self.state.slots[0]) / scale

    def _pulled_through_optimizer(self) -> tuple[Tensor, Tensor]:
        """The cotangents of the gradient, and of the parameters where they enter the update."""
        start, gradient = self.state.leaf(), self.recovered().requires_grad_()
        with torch.enable_grad():
            end = self.learner.update.apply(start, gradient, self.t, self.learner.update.hyper(self.t))
        on_gradient, direct = torch.autograd.grad(end.params, (gradient, start.params), self.cotangent)
        return on_gradient, direct

    def momenta(self) -> Cotangents:
        c, direct = self._pulled_through_optimizer()
        params, leaf = self.state.params.detach().requires_grad_(), self._leaf()
        with torch.enable_grad():
            losses, _ = losses_and_buffers(self.learner, params, self.state.buffers, self.batch, self.t)
            weights = leaf.on_weights(params.new_ones(len(self.batch)), self.batch, self.t)
            (gradient,) = torch.autograd.grad((weights * losses).mean(), params, create_graph=True)
        through, on_weights = torch.autograd.grad(gradient, (params, leaf.value), c)
        return direct + through, on_weights

    def tangents(self) -> Cotangents:
        c, direct = self._pulled_through_optimizer()
        params, leaf = self.state.params.detach().requires_grad_(), self._leaf()
        with torch.enable_grad(), forward_ad.dual_level():
            dual = forward_ad.make_dual(params, c)
            losses, _ = losses_and_buffers(self.learner, dual, self.state.buffers, self.batch, self.t)
            weights = leaf.on_weights(params.new_ones(len(self.batch)), self.batch, self.t)
            slope = (weights * forward_ad.unpack_dual(losses).tangent).mean()
            through, on_weights = torch.autograd.grad(slope, (params, leaf.value))
        return direct + through, on_weights


def measured(ways: dict[str, Callable[[], object]], repeats: int) -> dict[str, tuple[float, float, object]]:
    """Median CPU seconds, MiB of tensors at the most, and the result, of each way."""
    results, peaks = {}, {}
    for name, way in ways.items():
        with Allocations() as count:
            results[name] = way()
        peaks[name] = count.peak / 2**20
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            start = time.process_time()
            way()
            seconds[name].append(time.process_time() - start)
    return {name: (statistics.median(seconds[name]), peaks[name], results[name]) for name in ways}


def apart(found: object, truth: object) -> str:
    """The largest relative difference of two lists of cotangents."""
    if not isinstance(found, tuple) or not isinstance(truth, tuple):
        return ""
    return f"{max(float((a - b).norm() / b.norm()) for a, b in zip(found, truth, strict=True)):.1e}"


def compare(model: str, repeats: int) -> None:
    sgd = Step(model, mg.SGD(momentum=0.9))
    ways: dict[str, Callable[[], object]] = {"plain step": sgd.plain, "taped": sgd.taped, "momenta": sgd.momenta}
    try:
        sgd.tangents()
        ways["tangents"] = sgd.tangents
    except RuntimeError as error:
        print(f"{model:8} tangents      cannot be differentiated here: {str(error).splitlines()[0][:90]}")
    if model != "resnet9":  # batch norm sees the whole batch
        size = len(sgd.batch) // 4
        half = Step(model, mg.SGD(momentum=0.9), (torch.rand(len(sgd.weights.value)) < 0.5).float())
        for case in (small := Step(model, mg.SGD(momentum=0.9)), half):
            case.learner.micro_batches = MicroBatches(size)
        ways |= {"micro-batches": small.taped}
        weights = half.weights.value[half.batch.index]
        empty = sum(not bool(part.any()) for part in weights.split(size))
        of_four = sum(not bool(part.any()) for part in weights.split(4))
        print(
            f"{model:8} skipped       {empty} of {len(weights.split(size))} micro-batches of {size}, "
            f"{of_four} of {len(weights.split(4))} of 4"
        )
    found = measured(ways, repeats)
    unit = found["plain step"][0]
    for name, (seconds, peak, result) in found.items():
        print(
            f"{model:8} {name:13} {seconds / unit:6.2f} plain steps {peak:8.1f} MiB  {apart(result, found['taped'][2])}"
        )
    for optimizer in (mg.SGD(momentum=0.9), mg.Adam()):
        case = Step(model, optimizer)
        with run_mode(case.learner, case.batches):
            truth = step(case.learner, case.state, case.batch, case.t, (case._leaf(False),)).gradient
        error = float((case.recovered() - truth).norm() / truth.norm())
        print(f"{model:8} gradient from {type(optimizer).__name__}'s momenta: relative error {error:.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="the smallest model, once")
    tiny = parser.parse_args().tiny
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message=".*torch.jit", category=FutureWarning)
    F.log_softmax = log_softmax  # type: ignore[assignment]
    for model, repeats in {"mlp": 2}.items() if tiny else MODELS.items():
        compare(model, repeats)


if __name__ == "__main__":
    main()

"""Normalisation and dropout that can be replayed and differentiated, and the conversion of torch's own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metagradient.errors import UserError
from metagradient.training.modules.shared_norm import normalised_over
from metagradient.training.random import bernoulli_like, shared_part


class DifferentiableBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation whose running statistics carry gradient.

    `torch.nn.BatchNorm` writes running_mean and running_var in place, outside autograd. Here training assigns
    `running <- (1 - momentum) running + momentum batch_statistic` as a new tensor, and evaluation reads them in
    differentiable operations. The forward values are torch's.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        """Any [B, C, ...] is fine."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training and self.running_mean is not None and self.running_var is not None:
            shape = (1, -1) + (1,) * (input.dim() - 2)
            scale = torch.rsqrt(self.running_var + self.eps)
            if self.weight is not None:
                scale = scale * self.weight
            shift = -self.running_mean * scale
            if self.bias is not None:
                shift = shift + self.bias
            return input * scale.view(shape) + shift.view(shape)
        tracked = self.running_mean is not None and self.running_var is not None
        output, mean, var = normalised_by_batch(input, self.weight, self.bias, self.eps, tracked)
        if self.running_mean is not None and self.running_var is not None:
            momentum = 0.1 if self.momentum is None else self.momentum
            self.running_mean = (1 - momentum) * self.running_mean + momentum * mean
            self.running_var = (1 - momentum) * self.running_var + momentum * var
        return output


def normalised_by_batch(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, tracked: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Batch normalisation in training, and the mean and unbiased variance [C], which are differentiable where they are `tracked`.

    Of rows that several processes share, by the statistics of all of them.
    """
    part = shared_part()
    if (input.numel() // input.shape[1] if part is None else part.total * input[0, 0].numel()) == 1:
        raise UserError(
            f"batch norm needs more than one value a channel in training, not an input of {list(input.shape)}: leave "
            "out the short batch (epoch_plan(..., drop_last=True)) or choose another batch size"
        )
    if part is not None:
        return normalised_over(part, input, weight, bias, eps)
    output, mean, inverse_std = torch.native_batch_norm(input, weight, bias, None, None, True, 0.0, eps)
    if not tracked:
        return output, mean, inverse_std
    return output, *BatchStatistics.apply(input, mean, inverse_std, eps)  # type: ignore[no-untyped-call]


class BatchStatistics(torch.autograd.Function):
    """Mean and unbiased variance of each channel [C], from what the normalisation kernel has computed already.

    The kernel's own outputs carry no gradient; a second pass over the activations (`torch.var_mean`) costs three times
    the normalisation on a CPU. d mean / d x = 1 / N, d var / d x = 2 (x - mean) / (N - 1).
    """

    @staticmethod
    def forward(ctx, x, mean, inverse_std, eps):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x, mean)
        ctx.save_for_forward(x, mean)
        count = x.numel() // x.shape[1]
        biased = (inverse_std.square().reciprocal() - eps).clamp(min=0.0)
        return mean.clone(), biased * (count / (count - 1))

    @staticmethod
    def jvp(ctx, tangent, *_):  # type: ignore[no-untyped-def]
        x, mean = ctx.saved_tensors
        count, dims = x.numel() // x.shape[1], [d for d in range(x.dim()) if d != 1]
        shape = (1, -1) + (1,) * (x.dim() - 2)
        on_var = ((x - mean.view(shape)) * tangent).sum(dims) * (2 / (count - 1))
        return tangent.mean(dims), on_var

    @staticmethod
    def backward(ctx, on_mean, on_var):  # type: ignore[no-untyped-def]
        x, mean = ctx.saved_tensors
        if torch.is_grad_enabled():  # losses that read the statistics: the mean is a function of x once more
            mean = x.mean([d for d in range(x.dim()) if d != 1])
        count, shape = x.numel() // x.shape[1], (1, -1) + (1,) * (x.dim() - 2)
        slope = on_var * (2 / (count - 1))
        level = on_mean / count - slope * mean
        return torch.addcmul(level.view(shape), x, slope.view(shape)), None, None, None


class SeededDropout(nn.Dropout):
    """Dropout whose mask is a function of (seed, t) inside a training step."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or self.p == 0.0:
            return F.dropout(input, self.p, self.training, self.inplace)
        keep = bernoulli_like(input, 1 - self.p)
        if keep is None:
            return F.dropout(input, self.p, self.training, self.inplace)
        return input * (keep / (1 - self.p)) if self.p < 1.0 else input * 0.0


Modes = list[tuple[nn.Module, bool]]
"""Modules and whether each is in training mode."""


def modes_of(modules: Iterable[nn.Module]) -> Modes:
    """The present mode of each module."""
    return [(module, module.training) for module in modules]


@contextmanager
def in_modes(modes: Modes) -> Iterator[None]:
    """Inside, each module has the mode given here; afterwards its own again."""
    own = modes_of(module for module, _ in modes)
    try:
        for module, mode in modes:
            module.training = mode
        yield
    finally:
        for module, mode in own:
            module.training = mode


_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def make_replayable(module: nn.Module) -> None:
    """Turn torch's batch normalisation and dropout inside `module` into the classes above, in place.

    Only the class changes: parameters, buffers, settings and `state_dict` keys stay. This is the fast way for the
    common case; what other modules call is replaced by `substitutes.Substitutes`.
    """
    for child in module.modules():
        if type(child) in _BATCH_NORMS and child.momentum is not None:
            child.__class__ = DifferentiableBatchNorm
        elif type(child) is nn.Dropout:
            child.__class__ = SeededDropout

"""A naive unroll in float64: the whole run in one autograd graph, written from the formulas and from nothing of ours.

Parameters are a dict of tensors by name, an optimizer is a few lines over that dict, a model is a plain function that
hands back its normalisation statistics, and a metaparameter is a field of `Z`. No flat vectors, no checkpoints, no
project code: what the replay computes by segments must be what `torch.autograd.grad` finds here.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Tensors = dict[str, Tensor]
Model = Callable[[Tensors, Tensors, Tensors, int], tuple[Tensor, Tensors]]
"""(parameters, statistics, fields of a batch, step) -> (losses [B], new statistics)."""


@dataclass(frozen=True)
class Rule:
    """An update rule by name: sgd, adam or adamw. `decays` says which parameters the weight decay touches."""

    kind: str
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    eps_root: float = 1e-8
    decays: Callable[[str], bool] = lambda name: True


@dataclass(frozen=True)
class Run:
    """A training run before any metaparameter enters it."""

    model: Model
    params: Tensors
    stats: Tensors
    data: Tensors
    batches: Sequence[Sequence[int]]
    rule: Rule
    rate: float
    normalize: str = "batch"


@dataclass(frozen=True)
class Z:
    """The metaparameters of a run; None is absent."""

    initial: Tensor | None = None
    weights: Tensor | None = None
    weights_at: Collection[int] = field(default_factory=lambda: range(10**9))
    inputs: Tensor | None = None
    rows: Sequence[int] = ()
    rates: Tensor | None = None
    weight_decay: Tensor | None = None
    candidates: Tensor | None = None
    candidates_at: int = -1


def unroll(run: Run, z: Z) -> tuple[Tensors, Tensors]:
    """The trained parameters and statistics, connected to every tensor of z."""
    params = {name: p.detach().clone().requires_grad_() for name, p in run.params.items()}
    if z.initial is not None:
        params = unflatten(z.initial, run.params)
    stats = dict(run.stats)
    memory: dict[str, Any] = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in params.items()}
    for t, rows in enumerate(run.batches):
        if not rows:
            continue
        fields = {name: v[list(rows)] for name, v in run.data.items()}
        if z.inputs is not None:
            position = {row: j for j, row in enumerate(z.rows)}
            moved = [x + z.inputs[position[i]] if i in position else x for i, x in zip(rows, fields["x"], strict=True)]
            fields["x"] = torch.stack(moved)
        losses, new_stats = run.model(params, stats, fields, t)
        weights = torch.ones_like(losses)
        if z.weights is not None and t in z.weights_at:
            weights = z.weights[list(rows)]
        total = sum((w * loss for w, loss in zip(weights, losses, strict=True)), torch.zeros_like(losses[0]))
        total = total / (weights.sum() if run.normalize == "kept" else len(rows))
        if z.candidates is not None and t == z.candidates_at:
            total = total + (z.candidates * run.model(params, stats, run.data, t)[0]).sum()
        gradients = torch.autograd.grad(total, list(params.values()), create_graph=True)
        rate = run.rate if z.rates is None else z.rates[t]
        decay = run.rule.weight_decay if z.weight_decay is None else z.weight_decay
        for (name, p), g in zip(list(params.items()), gradients, strict=True):
            own_decay = decay if run.rule.decays(name) else 0.0
            params[name], memory[name] = _updated(run.rule, p, g, memory[name], t, rate, own_decay)
        stats = new_stats
    return params, stats


def _updated(rule: Rule, p: Tensor, g: Tensor, memory: Any, t: int, rate: Any, decay: Any) -> tuple[Tensor, Any]:
    if rule.kind == "sgd":
        d = g + decay * p
        velocity = rule.momentum * memory[0] + d
        return p - rate * (d + rule.momentum * velocity if rule.nesterov else velocity), (velocity, memory[1])
    if rule.kind == "adam":
        g = g + decay * p
    b1, b2 = rule.betas
    m, v = b1 * memory[0] + (1 - b1) * g, b2 * memory[1] + (1 - b2) * g**2
    m_hat, v_hat = m / (1 - b1 ** (t + 1)), v / (1 - b2 ** (t + 1))
    new = p - rate * m_hat / ((v_hat + rule.eps_root) ** 0.5 + rule.eps)
    if rule.kind == "adamw":
        new = new - rate * decay * p
    return new, (m, v)


def flatten(params: Tensors) -> Tensor:
    """[P], in the dict's order."""
    return torch.cat([p.reshape(-1) for p in params.values()])


def unflatten(flat: Tensor, like: Tensors) -> Tensors:
    """The inverse of `flatten`."""
    out, start = {}, 0
    for name, p in like.items():
        out[name] = flat[start : start + p.numel()].reshape(p.shape)
        start += p.numel()
    return out


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Of each example, [B], by its definition."""
    return logits.logsumexp(dim=1) - logits[torch.arange(len(y)), y]


def trained(module: nn.Module) -> Tensors:
    """A module's trainable parameters by name, in the order of `named_parameters` (tied ones once)."""
    return {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}


# -- models, by hand ----------------------------------------------------------------------------------------------


def mlp_logits(p: Tensors, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """Linear, tanh (times a dropout mask), linear: the parameters of an `nn.Sequential` under `model`."""
    first, second = list(p)[::2]
    hidden = torch.tanh(x @ p[first].T + p[first.replace("weight", "bias")])
    if mask is not None:
        hidden = hidden * mask
    return hidden @ p[second].T + p[second.replace("weight", "bias")]


def mlp(p: Tensors, stats: Tensors, fields: Tensors, t: int) -> tuple[Tensor, Tensors]:
    return cross_entropy(mlp_logits(p, fields["x"]), fields["y"]), stats


def normalise(
    x: Tensor, p: Tensors, stats: Tensors, name: str, training: bool, momentum: float
) -> tuple[Tensor, Tensors]:
    """Batch normalisation over all dimensions but the second, and the statistics it leaves behind."""
    shape = [1, -1] + [1] * (x.dim() - 2)
    dims = [0, *range(2, x.dim())]
    if training:
        count = x.numel() // x.shape[1]
        mean = x.mean(dims)
        biased = ((x - mean.view(shape)) ** 2).mean(dims)
        stats = {
            **stats,
            f"{name}.running_mean": (1 - momentum) * stats[f"{name}.running_mean"] + momentum * mean,
            f"{name}.running_var": (1 - momentum) * stats[f"{name}.running_var"]
            + momentum * biased * count / (count - 1),
        }
    else:
        mean, biased = stats[f"{name}.running_mean"], stats[f"{name}.running_var"]
    y = (x - mean.view(shape)) / (biased.view(shape) + 1e-5) ** 0.5
    return y * p[f"{name}.weight"].view(shape) + p[f"{name}.bias"].view(shape), stats


def conv_logits(p: Tensors, stats: Tensors, x: Tensor, training: bool, momentum: float) -> tuple[Tensor, Tensors]:
    """Convolution, batch norm, softplus, mean over the image, linear: `toys.conv_net`."""
    x = F.conv2d(x, p["model.0.weight"], p["model.0.bias"], padding=1)
    x, stats = normalise(x, p, stats, "model.1", training, momentum)
    x = torch.log1p(x.exp()).mean((2, 3))
    return x @ p["model.5.weight"].T + p["model.5.bias"], stats


def contrastive(p: Tensors, stats: Tensors, fields: Tensors, t: int) -> tuple[Tensor, Tensors]:
    """CLIP's loss by its definition, on two linear towers."""
    a, b = fields["x"] @ p["model.left.weight"].T, fields["y"] @ p["model.right.weight"].T
    a, b = a / (a**2).sum(1, keepdim=True) ** 0.5, b / (b**2).sum(1, keepdim=True) ** 0.5
    logits = p["model.log_scale"].exp() * a @ b.T
    own = logits.diagonal()
    return (logits.logsumexp(1) - own) / 2 + (logits.logsumexp(0) - own) / 2, stats


def language_model(module: nn.Module, prefix: str = "model.") -> Model:
    """Mean next-token cross entropy of each sequence, the module called with these parameters in place of its own."""

    def model(p: Tensors, stats: Tensors, fields: Tensors, t: int) -> tuple[Tensor, Tensors]:
        tokens = fields["tokens"]
        own = {name.removeprefix(prefix): x for name, x in p.items()}
        log_p = torch.func.functional_call(module, own, (tokens[:, :-1],)).log_softmax(-1)
        return -log_p.gather(2, tokens[:, 1:, None]).squeeze(2).mean(1), stats

    return model

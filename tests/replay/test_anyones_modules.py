"""Modules as other people write them: exact against torch's own training, or refused by name."""

from collections.abc import Callable

import plain
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metagradient as mg
from metagradient.errors import UserError

N, ROWS = 12, [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [3, 1, 11, 0], [5, 2, 7, 9]]
IMAGES = (3, 6, 6)


class Wrapped(mg.Learner):
    def __init__(self, model: nn.Module, losses: plain.Losses, **settings: object) -> None:
        super().__init__(mg.SGD(momentum=0.9), 0.05, **settings)  # type: ignore[arg-type]
        self.model, self.of = model, losses

    def losses(self, batch: mg.Batch) -> Tensor:
        return self.of(self.model, batch.fields)


def cross_entropy(model: nn.Module, fields: dict[str, Tensor]) -> Tensor:
    return F.cross_entropy(model(fields["x"]), fields["y"], reduction="none")


def data(x: Tensor) -> dict[str, Tensor]:
    return {"x": x, "y": torch.arange(len(x)) % 3}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def assert_exact(
    model: nn.Module,
    x: Tensor,
    losses: plain.Losses = cross_entropy,
    *,
    checkpoints: str = "tape",
    value_tolerance: float = 1e-10,
) -> None:
    """The replay's metagradient of the weights, along a direction, is that of torch's own training."""
    model = model.double()
    fields, held_out = data(x), data(x.roll(1, 0) if not x.is_floating_point() else x * 0.9)
    weights, direction = 1 + 0.1 * normal(N, seed=1), normal(N, seed=2)

    def value(w: Tensor) -> Tensor:
        return plain.objective(plain.trained(model, losses, fields, ROWS, w, 0.05, 0.9), losses, held_out)

    expected = plain.slope(value, weights, direction)
    learner = Wrapped(model, losses)
    batches = mg.Batches(fields, torch.tensor(ROWS))
    result = mg.metagradient(learner, batches, mg.DataWeights(weights), mg.mean_loss(held_out), checkpoints=checkpoints)
    assert float(result.objective) == pytest.approx(float(value(weights)), rel=value_tolerance)
    assert float(result["weights"] @ direction) == pytest.approx(expected, rel=1e-7)


def conv(norm: nn.Module, act: nn.Module | None = None) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), norm, act or nn.GELU(), nn.Flatten(), nn.Linear(64, 3))


class ForeignBatchNorm(nn.BatchNorm2d):
    """As timm's BatchNormAct2d does it: a subclass that calls the function with its own counter."""

    def forward(self, x: Tensor) -> Tensor:
        factor = self.momentum or 0.0
        if self.training and self.track_running_stats:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:
                factor = 1.0 / float(self.num_batches_tracked)
        x = F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training, factor, self.eps
        )
        return F.silu(x)


NORMS: dict[str, Callable[[], nn.Module]] = {
    "batch norm": lambda: nn.BatchNorm2d(4),
    "a subclass": lambda: ForeignBatchNorm(4),
    "a subclass with a cumulative average": lambda: ForeignBatchNorm(4, momentum=None),
    "a cumulative average": lambda: nn.BatchNorm2d(4, momentum=None),
    "SyncBatchNorm": lambda: nn.SyncBatchNorm(4),
    "instance norm that tracks": lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
}


@pytest.mark.parametrize("checkpoints", ["tape", "all"])
@pytest.mark.parametrize("name", NORMS)
def test_running_statistics(name: str, checkpoints: str) -> None:
    assert_exact(conv(NORMS[name]()), normal(N, *IMAGES), checkpoints=checkpoints)


class ByHand(nn.Module):
    """Running statistics by hand, in operations that autograd sees."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.register_buffer("level", torch.zeros(4, 1, 1))
        self.in_place = in_place

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            mean = x.mean((0, 2, 3), keepdim=True)[0]
            if self.in_place:
                self.level.mul_(0.9).add_(0.1 * mean)
            else:
                self.level = self.level * 0.9 + 0.1 * mean
        return x - self.level


def replayed(model: nn.Module, fields: dict[str, Tensor], losses: plain.Losses = cross_entropy) -> Tensor:
    """The metagradient of unit weights."""
    return mg.metagradient(
        Wrapped(model.double(), losses),
        mg.Batches(fields, torch.tensor(ROWS)),
        mg.DataWeights(torch.ones(N)),
        mg.mean_loss(fields),
    )["weights"]


def test_statistics_written_in_place_are_those_that_are_assigned() -> None:
    fields = data(normal(N, *IMAGES))
    a, b = (replayed(conv(ByHand(in_place)), fields) for in_place in (True, False))
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("act", [nn.Hardsigmoid(), nn.Hardswish(), nn.ReLU6(inplace=True), nn.SELU(inplace=True)])
def test_activations(act: nn.Module) -> None:
    # torch's derivative of the hard sigmoid multiplies by a 1 / 6 that is rounded to float32.
    tolerance = 1e-8 if isinstance(act, nn.Hardsigmoid) else 1e-10
    assert_exact(conv(nn.GroupNorm(2, 4), act), normal(N, *IMAGES), value_tolerance=tolerance)


def weight_normed(norm: Callable[..., nn.Module], dim: int | None = 0) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(norm(nn.Linear(5, 4), dim=dim), nn.Tanh(), nn.Linear(4, 3))


@pytest.mark.parametrize("dim", [0, 1, -1, None])
def test_weight_norm(dim: int | None) -> None:
    assert_exact(weight_normed(nn.utils.parametrizations.weight_norm, dim), normal(N, 5))


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_weight_norm_by_hooks() -> None:
    fields = data(normal(N, 5))
    a, b = (
        replayed(weight_normed(norm), fields) for norm in (nn.utils.weight_norm, nn.utils.parametrizations.weight_norm)
    )
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


class Distances(nn.Module):
    def __init__(self, p: float, pairs: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.centres, self.p, self.pairs = nn.Parameter(torch.randn(3, 5)), p, pairs

    def forward(self, x: Tensor) -> Tensor:
        scores = -torch.cdist(x, self.centres, p=self.p)
        return scores * F.pdist(self.centres, p=self.p) if self.pairs else scores


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("p", [1.0, 2.0, 3.0, float("inf")])
def test_distances(p: float, pairs: bool) -> None:
    assert_exact(Distances(p, pairs), normal(N, 5))


@pytest.mark.parametrize("p", [1.0, 2.0])
def test_a_point_on_its_centre_has_a_finite_metagradient(p: float) -> None:
    model = Distances(p)
    x = normal(N, 5)
    x[0] = model.centres[1].detach()
    learner = Wrapped(model.double(), cross_entropy)
    result = mg.metagradient(
        learner, mg.Batches(data(x), torch.tensor(ROWS)), mg.DataWeights(torch.ones(N)), mg.mean_loss(data(x))
    )
    assert torch.isfinite(result["weights"]).all()


class Bag(nn.Module):
    def __init__(self, mode: str, weighted: bool = False, **settings: object) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.bag, self.head = nn.EmbeddingBag(7, 4, mode=mode, **settings), nn.Linear(4, 3)  # type: ignore[arg-type]
        self.weighted = weighted

    def forward(self, x: Tensor) -> Tensor:
        weights = (1.0 + x).double() / 7 if self.weighted else None
        return self.head(self.bag(x, per_sample_weights=weights).tanh())


def words() -> Tensor:
    return torch.randint(0, 7, (N, 5), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("settings", [{"padding_idx": 2}, {"padding_idx": -1}, {}])
@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_embedding_bags(mode: str, settings: dict[str, int]) -> None:
    assert_exact(Bag(mode, **settings), words())


def test_weighted_embedding_bag() -> None:
    assert_exact(Bag("sum", weighted=True), words())


@pytest.mark.parametrize("include_last", [False, True])
def test_embedding_bags_by_offsets(include_last: bool) -> None:
    class Offsets(Bag):
        def forward(self, x: Tensor) -> Tensor:
            starts = torch.arange(0, x.numel() + (1 if include_last else 0), x.shape[1])
            return self.head(self.bag(x.flatten(), starts).tanh())

    assert_exact(Offsets("mean", include_last_offset=include_last), words())


def test_sparse_embedding() -> None:
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Embedding(7, 4), nn.Flatten(), nn.Tanh(), nn.Linear(20, 3))
    sparse = nn.Sequential(nn.Embedding(7, 4, sparse=True), *list(dense)[1:])
    sparse[0].weight = dense[0].weight
    fields = data(words())
    a, b = (
        mg.metagradient(
            Wrapped(model.double(), cross_entropy),
            mg.Batches(fields, torch.tensor(ROWS)),
            mg.DataWeights(torch.ones(N)),
            mg.mean_loss(fields),
        )["weights"]
        for model in (dense, sparse)
    )
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("p", [1, 2])
def test_multi_margin_loss(p: int) -> None:
    def losses(model: nn.Module, fields: dict[str, Tensor]) -> Tensor:
        class_weights = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
        return F.multi_margin_loss(
            model(fields["x"]), fields["y"], p=p, margin=2.0, weight=class_weights, reduction="none"
        )

    torch.manual_seed(0)
    assert_exact(nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)), normal(N, 5), losses)


def test_fused_attention() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=True)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = layer, nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.layer(x).mean(1))

    assert_exact(Net(), normal(N, 4, 6))


@pytest.mark.skipif(not hasattr(F, "linear_cross_entropy"), reason="torch without linear_cross_entropy")
def test_chunked_linear_cross_entropy() -> None:
    options = torch.nn.LinearCrossEntropyOptions() if hasattr(torch.nn, "LinearCrossEntropyOptions") else None

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.hidden, self.head = nn.Linear(5, 4), nn.Linear(4, 3, bias=False)

    def losses(model: nn.Module, fields: dict[str, Tensor]) -> Tensor:
        features = model.hidden(fields["x"]).tanh()
        return F.linear_cross_entropy(features, model.head.weight, fields["y"], reduction="none", options=options)

    def reference(model: nn.Module, fields: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(model.head(model.hidden(fields["x"]).tanh()), fields["y"], reduction="none")

    fields = data(normal(N, 5))
    results = [
        mg.metagradient(
            Wrapped(Net().double(), of),
            mg.Batches(fields, torch.tensor(ROWS)),
            mg.DataWeights(torch.ones(N)),
            mg.mean_loss(fields),
        )["weights"]
        for of in (losses, reference)
    ]
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-14)


def test_a_compiled_submodule_runs_as_written() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    compiled = nn.Sequential(torch.compile(model[:2]), model[2])
    fields = data(normal(N, 5))
    results = [
        mg.metagradient(
            Wrapped(net, cross_entropy),
            mg.Batches(fields, torch.tensor(ROWS)),
            mg.DataWeights(torch.ones(N)),
            mg.mean_loss(fields),
        )["weights"]
        for net in (model, compiled)
    ]
    assert torch.equal(*results)


def test_a_compiled_function_is_exact_or_refused_by_name() -> None:
    """torch 2.13 runs it as written under our function mode; later ones run its graph, which has no second derivative."""

    class Net(nn.Module):
        def __init__(self, act: Callable[[Tensor], Tensor]) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.linear, self.act = nn.Linear(5, 3), act

        def forward(self, x: Tensor) -> Tensor:
            return self.act(self.linear(x))

    fields = data(normal(N, 5))
    compiled = torch.compile(lambda x: x.tanh(), backend="aot_eager")
    a = replayed(Net(torch.tanh), fields)
    if torch.__version__ >= "2.14":
        with pytest.raises(UserError, match=r"compiled by torch\.compile"):
            replayed(Net(compiled), fields)
        return
    b = replayed(Net(compiled), fields)
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


# -- refused by name ------------------------------------------------------------------------------------------------


class CountsWords(nn.Module):
    """A histogram of integers that grows with every batch."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(3, dtype=torch.long))
        self.linear = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        return self.linear(x)


class Sorted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        return y + F.multilabel_margin_loss(y, torch.zeros_like(y, dtype=torch.long))


def refusal(model: nn.Module, x: Tensor) -> str:
    learner = Wrapped(model, cross_entropy)
    x = x.to(next(model.parameters()).dtype) if x.is_floating_point() else x
    fields = data(x)
    with pytest.raises(UserError) as caught:
        mg.metagradient(
            learner,
            mg.Batches(fields, torch.tensor(ROWS)),
            mg.DataWeights(torch.ones(N)),
            mg.mean_loss(fields),
        )
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_lazy_module_is_named() -> None:
    assert "'model.0.weight' belongs to a lazy module" in refusal(nn.Sequential(nn.LazyLinear(3)), normal(N, 5))


def test_trainables_of_two_dtypes_are_named() -> None:
    model = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3).double())
    message = refusal(model, normal(N, 5).float())
    assert "'model.0.weight' is float32" in message
    assert "'model.1.weight' is float64" in message


def test_low_precision_trainables_are_named() -> None:
    assert "'model.weight' is bfloat16" in refusal(nn.Linear(5, 3).bfloat16(), normal(N, 5))


def test_an_integer_buffer_that_changes_is_named() -> None:
    assert "change 'model.seen'" in refusal(CountsWords(), normal(N, 5))


def test_a_buffer_written_under_no_grad_is_named() -> None:
    model = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(5, 4)), nn.Tanh(), nn.Linear(4, 3))
    assert "_u' under torch.no_grad()" in refusal(model, normal(N, 5))


def test_max_norm_is_named() -> None:
    model = nn.Sequential(nn.Embedding(7, 4, max_norm=1.0), nn.Flatten(), nn.Linear(20, 3))
    assert "max_norm rescales its weight in place" in refusal(model, words())


def test_an_operation_without_second_derivative_is_named_with_its_module() -> None:
    message = refusal(nn.Sequential(nn.Linear(5, 5), Sorted()), normal(N, 5))
    assert message.startswith("multilabel_margin_loss, called in 'model.1' (Sorted), has no second derivative in torch")


class Cubed(torch.autograd.Function):
    """x^3, its backward from a saved tensor."""

    @staticmethod
    def forward(ctx, x):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, g):  # type: ignore[no-untyped-def]
        (x,) = ctx.saved_tensors
        return 3 * g * x**2


class Hidden(torch.autograd.Function):
    """x^3, its backward from an attribute that autograd does not know."""

    @staticmethod
    def forward(ctx, x):  # type: ignore[no-untyped-def]
        ctx.x = x.detach().clone()
        return x**3

    @staticmethod
    def backward(ctx, g):  # type: ignore[no-untyped-def]
        return 3 * g * ctx.x**2


class Through(nn.Module):
    def __init__(self, function: type[torch.autograd.Function]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.function = nn.Linear(5, 4), nn.Linear(4, 3), function

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.function.apply(self.a(x)))


def test_a_function_written_by_hand_is_exact() -> None:
    assert_exact(Through(Cubed), normal(N, 5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_function_whose_backward_hides_what_it_reads_is_named(dtype: torch.dtype) -> None:
    fields = data(normal(N, 5).to(dtype))
    learner = Wrapped(Through(Hidden).to(dtype), cross_entropy)
    with pytest.raises(UserError, match=r"go through Hidden, written by hand.*saved_tensors"):
        mg.metagradient(
            learner, mg.Batches(fields, torch.tensor(ROWS)), mg.DataWeights(torch.ones(N)), mg.mean_loss(fields)
        )
    right = Wrapped(Through(Cubed).to(dtype), cross_entropy)
    mg.metagradient(right, mg.Batches(fields, torch.tensor(ROWS)), mg.DataWeights(torch.ones(N)), mg.mean_loss(fields))

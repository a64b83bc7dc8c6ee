"""Per-example gradients from hooks are those of a loop over single examples, and pieces do what their matrices do."""

import logging
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import metagradient as mg
from metagradient import models
from metagradient.attribution import ExampleGradients
from metagradient.attribution.gradients import hooks
from metagradient.attribution.scoring.kernel import product
from metagradient.errors import UserError

B = 5


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(size: int = 6, channels: int = 2) -> mg.Batch:
    x = torch.randn(B, channels, size, size, generator=rng(), dtype=torch.float64)
    return mg.Batch(0, torch.arange(B), {"x": x, "y": torch.arange(B) % 3})


def sequences() -> mg.Batch:
    return mg.Batch(0, torch.arange(B), {"tokens": torch.randint(11, (B, 8), generator=rng())})


class Tokens(nn.Module):
    """An embedding whose weights are the output layer's too, a position-wise network and a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.net = nn.Sequential(nn.Linear(6, 7), nn.GELU(), nn.Linear(7, 6, bias=False), nn.LayerNorm(6))
        self.out = nn.Linear(6, 11)
        self.out.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(self.net(self.embedding(tokens)))


class Twice(nn.Module):
    """One layer used twice, and a module without a rule."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.odd, self.out = nn.Linear(8, 8), Bilinear(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)[:, :8]
        return self.out(self.odd(self.shared(torch.tanh(self.shared(x))), x))


class Bilinear(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.w, self.gain = nn.Parameter(torch.randn(size, size)), nn.Parameter(torch.tensor(0.7))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.gain * torch.tanh((x @ self.w) * y)


def conv_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.GELU(),
        nn.Conv2d(4, 5, (3, 2), stride=(2, 1), dilation=(1, 2), padding=(1, 0), bias=False),
        nn.Conv2d(5, 6, 3, padding="same", groups=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.BatchNorm1d(6),
        nn.Linear(6, 3),
    )


CASES: dict[str, tuple[Callable[[], nn.Module], type[mg.Learner], Callable[[], mg.Batch]]] = {
    "mlp": (lambda: models.mlp((2, 6, 6), 3, hidden=(7, 5)), mg.Classifier, images),
    "linear": (lambda: models.linear((2, 6, 6), 3), mg.Classifier, images),
    "conv": (conv_net, mg.Classifier, images),
    "resnet9": (lambda: models.resnet9((2, 8, 8), 3, width=2), mg.Classifier, lambda: images(8)),
    "tied": (Tokens, mg.LanguageModel, sequences),
    "gpt": (lambda: models.GPT(11, 9, layers=1, heads=2, width=6), mg.LanguageModel, sequences),
    "gpt tied": (lambda: models.GPT(11, 9, layers=1, heads=2, width=6, tied=True), mg.LanguageModel, sequences),
    "shared and custom": (Twice, mg.Classifier, images),
    "lora": (lambda: models.lora(models.mlp((2, 6, 6), 3), 2, 4.0, ["1"]), mg.Classifier, images),
}


def case(name: str) -> tuple[mg.Learner, mg.TrainState, mg.Batch]:
    build, learner_class, make_batch = CASES[name]
    torch.manual_seed(3)
    learner = learner_class(build().double(), mg.SGD(), 0.1)  # type: ignore[call-arg]
    state = mg.initial_state(learner)
    noise = [torch.randn(x.shape, generator=rng(9), dtype=x.dtype) for x in state.tensors()]
    state = mg.TrainState(state.params + 0.1 * noise[0], (), state.buffers + 0.3 * noise[-1].abs())
    return learner, state, make_batch()


def one_by_one(learner: mg.Learner, state: mg.TrainState, batch: mg.Batch) -> Tensor:
    """[B, P]: a forward and a backward pass for each example alone."""
    rows = []
    for b in range(len(batch)):
        single = mg.Batch(0, batch.index[b : b + 1], {k: v[b : b + 1] for k, v in batch.fields.items()})
        leaf = state.leaf()
        with torch.enable_grad(), learner.evaluating(leaf):
            rows.append(torch.autograd.grad(learner.losses(single).sum(), leaf.params)[0])
    return torch.stack(rows)


@pytest.mark.parametrize("name", CASES)
def test_hooks_equal_a_loop_over_single_examples(name: str) -> None:
    learner, state, batch = case(name)
    gradients = ExampleGradients(learner, state)
    (pieces,) = gradients(batch)
    found = torch.cat([piece.dense(0, p.rows) for p, piece in zip(gradients.parameters, pieces, strict=True)], dim=1)
    expected = one_by_one(learner, state, batch)
    assert float((found - expected).abs().max()) < 1e-10 * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("name", CASES)
def test_pieces_do_what_their_matrices_do(name: str) -> None:
    learner, state, batch = case(name)
    gradients = ExampleGradients(learner, state)
    (pieces,) = gradients(batch)
    other = mg.Batch(0, batch.index[:3], {k: v.flip(0)[:3] for k, v in batch.fields.items()})
    (others,) = gradients(other)
    expected, expected_other = one_by_one(learner, state, batch), one_by_one(learner, state, other)
    close = {"rtol": 1e-10, "atol": 1e-12}
    torch.testing.assert_close(product(pieces, others), expected @ expected_other.T, **close)
    for p, piece in zip(gradients.parameters, pieces, strict=True):
        matrix = expected[:, p.start : p.start + p.size].view(B, p.rows, p.columns)
        r, c = torch.randint(p.rows, (9,), generator=rng()), torch.randint(p.columns, (9,), generator=rng(1))
        left = torch.randn(p.rows, 3, generator=rng(), dtype=torch.float64)
        right = torch.randn(p.columns, 2, generator=rng(1), dtype=torch.float64)
        torch.testing.assert_close(piece.gather(r, c), matrix[:, r, c], **close)
        torch.testing.assert_close(piece.block(r, c[:4]), matrix[:, r][:, :, c[:4]].flatten(1), **close)
        torch.testing.assert_close(piece.sketch(left, right), (left.T @ matrix @ right).flatten(1), **close)
        torch.testing.assert_close(piece.squares(), matrix.square().sum((1, 2)), **close)


def test_a_module_without_a_rule_is_said_out_loud(caplog: pytest.LogCaptureFixture) -> None:
    learner, state, _ = case("shared and custom")
    hooks._tell_slow.cache_clear()
    with caplog.at_level(logging.INFO):
        ExampleGradients(learner, state)
        ExampleGradients(learner, state)
    assert caplog.text.count("Bilinear") == 1


class Outside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.out = nn.Linear(72, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(x.flatten(1) @ self.used.weight.T))


class Both(Outside):
    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.used(x.flatten(1)) + x.flatten(1) @ self.used.weight.T))


@pytest.mark.parametrize("model", [Outside, Both])
def test_a_parameter_used_outside_its_module_is_refused(model: type[nn.Module]) -> None:
    learner = mg.Classifier(model().double(), mg.SGD(), 0.1)
    with pytest.raises(UserError, match=r"model\.used\.weight"):
        list(ExampleGradients(learner, mg.initial_state(learner))(images()))


def test_losses_in_which_examples_see_each_other_are_refused() -> None:
    model = models.TwoTower(nn.Linear(4, 3), nn.Linear(4, 3))
    model.log_scale.requires_grad_(False)
    learner = mg.ContrastiveLearner(model.double(), mg.SGD(), 0.1)
    x = torch.randn(B, 4, generator=rng(), dtype=torch.float64)
    with pytest.raises(UserError, match="contrastive"):
        list(
            ExampleGradients(learner, mg.initial_state(learner))(mg.Batch(0, torch.arange(B), {"x": x, "y": x.flip(0)}))
        )


class Positions(nn.Module):
    """Position embeddings as transformers have them: an embedding of [1, L] ids that every example shares, and a parameter
    [1, L, D] of a module that is called with more than tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(11, 6, padding_idx=0), nn.Embedding(9, 6)
        self.shift = nn.Parameter(torch.randn(1, 8, 6))
        self.out = Scaled()

    def forward(self, tokens: Tensor) -> Tensor:
        ids = torch.arange(tokens.shape[1]).unsqueeze(0)
        return self.out(torch.tanh(self.words(tokens) + self.places(ids) + self.shift), ids, factor=2.0, flag=None)


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(11, 6))

    def forward(self, x: Tensor, ids: Tensor, factor: float, flag: None) -> Tensor:
        return factor * (x * (1 + ids.unsqueeze(-1))) @ self.weight.T


@pytest.mark.parametrize("rows", [2, 5, 8])
def test_what_all_examples_share_has_gradients_of_each(rows: int) -> None:
    """Also where a batch has as many examples as a text has places (8)."""
    torch.manual_seed(0)
    learner = mg.LanguageModel(Positions().double())
    tokens = torch.randint(11, (rows, 9), generator=rng())
    batch = mg.Batch(0, torch.arange(rows), {"tokens": tokens})
    state = mg.initial_state(learner)
    gradients = ExampleGradients(learner, state)
    (pieces,) = gradients(batch)
    found = torch.cat([p.dense(0, q.rows).flatten(1) for p, q in zip(pieces, gradients.parameters, strict=True)], dim=1)
    for i in range(rows):
        leaf = state.leaf()
        with learner.evaluating(leaf):
            one = mg.Batch(0, torch.tensor([i]), {"tokens": tokens[i : i + 1]})
            (expected,) = torch.autograd.grad(learner.losses(one).sum(), leaf.params)
        torch.testing.assert_close(found[i].reshape(-1), expected, rtol=1e-10, atol=1e-12)

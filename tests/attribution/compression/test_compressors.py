"""Compressed inner products are unbiased, whatever the layers' shapes, and masks are coordinates of the gradient."""

from collections.abc import Iterable

import pytest
import torch
from torch import Tensor

from metagradient.attribution import (
    PCA,
    SJLT,
    Compressor,
    Dropout,
    DropoutSJLT,
    FactorDropout,
    FactorGaussian,
    FactorPCA,
    Gaussian,
    Uncompressed,
)
from metagradient.attribution.compression.compressors import factor_sizes
from metagradient.attribution.gradients.hooks import Parameter
from metagradient.attribution.gradients.pieces import Dense, Outer, Piece
from metagradient.attribution.gradients.sides import Plain
from metagradient.errors import UserError

B = 4
PARAMETERS = [Parameter("wide", 0, 3, 40), Parameter("bias", 120, 3, 1), Parameter("tall", 123, 30, 4)]
P = 243


def pieces(seed: int = 0) -> list[Piece]:
    """An outer product over one position, a vector, and an outer product over five positions."""
    g = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64) + 0.3

    return [
        Outer(Plain(draw(B, 3), 1), Plain(draw(B, 40), 1), B),
        Dense(draw(B, 3, 1)),
        Outer(Plain(draw(B * 5, 30), 5), Plain(draw(B * 5, 4), 5), B),
    ]


def dense(some: list[Piece]) -> Tensor:
    return torch.cat([piece.dense(0, p.rows) for p, piece in zip(PARAMETERS, some, strict=True)], dim=1)


def bound(compressor: Compressor, batches: Iterable[list[Piece]] = ()) -> Tensor:
    return compressor.bind(PARAMETERS, torch.zeros(1, dtype=torch.float64), lambda: batches)(pieces())


UNBIASED = [Dropout, FactorDropout, Gaussian, FactorGaussian, SJLT, DropoutSJLT]


@pytest.mark.parametrize("kind", UNBIASED)
@pytest.mark.parametrize("k", [20, 60])
def test_inner_products_are_unbiased_over_seeds(kind: type, k: int) -> None:
    """The mean over seeds lies within four standard errors of the truth, for all pairs of examples."""
    seeds = 1500
    truth = dense(pieces()) @ dense(pieces()).T
    samples = []
    for seed in range(seeds):
        features = bound(kind(k, seed=seed))
        samples.append(features @ features.T)
    stack = torch.stack(samples)
    error = (stack.mean(0) - truth) / (stack.std(0) / seeds**0.5)
    assert float(error.abs().max()) < 4
    assert float((stack.mean(0) - truth).norm() / truth.norm()) < 0.1  # and the standard error says something


@pytest.mark.parametrize("kind", UNBIASED)
def test_each_layer_alone_is_unbiased(kind: type) -> None:
    """The scale does not depend on a layer's shape: the squared norm that each parameter contributes is its own."""
    seeds, some = 1000, pieces()
    for only in range(len(PARAMETERS)):
        alone = [piece if i == only else Dense(torch.zeros(B, p.rows, p.columns).double())
                 for i, (p, piece) in enumerate(zip(PARAMETERS, some, strict=True))]  # fmt: skip
        truth = dense(alone).square().sum(1)
        like = torch.zeros(1, dtype=torch.float64)
        samples = torch.stack(
            [kind(60, seed=s).bind(PARAMETERS, like, lambda: ())(alone).square().sum(1) for s in range(seeds)]
        )
        error = (samples.mean(0) - truth) / (samples.std(0) / seeds**0.5).clamp(min=1e-12 * float(truth.max()))
        assert float(error.abs().max()) < 4.5, PARAMETERS[only].name


def test_dropout_keeps_k_distinct_coordinates() -> None:
    features, full = bound(Dropout(50, seed=3)), dense(pieces())
    scaled = full * (P / 50) ** 0.5
    found = [(scaled - features[:, j : j + 1]).abs().amax(0).argmin() for j in range(50)]
    assert len(set(map(int, found))) == 50
    torch.testing.assert_close(features, scaled[:, torch.stack(found)])


def test_keeping_everything_loses_nothing() -> None:
    truth = dense(pieces()) @ dense(pieces()).T
    for compressor in (Uncompressed(), Dropout(P), FactorDropout(P)):
        features = bound(compressor)
        torch.testing.assert_close(features @ features.T, truth)


def test_factor_dropout_keeps_about_k_in_common_rates() -> None:
    assert abs(bound(FactorDropout(60)).shape[1] - 60) <= 12
    assert bound(FactorDropout(60)).shape == bound(FactorGaussian(60)).shape


def test_a_gaussian_matrix_that_is_not_kept_is_the_same_one() -> None:
    torch.testing.assert_close(bound(Gaussian(20, seed=1)), bound(Gaussian(20, seed=1, cache=0)))


def test_pca_is_the_projection_on_the_principal_directions() -> None:
    batches = [pieces(seed) for seed in range(5)]
    samples = torch.cat([dense(b) for b in batches])
    features = bound(PCA(6, examples=100), batches)
    _, _, directions = torch.linalg.svd(samples, full_matrices=False)
    expected = dense(pieces()) @ directions[:6].T
    torch.testing.assert_close(features.abs(), expected.abs())
    with pytest.raises(UserError, match="k=30"):
        bound(PCA(30), batches)


def test_factor_pca_is_the_two_sided_projection_on_principal_directions() -> None:
    batches = [pieces(seed) for seed in range(7)]
    compressor = FactorPCA(60, examples=22)  # six batches of four are enough
    features = bound(compressor, batches)
    begin = 0
    for i, (p, piece) in enumerate(zip(PARAMETERS, pieces(), strict=True)):
        sides: list[Tensor] = []
        for side in ("left", "right"):
            if isinstance(batches[0][i], Outer):
                samples = torch.cat([getattr(batch[i], side).all() for batch in batches[:6]])
            else:
                x = torch.cat([batch[i].dense(0, p.rows) for batch in batches[:6]])  # a vector: its one column is kept
                samples = x if side == "left" else torch.ones(1, 1, dtype=x.dtype)
            sides.append(torch.linalg.svd(samples, full_matrices=False)[2].T)
        matrix = piece.dense(0, p.rows).view(B, p.rows, p.columns)
        rows, columns = factor_sizes(60, PARAMETERS)[i]
        expected = sides[0][:, :rows].T @ matrix @ sides[1][:, :columns]
        found = features[:, begin : begin + rows * columns]
        torch.testing.assert_close(found.abs(), expected.flatten(1).abs(), rtol=1e-6, atol=1e-9)
        begin += rows * columns
    assert begin == features.shape[1]
    with pytest.raises(UserError, match="fitted on training examples"):
        bound(FactorPCA(60))


def test_factor_pca_of_everything_loses_nothing() -> None:
    truth = dense(pieces()) @ dense(pieces()).T
    features = bound(FactorPCA(P), [pieces()])
    torch.testing.assert_close(features @ features.T, truth)


@pytest.mark.parametrize("kind", UNBIASED)
def test_a_k_that_makes_no_sense_is_refused(kind: type) -> None:
    for k in (0, P + 1):
        with pytest.raises(UserError, match=f"not {k}"):
            bound(kind(k))

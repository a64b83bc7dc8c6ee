"""Contrastive training: losses by hand, and every metaparameter against an independent unroll of the whole run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import oracle
import pytest
import torch
from oracle import Tensors
from torch import Tensor, nn
from toys import assert_slope, batches, relative

import metagradient as mg
from metagradient.errors import UserError
from metagradient.evaluation.batched import train_batched
from metagradient.learners.contrastive import LOSSES
from metagradient.models import BagOfWords, TwoTower
from metagradient.training.batches import Batch
from metagradient.training.saved_tensors import watching_saved_tensors

EXACT = 1e-9
N, STEP = 11, 2
ROWS = [[3, 1, 4, 0, 10], [5, 9, 2, 6, 9], [7, 8, 0, 8, 7], [1, 2, 5, 10], [], [4, 3, 6, 0, 2]]
"""Six batches: rows stand in two of them twice, and one is empty."""


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pairs(n: int = N, seed: int = 0) -> Tensors:
    tokens = torch.randint(0, 6, (n, 3), generator=torch.Generator().manual_seed(seed))
    return {"x": random(n, 1, 4, 4, seed=seed), "y": tokens}


DATA, HELD_OUT = pairs(), pairs(6, seed=1)


def towers(norm: nn.Module | None = None, dropout: float = 0.0) -> TwoTower:
    """Convolution, batch norm (or another), softplus, mean, linear; and a bag of words."""
    torch.manual_seed(1)
    normed = nn.BatchNorm2d(3, momentum=0.3) if norm is None else norm
    pool = (nn.Softplus(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    image = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), normed, *pool, nn.Dropout(dropout), nn.Linear(3, 4, bias=False)
    )
    return TwoTower(image, BagOfWords(6, 4, 3, 5), temperature=0.3, bias=-1.0).double()


# -- the unroll, written from the formulas -------------------------------------------------------------------------


def pair_losses(kind: str, logits: Tensor, same: Sequence[int], there: Sequence[bool]) -> Tensor:
    """Of each pair [B], cell by cell."""
    found = []
    for i in range(len(logits)):
        others = [j for j in range(len(logits)) if there[j] and same[j] != same[i]]
        if not there[i]:
            found.append(logits.new_zeros(()))
        elif kind == "clip":
            row = torch.stack([logits[i, j] for j in [i, *others]]).exp().sum()
            column = torch.stack([logits[j, i] for j in [i, *others]]).exp().sum()
            found.append(-(logits[i, i].exp() / row).log() / 2 - (logits[i, i].exp() / column).log() / 2)
        else:
            cells = [torch.sigmoid(-logits[i, j]).log() + torch.sigmoid(-logits[j, i]).log() for j in others]
            found.append(-torch.sigmoid(logits[i, i]).log() - sum(cells, logits.new_zeros(())) / 2)
    return torch.stack(found)


def forward(p: Tensors, stats: Tensors, fields: Tensors, training: bool, normed: bool) -> tuple[Tensor, Tensors]:
    """The table of similarities of the two towers, and the statistics."""
    x = nn.functional.conv2d(fields["x"], p["model.left.0.weight"], p["model.left.0.bias"], padding=1)
    if normed:
        x, stats = oracle.normalise(x, p, stats, "model.left.1", training, 0.3)
    a = torch.log1p(x.exp()).mean((2, 3)) @ p["model.left.6.weight"].T
    said = [[p["model.right.tokens.weight"][int(token)] for token in row if token != 0] for row in fields["y"]]
    empty = torch.zeros(3, dtype=torch.float64)
    bag = torch.stack([sum(words, empty) / max(len(words), 1) for words in said])
    h = bag @ p["model.right.head.0.weight"].T + p["model.right.head.0.bias"]
    h = h * (1 + torch.erf(h / 2**0.5)) / 2
    b = h @ p["model.right.head.2.weight"].T + p["model.right.head.2.bias"]
    a, b = a / (a**2).sum(1, keepdim=True) ** 0.5, b / (b**2).sum(1, keepdim=True) ** 0.5
    return p["model.log_scale"].exp() * a @ b.T + p["model.bias"], stats


@dataclass(frozen=True)
class Unroll:
    """SGD with momentum 0.8 and rate 0.2 in one graph."""

    kind: str
    start: Tensors
    normed: bool
    same: Sequence[int] = tuple(range(N))
    there: Sequence[bool] = (True,) * N

    def losses(self, p: Tensors, stats: Tensors, rows: Sequence[int], shift: Tensor | None) -> tuple[Tensor, Tensors]:
        fields = {name: x[list(rows)] for name, x in DATA.items()}
        if shift is not None:
            moved = [x + shift[MOVED.index(i)] if i in MOVED else x for i, x in zip(rows, fields["x"], strict=True)]
            fields["x"] = torch.stack(moved)
        logits, stats = forward(p, stats, fields, True, self.normed)
        same, there = [self.same[i] for i in rows], [self.there[i] for i in rows]
        return pair_losses(self.kind, logits, same, there), stats

    def objective(
        self,
        weights: Tensor | None = None,
        shift: Tensor | None = None,
        candidates: Tensor | None = None,
        chunks: Sequence[Sequence[int]] = (),
    ) -> Tensor:
        params = {name: x.clone().requires_grad_() for name, x in self.start.items()}
        stats = {
            "model.left.1.running_mean": torch.zeros(3).double(),
            "model.left.1.running_var": torch.ones(3).double(),
        }
        velocity = {name: torch.zeros_like(x) for name, x in params.items()}
        for t, rows in enumerate(ROWS):
            if not rows:
                continue
            losses, after = self.losses(params, stats, rows, shift)
            total = ((1 if weights is None else weights[rows]) * losses).sum() / len(rows)
            if candidates is not None and t == STEP:
                for chunk in chunks:
                    total = total + (candidates[list(chunk)] * self.losses(params, stats, chunk, None)[0]).sum()
            gradients = torch.autograd.grad(total, list(params.values()), create_graph=True)
            for name, g in zip(list(params), gradients, strict=True):
                velocity[name] = 0.8 * velocity[name] + g
                params[name] = params[name] - 0.2 * velocity[name]
            stats = after
        logits, _ = forward(params, stats, HELD_OUT, False, self.normed)
        return pair_losses(self.kind, logits, range(6), [True] * 6).mean()


MOVED = [8, 2, 5]
WEIGHTS, SHIFT = 1 + 0.3 * random(N).tanh(), 0.3 * random(3, 1, 4, 4, seed=4)


def learner(kind: str, model: nn.Module | None = None, micro_batch: int | None = None) -> mg.ContrastiveLearner:
    return mg.ContrastiveLearner(
        towers() if model is None else model, mg.SGD(0.8), 0.2, loss=kind, micro_batch=micro_batch
    )


def candidates(value: Tensor, chunk: int = 4) -> mg.CandidateWeights:
    return mg.CandidateWeights(value, step=STEP, candidates=DATA, chunk=chunk, seed=5)


@pytest.mark.parametrize("plan", ["tape", "every(2)"])
@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("size", [None, 1, 3])
def test_metagradients_are_those_of_the_unroll(kind: str, size: int | None, plan: str) -> None:
    """Batch norm where the batch is run at once; in micro-batches without."""
    norm = None if size is None else nn.Identity()
    ours = learner(kind, towers(norm), size)
    theirs = Unroll(kind, oracle.trained(ours), norm is None)
    small = 0.1 * random(N, seed=6) if plan == "tape" else torch.zeros(N, dtype=torch.float64)
    z = [mg.DataWeights(WEIGHTS), mg.InputPerturbation(SHIFT, index=torch.tensor(MOVED)), candidates(small)]
    chunks = [chunk.index.tolist() for chunk in z[2].chunks(small)]  # type: ignore[attr-defined]
    leaves = [m.value.clone().requires_grad_() for m in z]
    truth = theirs.objective(*leaves, chunks)
    result = mg.metagradient(ours, batches(DATA, ROWS), z, mg.mean_loss(HELD_OUT), checkpoints=plan)
    assert float(result.objective) == pytest.approx(float(truth.detach()), rel=1e-11)
    for m, gradient in zip(z, torch.autograd.grad(truth, leaves), strict=True):
        assert relative(result[m.name], gradient) < EXACT, m.name


@pytest.mark.parametrize("kind", LOSSES)
def test_candidate_weights_are_slopes_of_whole_runs(kind: str) -> None:
    z = [candidates(0.05 * random(N, seed=6))]
    ours, phi = learner(kind), mg.mean_loss(HELD_OUT)
    gradient = mg.metagradient(ours, batches(DATA, ROWS), z, phi)["candidates"]
    assert_slope(gradient, ours, batches(DATA, ROWS), z, "candidates", phi)


def test_chunks_are_drawn_by_the_seed_and_of_equal_size() -> None:
    def drawn(seed: int) -> list[list[int]]:
        m = mg.CandidateWeights(torch.zeros(N), step=STEP, candidates=DATA, chunk=4, seed=seed)
        return [chunk.index.tolist() for chunk in m.chunks(torch.zeros(1, dtype=torch.float64))]

    assert sorted(row for chunk in drawn(5) for row in chunk) == list(range(N))
    assert [len(chunk) for chunk in drawn(5)] == [4, 4, 3]
    assert drawn(5) == drawn(5) != drawn(6)


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("size", [None, 2])
def test_rows_that_are_the_same_or_taken_out_are_no_negatives(kind: str, size: int | None) -> None:
    """`pair` gives equal texts one number, `mask` takes rows 3 and 9 out of rows and columns."""
    same = [0, 1, 0, 3, 4, 1, 6, 7, 6, 9, 10]
    there = [i not in (3, 9) for i in range(N)]
    data = DATA | {"pair": torch.tensor(same), "mask": torch.tensor(there)}
    norm = None if size is None else nn.Identity()
    ours = learner(kind, towers(norm), size)
    leaf = WEIGHTS.clone().requires_grad_()
    truth = Unroll(kind, oracle.trained(ours), norm is None, same, there).objective(leaf)
    result = mg.metagradient(ours, batches(data, ROWS), mg.DataWeights(WEIGHTS), mg.mean_loss(HELD_OUT))
    (gradient,) = torch.autograd.grad(truth, leaf)
    assert relative(result["weights"], gradient) < EXACT
    assert float(result["weights"][3]) == float(result["weights"][9]) == 0


@pytest.mark.parametrize("kind", LOSSES)
def test_a_row_that_is_taken_out_was_never_there_and_one_of_weight_zero_is_still_a_negative(kind: str) -> None:
    """A mask (or an index of -1) gives the losses of the smaller batch; a weight does not touch the others' losses."""
    model = learner(kind, towers(nn.Identity()))
    keep = torch.tensor([True, True, False, True, True])
    index = torch.arange(5)
    fields = {name: x[:5] for name, x in DATA.items()}
    smaller = model.losses(Batch(0, index[keep], {name: x[keep] for name, x in fields.items()}))
    masked = model.losses(Batch(0, index, fields | {"mask": keep}))
    negative = model.losses(Batch(0, torch.where(keep, index, -1), fields))
    negative_of_all = model.losses(Batch(0, index, fields))
    torch.testing.assert_close(masked[keep], smaller, rtol=1e-13, atol=0)
    assert torch.equal(masked, negative)
    assert float(masked[2].detach()) == 0
    assert float((negative_of_all[keep] - smaller).detach().abs().min()) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("kind", LOSSES)
def test_micro_batches_are_the_whole_batch(kind: str, dropout: float) -> None:
    z = [mg.DataWeights(WEIGHTS), candidates(torch.zeros(N, dtype=torch.float64))]

    def run(size: int | None, normalize: str) -> mg.Metagradients:
        model = mg.ContrastiveLearner(
            towers(nn.GroupNorm(1, 3), dropout), mg.AdamW(), 0.1, loss=kind, normalize=normalize, micro_batch=size
        )
        return mg.metagradient(model, batches(DATA, ROWS), z, mg.example_losses(HELD_OUT), checkpoints="every(3)")

    for normalize in ("batch", "kept"):
        whole = run(None, normalize)
        for size in (1, 2, 4):
            parts = run(size, normalize)
            assert relative(parts.state.params, whole.state.params) < 1e-12
            for name, gradient in whole.gradients.items():
                assert relative(parts.gradients[name], gradient) < 1e-10, name


def test_a_frozen_tower_and_stacked_runs_go_through_micro_batches() -> None:
    def frozen(size: int | None) -> mg.ContrastiveLearner:
        model = towers(nn.Identity())
        model.left.requires_grad_(False)
        return learner("clip", model, size)

    z = mg.DataWeights(WEIGHTS)
    one, other = (
        mg.metagradient(frozen(size), batches(DATA, ROWS), z, mg.mean_loss(HELD_OUT))["weights"] for size in (None, 2)
    )
    assert relative(one, other) < 1e-10
    text = TwoTower(nn.Linear(3, 4), nn.Linear(3, 4)).double()
    data = {"x": random(N, 3), "y": random(N, 3, seed=1)}
    two = torch.stack([WEIGHTS, torch.ones(N, dtype=torch.float64)])
    for size in (None, 2):
        ours = learner("siglip", text, size)
        start = mg.initial_state(ours)
        state = mg.TrainState.stack([start, start])
        together = mg.train(ours, batches(data, ROWS), (mg.DataWeights(two),), state=state)
        for i in range(2):
            alone = mg.train(learner("siglip", text), batches(data, ROWS), (mg.DataWeights(two[i]),))
            assert relative(together[i].params, alone.params) < 1e-12


def test_stacked_runs_of_their_own_batches_know_their_own_rows() -> None:
    """[R, B] indices: a row that stands twice in one run's batch stands once in the other's."""
    text = TwoTower(nn.Linear(3, 4), nn.Linear(3, 4)).double()
    data = {"x": random(N, 3), "y": random(N, 3, seed=1)}
    ours = learner("clip", text)
    rows = ([[0, 1, 1, 2], [4, 5, 6, 4]], [[3, 1, 4, 2], [4, 5, 6, 7]])
    apart = [batches(data, each) for each in rows]
    together = train_batched(ours, apart)
    for i in range(2):
        assert relative(together[i].params, mg.train(ours, apart[i]).params) < 1e-12


def test_a_taped_step_keeps_no_activations_of_its_micro_batches() -> None:
    def kept(size: int | None) -> int:
        wide = nn.Sequential(nn.Linear(3, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 2))
        ours, found = mg.ContrastiveLearner(TwoTower(wide, nn.Linear(3, 2)).double(), micro_batch=size), {}
        data = batches({"x": random(256, 3), "y": random(256, 3, seed=1)}, [list(range(256))])
        ours.probe(data)
        state = mg.initial_state(ours).leaf()

        def keep(x: Tensor) -> None:
            if x.shape[-1:] == (64,) and len(x) > 64:  # a layer's activations, of more rows than it has units
                found[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()

        with watching_saved_tensors(keep):
            mg.step(ours, state, data(0), 0, tape=True)
        return sum(found.values())

    assert kept(32) == 0 < kept(None)


@pytest.mark.parametrize("plan", ["tape", "every(2)"])
def test_an_objective_in_chunks_keeps_its_contrast(plan: str) -> None:
    def run(chunk: int) -> mg.Metagradients:
        phi = mg.mean_loss(HELD_OUT, chunk=chunk)
        return mg.metagradient(learner("clip"), batches(DATA, ROWS), mg.DataWeights(WEIGHTS), phi, checkpoints=plan)

    whole, parts = run(100), run(4)
    assert float(parts.objective) == pytest.approx(float(whole.objective), rel=1e-12)
    assert relative(parts["weights"], whole["weights"]) < 1e-10


class Added(mg.ContrastiveLearner):
    """Losses of its own beside `embed` and `losses_of` that it inherits."""

    def losses(self, batch: Batch) -> Tensor:
        return super().losses(batch) + batch.x.square().mean()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: learner("clip", towers(), 2), r"batch norm model\.left\.1"),
        (
            lambda: learner("clip", towers(nn.BatchNorm2d(3, track_running_stats=False)), 2),
            r"batch norm model\.left\.1",
        ),
        (lambda: Added(towers(nn.Identity()), micro_batch=2), "depends on the others"),
        (lambda: learner("triplet"), r"loss must be one of clip, siglip, or a function, not 'triplet'"),
    ],
)
def test_what_is_not_the_whole_batch_is_refused_by_name(make: Callable[[], mg.Learner], said: str) -> None:
    with pytest.raises(UserError, match=said):
        mg.train(make(), batches(DATA, ROWS))


def test_a_loss_may_be_a_function_of_the_table() -> None:
    def hinge(logits: Tensor, negatives: Tensor) -> Tensor:
        return ((1 + logits - logits.diagonal()[:, None]).clamp(min=0) * negatives).sum(1)

    model = learner(hinge, towers(nn.Identity()))  # type: ignore[arg-type]
    batch: Any = Batch(0, torch.arange(N), DATA)
    a, b, scale, bias = model.model(batch.x, batch.y)
    logits = scale * a @ b.T + bias
    by_hand = [sum(float((1 + logits[i, j] - logits[i, i]).clamp(min=0)) for j in range(N) if j != i) for i in range(N)]
    torch.testing.assert_close(model.losses(batch).detach(), torch.tensor(by_hand, dtype=torch.float64))

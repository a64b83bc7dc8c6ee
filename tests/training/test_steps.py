"""The one step: what it reads, what it skips, what it refuses; and the seam of the learner."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import metagradient as mg
from metagradient.errors import UserError
from metagradient.evaluation import train_batched
from metagradient.training.run import NonFiniteLoss

N = 9
DATA = {
    "x": torch.randn(N, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64),
    "y": torch.arange(N) % 3,
}


def linear() -> nn.Module:
    torch.manual_seed(1)
    return nn.Linear(4, 3).double()


def learner(normalize: Any = "batch", optimizer: mg.Optimizer | None = None) -> mg.Classifier:
    return mg.Classifier(linear(), optimizer or mg.SGD(0.9, weight_decay=0.1), 0.5, normalize=normalize)


def batches(*rows: list[int]) -> mg.Batches:
    return mg.Batches(DATA, mg.given_plan(rows))


def trained(model: mg.Learner, data: mg.Batches, *z: mg.Metaparameter) -> Tensor:
    return mg.train(model, data, z).params


def weights(**at: float) -> mg.DataWeights:
    w = torch.ones(N, dtype=torch.float64)
    for name, value in at.items():
        w[int(name.removeprefix("_"))] = value
    return mg.DataWeights(w)


@pytest.mark.parametrize("optimizer", [mg.SGD(0.9, weight_decay=0.1), mg.AdamW()], ids=str)
def test_an_empty_batch_is_a_skipped_step_but_the_clock_goes_on(optimizer: mg.Optimizer) -> None:
    data = batches([0, 1], [], [2, 3])
    model = learner(optimizer=optimizer)
    one = mg.train(model, data, stop=1)
    two = mg.train(model, data, stop=2)
    assert all(torch.equal(a, b) for a, b in zip(one.tensors(), two.tensors(), strict=True))
    three, _, _ = mg.step(model, one, data(2), 2)
    assert torch.equal(mg.train(model, data).params, three.params)
    early, _, _ = mg.step(model, one, data(2), 1)
    assert torch.equal(early.params, three.params) == isinstance(optimizer, mg.SGD)  # Adam's bias correction: a clock


def test_weight_zero_divided_by_the_batch_size_is_the_sum_without_the_example() -> None:
    """Its loss is gone and the divisor stays; divided by the weight sum it was never in the batch."""
    with_zero = trained(learner(), batches([0, 1, 2]), weights(_1=0.0))
    without = trained(learner(), batches([0, 2]))
    scaled = trained(learner(), batches([0, 2]), weights(_0=2 / 3, _2=2 / 3))
    torch.testing.assert_close(with_zero, scaled, rtol=1e-12, atol=0)
    assert not torch.allclose(with_zero, without)
    kept = trained(learner("kept"), batches([0, 1, 2]), weights(_1=0.0))
    torch.testing.assert_close(kept, without, rtol=1e-12, atol=0)


def test_a_batch_of_weight_zero_is_skipped_where_the_divisor_would_be_zero() -> None:
    data = batches([0, 1], [2, 3], [0, 4])
    gone = trained(learner("kept"), data, weights(_2=0.0, _3=0.0))
    torch.testing.assert_close(gone, trained(learner("kept"), batches([0, 1], [], [0, 4])), rtol=1e-12, atol=0)


def test_weights_of_one_change_nothing() -> None:
    data = batches([0, 1], [2, 3, 4])
    for normalize in ("batch", "kept"):
        torch.testing.assert_close(
            trained(learner(normalize), data, weights()), trained(learner(), data), rtol=1e-14, atol=0
        )


def test_weights_act_only_in_their_steps() -> None:
    data = batches([0, 1], [0, 1], [0, 1])
    only = mg.DataWeights(torch.full((N,), 3.0), start=1, stop=2)
    schedule = mg.LearningRates(torch.tensor([0.5, 1.5, 0.5]))
    plain = mg.Classifier(linear(), mg.SGD(), 0.5)
    torch.testing.assert_close(trained(plain, data, only), trained(plain, data, schedule), rtol=1e-12, atol=0)


def test_a_candidate_with_weight_is_one_more_copy_in_the_sum() -> None:
    """z_i l_i on top of the mean of B losses: with z_i = 1 / B the same as example i twice, divided by B."""
    extra = torch.zeros(N, dtype=torch.float64)
    extra[5] = 0.5
    model = mg.Classifier(linear(), mg.SGD(0.9), 0.5)
    with_candidate = trained(
        model, batches([0, 1], [2, 3]), mg.CandidateWeights(extra, step=1, candidates=DATA, chunk=2)
    )
    as_copy = trained(model, batches([0, 1], [2, 3, 5]), mg.DataWeights(torch.full((N,), 1.5), start=1))
    torch.testing.assert_close(with_candidate, as_copy, rtol=1e-12, atol=0)


def test_candidates_are_the_same_in_chunks_of_any_size() -> None:
    z = torch.linspace(-0.1, 0.1, N, dtype=torch.float64)

    def gradient(chunk: int) -> Tensor:
        m = mg.CandidateWeights(z, step=1, candidates=DATA, chunk=chunk)
        return mg.metagradient(learner(), batches([0, 1], [2, 3], [4]), m, mg.mean_loss(DATA))["candidates"]

    for chunk in (1, 4, 9):
        torch.testing.assert_close(gradient(chunk), gradient(1000), rtol=1e-12, atol=0)


def test_perturbed_inputs_are_the_inputs_plus_the_perturbation_wherever_they_stand() -> None:
    shift = torch.randn(2, 4, dtype=torch.float64)
    moved = dict(DATA, x=DATA["x"].index_add(0, torch.tensor([7, 2]), shift))
    rows = [[2, 0, 7], [1, 3], [2, 2, 7]]
    ours = trained(learner(), batches(*rows), mg.InputPerturbation(shift, index=torch.tensor([7, 2])))
    torch.testing.assert_close(ours, trained(learner(), mg.Batches(moved, mg.given_plan(rows))), rtol=1e-12, atol=0)
    none = mg.InputPerturbation(torch.empty(0, 4), index=torch.empty(0, dtype=torch.int64))
    assert torch.equal(trained(learner(), batches(*rows), none), trained(learner(), batches(*rows)))


def test_initial_parameters_and_weight_decay_take_the_place_of_the_learners() -> None:
    start = torch.randn(15, dtype=torch.float64)
    model = learner()
    elsewhere = mg.train(model, batches([0, 1], [2]), [mg.InitialParameters(start)])
    other = learner()
    other.adopt(mg.TrainState(start, (), torch.empty(0)))
    assert torch.equal(elsewhere.params, trained(other, batches([0, 1], [2])))
    decayed = trained(learner(), batches([0, 1]), mg.WeightDecay(torch.tensor(0.3, dtype=torch.float64)))
    numbers = trained(learner(optimizer=mg.SGD(0.9, weight_decay=0.3)), batches([0, 1]))
    torch.testing.assert_close(decayed, numbers, rtol=1e-14, atol=0)


def test_a_schedule_and_the_same_rates_as_metaparameter_train_alike() -> None:
    data, schedule = batches([0, 1], [2, 3], [4, 5], [6, 7]), mg.WarmupDecay(0.5, 4, warmup=2)
    rates = mg.LearningRates(torch.tensor([schedule(t) for t in range(4)], dtype=torch.float64))
    for optimizer in (mg.SGD(0.9, weight_decay=0.1), mg.AdamW()):
        scheduled = mg.Classifier(linear(), optimizer, schedule)
        ours = trained(mg.Classifier(linear(), optimizer, 123.0), data, rates)
        torch.testing.assert_close(ours, trained(scheduled, data), rtol=1e-13, atol=0)


def test_an_untaped_step_is_detached_and_writes_into_nothing() -> None:
    model, data = learner(), batches([0, 1])
    state = mg.initial_state(model)
    before = [x.clone() for x in state.tensors()]
    new, loss, _ = mg.step(model, state, data(0), 0)
    assert not any(x.requires_grad for x in (*new.tensors(), loss))
    assert all(torch.equal(x, y) for x, y in zip(state.tensors(), before, strict=True))


def test_training_inside_no_grad_is_training() -> None:
    data = batches([0, 1], [2, 3])
    with torch.no_grad():
        inside = trained(learner(), data, weights(_1=2.0))
    assert torch.equal(inside, trained(learner(), data, weights(_1=2.0)))


@pytest.mark.parametrize("returned", ["mean", "matrix"])
def test_losses_that_are_not_one_for_each_example_are_refused(returned: str) -> None:
    class Wrong(mg.Classifier):
        def losses(self, batch: mg.Batch) -> Tensor:
            losses = super().losses(batch)
            return losses.mean() if returned == "mean" else losses[:, None]

    with pytest.raises(
        UserError, match=r"^losses\(batch\) must return one loss for each of the 3 examples[^\n]*none'$"
    ):
        mg.train(Wrong(linear()), batches([0, 1, 2]))


def test_a_loss_that_is_not_finite_names_step_rows_and_rate() -> None:
    model = mg.Classifier(linear(), mg.SGD(), 0.25)
    broken = dict(DATA, x=DATA["x"].clone())
    broken["x"][4] = float("nan")
    data = mg.Batches(broken, mg.given_plan([[0, 1], [2, 3], [5, 4], [6]]))
    with pytest.raises(
        NonFiniteLoss, match=r"^the training loss is nan at step 2 \(x is not finite in rows 4; [^\n]*0\.25\)"
    ) as e:
        mg.train(model, data)
    assert e.value.t == 2


class Logarithms(mg.Classifier):
    """Losses that are infinite for the example whose field `scale` is 0."""

    def losses(self, batch: mg.Batch) -> Tensor:
        return super().losses(batch) - batch.scale.log()


def test_the_row_whose_own_loss_is_not_finite_is_named() -> None:
    data = dict(DATA, scale=torch.ones(len(DATA["x"]), dtype=torch.float64))
    data["scale"][5] = 0
    with pytest.raises(NonFiniteLoss, match=r"is inf at step 1 \(batch rows 5; "):
        mg.train(Logarithms(linear()), mg.Batches(data, mg.given_plan([[0, 1], [2, 5, 3]])))


def test_rows_are_named_whoever_trains() -> None:
    """Stacked runs, one of which alone reads the row; DeltaGrad's own steps."""
    data = dict(DATA, scale=torch.ones(len(DATA["x"]), dtype=torch.float64))
    data["scale"][5] = 0
    plans = [[[0, 1], [2, 3, 4]], [[1, 0], [2, 5, 3]]]
    own = [mg.Batches(data, mg.given_plan(plan)) for plan in plans]
    learner = Logarithms(linear())
    start = mg.TrainState.stack([mg.initial_state(learner)] * 2)
    with pytest.raises(NonFiniteLoss, match=r"is inf at step 1 \(batch rows 5; "):
        train_batched(learner, own, None, start)
    shared = mg.Batches(data, mg.given_plan([[0, 1], [2, 5, 3]]))
    weights = torch.ones(2, len(data["x"]), dtype=torch.float64)
    with pytest.raises(NonFiniteLoss, match=r"is inf at step 1 \(batch rows 5; "):
        train_batched(learner, shared, weights, mg.initial_state(learner))


def test_where_no_single_row_is_to_blame_none_is_named() -> None:
    data = dict(DATA, scale=torch.zeros(len(DATA["x"]), dtype=torch.float64))
    with pytest.raises(NonFiniteLoss, match=r"is inf at step 0 \(that of each of the batch's 2 rows is not finite; "):
        mg.train(Logarithms(linear()), mg.Batches(data, mg.given_plan([[0, 1]])))
    learner = mg.Classifier(linear(), mg.SGD(), 0.25)
    begun = mg.initial_state(learner)
    lost = dataclasses.replace(begun, params=begun.params * torch.nan)
    with pytest.raises(NonFiniteLoss, match=r"is nan at step 0 \(the parameters were not finite any more; "):
        mg.train(learner, mg.Batches(DATA, mg.given_plan([[0, 1]])), state=lost)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: learner("sum"), "normalize must be 'batch' or 'kept', not 'sum': set learner.normalize=batch"),
        (
            lambda: trained(learner(), batches([0], [1]), mg.LearningRates(torch.ones(1))),
            "LearningRates has 1 values but the run reaches step 1",
        ),
        (
            lambda: trained(learner(), batches([0]), mg.InitialParameters(torch.ones(3))),
            r"InitialParameters needs 15 values, not \[3\]",
        ),
        (
            lambda: mg.InputPerturbation(torch.ones(2, 4), index=torch.tensor([3, 3])),
            "one distinct training row for each of its 2 tensors",
        ),
        (
            lambda: mg.InputPerturbation(torch.ones(2, 4), index=torch.tensor([3])),
            "one distinct training row for each of its 2 tensors",
        ),
    ],
)
def test_bad_input_is_one_line(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=rf"^[^\n]*{message}[^\n]*$"):
        make()


def test_a_learner_without_losses_says_what_to_write() -> None:
    class Empty(mg.Learner):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(1, 1)

    with pytest.raises(NotImplementedError, match=r"write losses\(self, batch\) -> \[B\]"):
        mg.train(Empty(), batches([0]))


def test_the_seams_learners_have_the_losses_they_say() -> None:
    """Against torch's and by hand: next-token cross entropy per sequence, CLIP's loss per pair."""
    tokens = torch.randint(5, (3, 7))
    table = nn.Embedding(5, 5)
    ours = mg.LanguageModel(table).losses(mg.Batch(0, torch.arange(3), {"tokens": tokens}))
    by_hand = [nn.functional.cross_entropy(table(row[:-1]), row[1:]) for row in tokens]
    torch.testing.assert_close(ours, torch.stack(by_hand))

    a, b = (nn.functional.normalize(torch.randn(4, 3), dim=1) for _ in range(2))

    class Fixed(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return a, b, torch.tensor(2.0)

    clip = mg.ContrastiveLearner(Fixed()).losses(mg.Batch(0, torch.arange(4), {"x": a, "y": b}))
    p = (2 * a @ b.T).exp()
    expected = -(torch.log(p.diagonal() / p.sum(1)) + torch.log(p.diagonal() / p.sum(0))) / 2
    torch.testing.assert_close(clip, expected)


def test_data_weights_of_another_length_are_refused() -> None:
    data = mg.Batches({"x": torch.randn(6, 2), "y": torch.zeros(6, dtype=torch.int64)}, mg.full_batch_plan(6, 2))
    learner = mg.Classifier(torch.nn.Linear(2, 2))
    for n in (5, 7):
        with pytest.raises(UserError, match="one weight for each of the 6 examples"):
            mg.train(learner, data, [mg.DataWeights(torch.ones(n))])
        with pytest.raises(UserError, match="one weight for each of the 6 examples"):
            mg.metagradient(learner, data, mg.DataWeights(torch.ones(n)), mg.mean_loss(data.examples))

"""DeltaGrad is retraining where it is exact, the identity where nothing is asked, and close to retraining between."""

import functools

import pytest
import torch
import unlearning_toys as toys
from unlearning_toys import N, add, by_hand, delete, recorded

import metagradient as mg
from metagradient.replay import MemoryStorage
from metagradient.training import TrainState
from metagradient.unlearning import Adaptive, DeltaGrad, Guard, Request, Retrain, Unlearned, record

SGD = functools.partial(torch.optim.SGD, weight_decay=0.01, lr=0.0)
OPTIMIZERS = {
    "plain": (mg.SGD(weight_decay=0.01), SGD),
    "momentum": (mg.SGD(momentum=0.9, weight_decay=0.01), functools.partial(SGD, momentum=0.9)),
    "nesterov": (mg.SGD(0.9, True, 0.01), functools.partial(SGD, momentum=0.9, nesterov=True)),
}
PLANS = list(toys.PLANS)


def _close(a: Unlearned, b: Unlearned | TrainState) -> float:
    state = b.state if isinstance(b, Unlearned) else b
    return float((a.state.params - state.params).norm())


def _ratio(run, request, method) -> float:  # type: ignore[no-untyped-def]
    truth = Retrain()(run, request)
    return _close(truth, run.final) / _close(method(run, request), truth)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
@pytest.mark.parametrize("kind", ["delete", "add"])
def test_period_one_is_training_by_torch_optim(plan: str, optimizer: str, kind: str) -> None:
    ours, theirs = OPTIMIZERS[optimizer]
    rate = 0.2 if optimizer == "plain" else 0.02
    schedule = mg.Cosine(rate, len(toys.PLANS[plan]), rate / 2)
    changed = [0, 1, 5, 17]
    left = [i for i in range(N) if i not in changed]
    run = recorded(plan, present=None if kind == "delete" else left, optimizer=ours, schedule=schedule)
    request = delete(*changed) if kind == "delete" else add(*changed)
    after = request.apply(run.present)
    truth = by_hand(run, after, theirs, schedule)
    answer = DeltaGrad(period=1)(run, request)
    torch.testing.assert_close(answer.state.params, truth, rtol=1e-12, atol=1e-13)
    assert torch.equal(answer.state.params, Retrain()(run, request).state.params)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("method", [DeltaGrad(5, 8), DeltaGrad(5, 8, guard=Guard()), DeltaGrad(adaptive=Adaptive())])
def test_deleting_nothing_is_the_identity(plan: str, method: DeltaGrad) -> None:
    run = recorded(plan, optimizer=mg.SGD(momentum=0.5, weight_decay=0.01))
    assert torch.equal(method(run, Request("delete", torch.empty(0, dtype=torch.int64))).state.params, run.final.params)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("optimizer", ["plain", "momentum"])
def test_shortcuts_are_close_to_retraining(plan: str, optimizer: str) -> None:
    rate = 0.2 if optimizer == "plain" else 0.02
    run = recorded(plan, optimizer=OPTIMIZERS[optimizer][0], schedule=rate)
    assert _ratio(run, delete(0, 1, 5), DeltaGrad(5, 8)) > (10 if plan == "full" else 3)


@pytest.mark.parametrize("plan", ["full", "batches"])
def test_on_a_quadratic_loss_of_one_parameter_the_shortcut_is_exact(plan: str) -> None:
    """One Hessian for all batches, and a pair for every direction."""

    class Quadratic(mg.Learner):
        def __init__(self) -> None:
            super().__init__(mg.SGD(weight_decay=0.1), 0.1)
            self.w = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))

        def losses(self, batch: mg.Batch) -> torch.Tensor:
            return 0.5 * (self.w - batch.x[:, 0]) ** 2

    run = record(Quadratic(), mg.Batches(toys.examples(), toys.PLANS[plan]))
    request = delete(3, 9, 27)
    answer, truth = DeltaGrad(period=30, burn_in=4, pairs=1)(run, request), Retrain()(run, request)
    assert _close(truth, run.final) > 1e-3
    assert _close(answer, truth) < 1e-12


def test_a_batch_that_is_deleted_whole_is_skipped_and_the_rest_stays_aligned() -> None:
    run, request = recorded("holes", optimizer=mg.SGD(momentum=0.9, weight_decay=0.01), schedule=0.02), delete(0, 1)
    rows = [row[row >= 2].tolist() for row in run.batches.plan]
    assert [t for t, row in enumerate(rows) if not row] == [4, 21, 40]
    fresh = mg.train(run.learner, mg.Batches(run.batches.examples, mg.given_plan(rows)), state=run.initial)
    assert _close(Retrain()(run, request), fresh) == 0
    assert _ratio(run, request, DeltaGrad(5, 8)) > 3
    again = DeltaGrad(5, 8)(run, request, keep=MemoryStorage()).run
    assert again is not None
    back = DeltaGrad(5, 8)(again, add(0, 1))
    assert _close(back, run.final) < 0.1 * _close(Retrain()(run, request), run.final)


@pytest.mark.parametrize("plan", PLANS)
def test_delete_then_add_back_returns(plan: str) -> None:
    run, rows, method = recorded(plan), (0, 1, 5, 17), DeltaGrad(5, 8)
    deleted = method(run, delete(*rows), keep=MemoryStorage()).run
    assert deleted is not None
    back = method(deleted, add(*rows), keep=MemoryStorage())
    moved = _close(Retrain()(run, delete(*rows)), run.final)
    error = _close(method(run, delete(*rows)), Retrain()(run, delete(*rows)))
    assert _close(back, run.final) < max(4 * error, 1e-12) < moved
    assert back.run is not None
    assert torch.equal(back.run.present, run.present)


def test_a_kept_run_is_the_retrained_run() -> None:
    """With period 1 the rewritten history is the one that recording the smaller run gives."""
    run, request = recorded("holes"), delete(0, 1, 8)
    new = DeltaGrad(period=1)(run, request, keep=MemoryStorage()).run
    truth = record(run.learner, run.batches, request.apply(run.present), initial=run.initial)
    assert new is not None
    for (w, g), (w_true, g_true) in zip(new.history, truth.history, strict=True):
        assert torch.equal(w, w_true)
        assert torch.equal(g, g_true)
    assert torch.equal(new.final.params, truth.final.params)


def test_the_original_run_is_left_alone() -> None:
    run = recorded("batches")
    before = [(w.clone(), g.clone()) for w, g in run.history]
    DeltaGrad(5, 8)(run, delete(1, 2), keep=MemoryStorage())
    assert all(torch.equal(a, b) and torch.equal(c, d) for (a, c), (b, d) in zip(run.history, before, strict=True))
    assert bool(run.present.all())


def test_gradients_are_counted() -> None:
    run = recorded("full")
    answer = DeltaGrad(period=5, burn_in=9)(run, delete(0, 1))
    exact = 10 + 10  # steps 0 .. 9, then 14, 19, .. 59
    assert answer.details["exact_steps"] == exact
    assert answer.gradients == exact * (N - 2) + 60 * 2
    assert Retrain()(run, delete(0, 1)).gradients == 60 * (N - 2)


def test_the_guard_holds_a_network_that_the_plain_method_loses() -> None:
    """A large rate and a fifth of the rows deleted: without the guard the answer is far worse than the untouched run."""
    run = record(toys.learner(schedule=4.0, hidden=16), mg.Batches(toys.examples(), mg.full_batch_plan(N, 200)))
    request = delete(*range(12))
    plain, guarded = DeltaGrad(10, 5)(run, request), DeltaGrad(10, 5, guard=Guard())(run, request)
    truth = Retrain()(run, request)
    assert _close(plain, truth) > 20 * _close(truth, run.final)
    assert _close(guarded, truth) < 10 * _close(truth, run.final)
    assert guarded.details["refused_steps"] > 0
    assert guarded.details["exact_steps"] > plain.details["exact_steps"]


def test_a_wide_guard_and_none_are_the_same() -> None:
    run, request = recorded("batches"), delete(3, 4)
    wide = DeltaGrad(5, 8, guard=Guard(curvature=1e9, growth=1e9))(run, request)
    assert torch.equal(wide.state.params, DeltaGrad(5, 8)(run, request).state.params)


def test_a_smaller_target_is_more_exact() -> None:
    run, request = recorded("full"), delete(3, 4, 5)
    steps = [
        DeltaGrad(burn_in=8, adaptive=Adaptive(t))(run, request).details["exact_steps"] for t in (0.001, 0.01, 0.1)
    ]
    assert steps[0] > steps[1] > steps[2]
    ratios = [_ratio(run, request, DeltaGrad(burn_in=8, adaptive=Adaptive(t))) for t in (0.001, 0.1)]
    assert ratios[0] > 2 * ratios[1]


def test_the_period_follows_the_error() -> None:
    adaptive = Adaptive(target=0.2, longest=10)
    assert adaptive.next_period(4, 0.05) == 4
    assert adaptive.next_period(4, 0.0667) == 2
    assert adaptive.next_period(4, 1e-9) == 8
    assert adaptive.next_period(8, 0.0) == 10
    assert adaptive.next_period(1, 5.0) == 1
    assert adaptive.next_period(6, float("nan")) == 1

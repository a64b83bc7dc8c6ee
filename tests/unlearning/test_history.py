"""What is recorded is the run, wherever it lies, and recording changes nothing."""

from pathlib import Path

import pytest
import torch
from torch import nn
from unlearning_toys import PLANS, N, examples, learner, recorded

import metagradient as mg
from metagradient.errors import UserError
from metagradient.replay import DiskStorage
from metagradient.training.steps import step
from metagradient.unlearning import History, RecordRun, record
from metagradient.unlearning.run import batch_sizes, masked_plan, narrowed


@pytest.mark.parametrize("plan", list(PLANS))
def test_the_history_is_the_run_step_by_step(plan: str) -> None:
    run = recorded(plan, present=range(2, N), optimizer=mg.SGD(momentum=0.9, weight_decay=0.1), schedule=0.05)
    batches, state = run.batches_of(run.present), run.initial
    for t, (w, g) in enumerate(run.history):
        assert torch.equal(w, state.params)
        batch = batches(t)
        if len(batch) == 0:
            assert not g.any()
        else:
            with run.learner.evaluating(state):
                leaf = state.params.requires_grad_()
                with run.learner.layout.bind(leaf, state.buffers):
                    loss = run.learner.losses(batch).mean()
            torch.testing.assert_close(g, torch.autograd.grad(loss, leaf)[0], rtol=1e-12, atol=1e-14)
        state, _, _ = step(run.learner, state, batch, t)
    assert torch.equal(state.params, run.final.params)


def test_recording_changes_no_bit() -> None:
    plain = mg.train(learner(), mg.Batches(examples(), PLANS["batches"]))
    assert torch.equal(plain.params, recorded("batches").final.params)


def test_the_trainer_records_the_same_bits() -> None:
    from lightning import Trainer

    present = torch.arange(N) > 3
    callback = RecordRun(mg.Batches(examples(), PLANS["holes"]), present)
    trainer = Trainer(
        max_epochs=1, callbacks=[callback], logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, accelerator="cpu", precision="64-true",
    )  # fmt: skip
    trainer.fit(learner(), callback.batches)
    truth, run = recorded("holes", present=range(4, N)), callback.run
    assert run is not None
    for (w, g), (w_true, g_true) in zip(run.history, truth.history, strict=True):
        assert torch.equal(w, w_true)
        assert torch.equal(g, g_true)
    assert torch.equal(run.final.params, truth.final.params)
    assert torch.equal(run.initial.params, truth.initial.params)


def test_a_fit_of_other_batches_than_the_recorded_ones_is_refused() -> None:
    from lightning import Trainer

    every = mg.Batches(examples(), PLANS["holes"])
    callback = RecordRun(every, torch.arange(N) > 3)
    trainer = Trainer(
        max_epochs=1, callbacks=[callback], logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, accelerator="cpu", precision="64-true",
    )  # fmt: skip
    with pytest.raises(UserError, match=r"trainer\.fit\(learner, callback\.batches\)"):
        trainer.fit(learner(), every)


@pytest.mark.parametrize("window", [1, 7, 15, 60, 100])
@pytest.mark.parametrize("place", ["memory", "pinned", "disk"])
def test_windows_and_storages_give_back_what_was_put_in(window: int, place: str, tmp_path: Path) -> None:
    rows = torch.randn(60, 2, 5)
    storage = DiskStorage(tmp_path) if place == "disk" else place
    history = History(60, 5, storage, torch.float32, window)
    for t in range(60):
        if t % 9 != 5 or t == 59:  # skipped steps: the parameters stay, the gradient is 0
            history.record(t, rows[t, 0], rows[t, 1])
        else:
            rows[t, 1], rows[t, 0] = 0, rows[t + 1, 0].clone()
    history.finish(rows[-1, 0])
    for _ in range(2):
        assert torch.equal(torch.stack([torch.stack(pair) for pair in history]), rows)
    history.free()
    assert place != "disk" or not list(tmp_path.glob("*/*"))


def test_float32_history_of_a_float64_run_halves_its_bytes() -> None:
    run = record(learner(), mg.Batches(examples(), PLANS["full"]), dtype=torch.float32)
    assert run.history.nbytes * 2 == recorded("full").history.nbytes == 2 * 60 * 18 * 8
    for (w, g), (w64, g64) in zip(run.history, recorded("full").history, strict=True):
        assert w.dtype == g.dtype == torch.float64
        torch.testing.assert_close(w, w64.float().double(), rtol=0, atol=0)
        torch.testing.assert_close(g, g64.float().double(), rtol=0, atol=0)


@pytest.mark.parametrize("name", list(PLANS))
def test_masked_and_narrowed_plans_hold_the_members(name: str) -> None:
    plan, members = PLANS[name], torch.arange(N) % 7 == 2
    truth = [[i for i in row.tolist() if i >= 0 and members[i]] for row in plan]
    for made in (masked_plan(plan, members), narrowed(masked_plan(plan, members))):
        assert [row[row >= 0].tolist() for row in made] == truth
        assert batch_sizes(made) == [len(row) for row in truth]
    assert narrowed(masked_plan(plan, members)).shape[1] == max(map(len, truth))


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Linear(5, 4), nn.Dropout(0.5), nn.Linear(4, 3)),
        nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)),
    ],
    ids=["dropout", "batch norm"],
)
def test_a_run_whose_examples_are_tied_together_is_refused(model: nn.Module) -> None:
    tied = mg.Classifier(model.double(), mg.SGD(), 0.1)
    with pytest.raises(UserError, match="mean of its examples"):
        record(tied, mg.Batches(examples(), PLANS["batches"]))


def test_augmentation_is_refused() -> None:
    batches = mg.Batches(examples(), PLANS["batches"], augment=lambda fields, rng: fields)
    with pytest.raises(UserError, match="augmentation"):
        record(learner(), batches)

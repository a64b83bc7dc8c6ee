"""Victims and cheap defences against spelled-out versions."""

import pytest
import torch

import metagradient as mg
from metagradient.errors import UserError
from metagradient.evaluation import (
    Retraining,
    accuracy,
    filter_by_suspicion,
    neighbour_distances,
    train_victims,
)


def blobs(n: int, seed: int) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    y = torch.randint(3, (n,), generator=rng)
    centres = torch.tensor([[1.0, 0.0], [-0.5, 0.8], [-0.5, -0.8]])
    return {"x": centres[y] + torch.randn(n, 2, generator=rng), "y": y}


def make_routine(epochs: int = 6) -> mg.Routine:
    return mg.Routine(
        lambda schedule: mg.Classifier(torch.nn.Linear(2, 3), mg.SGD(), schedule),
        schedule=lambda steps: mg.Constant(0.5),
        batch_size=16,
        epochs=epochs,
    )


def test_final_and_peak_are_those_of_the_epochs() -> None:
    routine, train, test = make_routine(), blobs(40, 1), blobs(200, 2)
    victims = train_victims(routine, train, test, [3, 4])
    for i, seed in enumerate([3, 4]):
        learner, final = routine.train(train, seed)
        assert victims.final[i] == accuracy(learner, final, test)
        batches = routine.batches(train, seed)
        by_epoch = []
        for epoch in range(1, 7):  # each prefix of the run, trained from the start
            state = mg.train(routine.learner(seed, len(batches)), batches, stop=3 * epoch)
            by_epoch.append(accuracy(learner, state, test))
        assert victims.peak[i] == max(by_epoch)
    assert victims.drops_from(victims) == [0.0, 0.0]
    with pytest.raises(UserError, match="victims=5"):
        train_victims(routine, train, test, [])


def test_neighbour_distances_are_those_of_a_double_loop() -> None:
    train = blobs(30, 5)
    found = neighbour_distances(train, k=3, chunk=4)
    for i in range(30):
        same = [j for j in range(30) if j != i and train["y"][j] == train["y"][i]]
        nearest = sorted(float((train["x"][i] - train["x"][j]).norm()) for j in same)[:3]
        assert float(found[i]) == pytest.approx(sum(nearest) / 3, rel=1e-5)


def test_an_example_alone_in_its_class_is_infinitely_far() -> None:
    train = {"x": torch.tensor([[0.0], [1.0], [9.0]]), "y": torch.tensor([0, 0, 1])}
    assert neighbour_distances(train, k=5).tolist() == [1.0, 1.0, float("inf")]


def test_what_is_most_suspicious_is_dropped() -> None:
    train, validation = blobs(60, 1), blobs(300, 2)
    wrong = torch.arange(60) < 20
    train["y"] = torch.where(wrong, (train["y"] + 1) % 3, train["y"])
    judge = Retraining(make_routine(), [1, 2])
    kept, fraction = filter_by_suspicion(judge, train, validation, wrong.float(), [0.0, 1 / 3])
    assert fraction == pytest.approx(1 / 3)
    assert torch.equal(kept, ~wrong)

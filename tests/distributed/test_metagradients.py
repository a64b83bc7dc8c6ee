"""Several processes find the metagradients of one, each of them the same bits; what they would not find they refuse."""

import re
from typing import Any

import pytest
import torch
from cases import CASES, DATA, HELD_OUT, ROWS, X, metaparameters, mlp, oracle, random, refusals, table, term
from processes import together

import metagradient as mg
from metagradient.distributed import SOLO

EXACT = 1e-12


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[Any]]:
    """By the number of processes, what each of them found: spawned once for all cases."""
    return together([2, 4], table, tmp_path_factory.mktemp("processes"))


@pytest.mark.parametrize("case", CASES)
def test_any_number_of_processes_finds_the_same(shared: dict[int, list[Any]], case: str) -> None:
    alone = CASES[case](SOLO)
    for size, ranks in shared.items():
        for name, expected in alone.items():
            found = ranks[0][case][name]
            for other in ranks[1:]:
                assert torch.equal(other[case][name], found), (size, name)
            if expected.numel():
                assert float((found - expected).norm() / expected.norm()) < EXACT, (size, name)


@pytest.mark.parametrize("normalize", ["batch", "kept"])
def test_four_processes_find_what_a_naive_unroll_finds(shared: dict[int, list[Any]], normalize: str) -> None:
    """All metaparameters at once, in one autograd graph that knows of no processes."""
    values = {m.name: m.value.clone().requires_grad_() for m in metaparameters()}
    decay = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    weights, inputs, rates, initial, candidates = values.values()
    rule = oracle.Rule("sgd", 0.9, nesterov=True)
    start = oracle.trained(mg.Classifier(mlp()))
    run = oracle.Run(oracle.mlp, start, {}, DATA, ROWS, rule, 0.2, normalize)
    z = oracle.Z(initial, weights, range(100), inputs, [8, 2, 5], rates, decay, candidates, 3)
    params, stats = oracle.unroll(run, z)
    loss = oracle.mlp(params, stats, HELD_OUT, 0)[0].mean()
    expected = torch.autograd.grad(loss, [*values.values(), decay])
    found = shared[4][0]["kept" if normalize == "kept" else "momentum, decay"]
    torch.testing.assert_close(found["objective"], loss.detach(), rtol=1e-12, atol=0)
    for name, gradient in zip([*values, "weight_decay"], expected, strict=True):
        torch.testing.assert_close(found[name].reshape(gradient.shape), gradient, rtol=1e-10, atol=1e-13)


def test_sums_over_processes_have_all_their_derivatives(shared: dict[int, list[Any]]) -> None:
    """Against the sum written out in one process."""
    direction = random(5, seed=9)
    rows, places = random(7, 2, seed=10), torch.arange(7).unsqueeze(1)
    for size, ranks in shared.items():
        x = X.clone().requires_grad_()
        y = sum(term(rank, x) for rank in range(size))
        (first,) = torch.autograd.grad((y**3).sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first @ direction, x, create_graph=True)
        (third,) = torch.autograd.grad(second @ direction, x)
        many = (size - 1) * torch.autograd.functional.jacobian(lambda x: term(0, x), X)
        expected = {"value": y, "first": first, "second": second, "third": third, "many": many}
        expected |= {"rows": rows**2, "back": 2 * rows * places}
        for found in ranks:
            for name, value in expected.items():
                torch.testing.assert_close(found["operations"][name], value, rtol=1e-13, atol=1e-13, msg=name)


def test_what_processes_cannot_share_all_of_them_refuse(shared: dict[int, list[Any]]) -> None:
    expected = {
        "own statistics": r"changes buffers by them, so shares of several devices are not the whole.*run it in one process",
        "centred": r"an example's loss depends on the others of its batch.*run it in one process",
        "drawing": r"several devices would draw other numbers than one.*run it in one process",
        "other start": "process 1 has other initial state than process 0",
        "other seed": "process 1 has other seed than process 0",
        "other plan": "process 1 has other index plan than process 0",
        "other data": "process 1 has other examples than process 0",
        "other weights": "process 1 has other metaparameters than process 0",
        "other rate": "process 1 has other settings than process 0",
    }
    for ranks in shared.values():
        for found in ranks:
            for name, line in expected.items():
                assert re.search(line, found["refusals"][name]), (name, found["refusals"][name])


def test_one_process_alone_is_refused_nothing_that_several_share() -> None:
    assert {name for name, line in refusals(SOLO).items() if line} == set()


def test_a_trainer_gives_the_bits_of_the_bare_loop(shared: dict[int, list[Any]]) -> None:
    for found in shared[4]:
        bare, fitted = found["adam"], found["trainer"]
        assert {"params", "weights"} <= fitted.keys()
        for name, value in fitted.items():
            assert torch.equal(value, bare[name]), name


def test_a_strategy_that_averages_gradients_is_refused(shared: dict[int, list[Any]]) -> None:
    for found in shared[4]:
        assert "DDPStrategy would average gradients" in found["ddp"]
        assert "strategy=mg.SharedBatches()" in found["ddp"]


def test_each_process_stores_its_part_of_a_checkpoint(shared: dict[int, list[Any]]) -> None:
    for size, ranks in shared.items():
        for found in ranks:
            assert found["stored"]["bytes"] == 8 * (3 * 48 // size + -(-7 // size))

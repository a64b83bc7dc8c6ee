"""Requests that cannot be met say so in one line, before anything is touched."""

import pytest
import torch
from unlearning_toys import N, add, delete, examples, recorded

from metagradient.errors import UserError
from metagradient.unlearning import DeltaGrad, Request, pool


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (lambda: delete(5, N), rf"row {N} is not one of the {N} examples"),
        (lambda: delete(-1), r"row -1 is not one"),
        (lambda: delete(3, 8, 3), r"row 3 stands 2 times"),
        (lambda: delete(*range(1, N)), r"leaves nothing to train on"),
        (lambda: delete(0), r"cannot delete row 0: it is not in the training set"),
        (lambda: add(7), r"cannot add row 7: it is in the training set already"),
        (lambda: Request("delete", torch.tensor([0.5])), r"vector of integers"),
        (lambda: Request("delete", torch.ones(N, dtype=torch.bool)), r"vector of integers"),
        (lambda: Request("forget", torch.tensor([1])), r"'forget'"),  # type: ignore[arg-type]
    ],
)
def test_bad_requests_are_refused_and_the_run_is_untouched(request_, says: str) -> None:  # type: ignore[no-untyped-def]
    run = recorded("full", present=range(1, N))
    before = [(w.clone(), g.clone()) for w, g in run.history]
    with pytest.raises(UserError, match=says):
        DeltaGrad()(run, request_())
    assert all(torch.equal(a, b) and torch.equal(c, d) for (a, c), (b, d) in zip(run.history, before, strict=True))


def test_added_examples_join_the_table_masked() -> None:
    fields, present = pool(examples(), examples(4, seed=1))
    assert torch.equal(fields["x"], torch.cat([examples()["x"], examples(4, seed=1)["x"]]))
    assert present.tolist() == [True] * N + [False] * 4


@pytest.mark.parametrize(
    ("new", "says"),
    [
        ({"x": torch.zeros(2, 6).double(), "y": torch.zeros(2).long()}, r"'x' as torch.float64 \[5\], not .* \[6\]"),
        ({"x": torch.zeros(2, 5).double(), "y": torch.zeros(2)}, r"'y' as torch.int64"),
        ({"x": torch.zeros(2, 5).double()}, r"fields \['x', 'y'\], not \['x'\]"),
    ],
)
def test_examples_of_another_kind_cannot_be_added(new: dict[str, torch.Tensor], says: str) -> None:
    with pytest.raises(UserError, match=says):
        pool(examples(), new)


@pytest.mark.parametrize("settings", [{"period": 0}, {"burn_in": -1}, {"pairs": 0}])
def test_bad_settings_name_the_override(settings: dict[str, int]) -> None:
    with pytest.raises(UserError, match=rf"set method\.{next(iter(settings))}="):
        DeltaGrad(**settings)  # type: ignore[arg-type]

"""What examples of a split are called, against the labels that they were given."""

import json
from pathlib import Path

import torch

from metagradient.data import AnswerNoise, LabelNoise, Splits, digits, instructions
from metagradient.data.splits import corrupt, standardise
from metagradient.studies.attribution.browsing import few
from metagradient.studies.examples import identities, told
from metagradient.studies.selection.looking import gain

N = 12


def noisy() -> Splits:
    """Three classes, half of the training labels another one."""
    table = {"x": torch.randn(N, 2), "y": torch.arange(N) % 3}
    return corrupt(Splits("t", table, table, table, ("a", "b", "c"), kind="table"), LabelNoise(fraction=0.5), seed=1)


def test_the_truth_is_told_of_each_row_that_was_asked_for() -> None:
    splits = noisy()
    assert splits.truth is not None
    rows = [10, 3, 7, 0, 5]
    found = told(splits, "train", rows)
    assert list(found) == rows
    for row, example in found.items():
        given, true = ("abc"[int(y[row])] for y in (splits.train["y"], splits.truth.y))
        assert (example.index, example.label, example.truth) == (row, given, "" if given == true else true)
    assert {bool(example.truth) for example in found.values()} == {True, False}
    header, cells = identities(splits, "train")
    assert header == ["index", "label", "truth"]
    assert [cell[2] for cell in cells] == ["abc"[i % 3] for i in range(N)]


def test_texts_are_joined_by_row_id_and_source_and_a_planted_response_has_its_truth(tmp_path: Path) -> None:
    rows = [{"prompt": f"p {i}", "response": f"r {i}", "name": f"0{i}"} for i in range(N)]
    (tmp_path / "a.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    splits = instructions(str(tmp_path / "a.jsonl"), validation=1, test=2, id="name", noise=AnswerNoise(fraction=0.5))
    header, cells = identities(splits, "train")
    assert header == ["index", "row", "id", "source", "truth"]
    shown = told(splits, "train", [6, 2])
    assert list(shown) == [6, 2]
    assert splits.truth is not None
    for index, row, name, source, truth in cells:
        assert (name, source) == (f"0{row}", "a")
        assert bool(truth) == bool(splits.truth.wrong[int(index)])
        assert truth in ("", f"r {row}")
        if index in shown:
            assert shown[int(index)].place == (("row", str(row)), ("id", name), ("source", "a"))
            assert shown[int(index)].truth == truth
            assert f"p {row}<" in shown[int(index)].says
            assert shown[int(index)].says.endswith("<|end|>")  # no padding
    assert identities(splits, "validation")[0] == ["index", "row", "id"]


def test_a_terminal_shows_twelve_rows_and_the_ends_of_rankings_first() -> None:
    for queries, ranks in ((1, 6), (2, 3), (6, 1), (1000, 1)):
        table = [[q, "", sign * rank] for q in range(queries) for sign in (1, -1) for rank in range(1, 11)]
        shown = few(table, queries)
        assert len(shown) == 12
        assert {abs(row[2]) for row in shown} == set(range(1, ranks + 1))


def test_a_standardised_image_is_shown_as_it_was() -> None:
    plain = digits(train=50, validation=20, test=20)
    shown = told(standardise(plain), "test", [3, 7])
    for row in (3, 7):
        assert shown[row].image is not None
        torch.testing.assert_close(torch.from_numpy(shown[row].image), plain.test["x"][row])


def test_a_choice_that_gained_nothing_is_said_to() -> None:
    assert gain(0.93, 0.90, 0.90) == gain(0.88, 0.93, 0.90) == ""
    assert "Nothing was gained" in gain(0.90, 0.89, 0.90)

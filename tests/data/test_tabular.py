"""Tables are read from small files in the formats of the originals."""

import gzip
from pathlib import Path

import pytest
import torch

from metagradient.data import a9a, covtype, rcv1


def test_a9a_reads_libsvm_files(tmp_path: Path) -> None:
    (tmp_path / "a9a").write_text("-1 3:1 11:1\n+1 1:1 123:1\n-1 5:1\n")
    (tmp_path / "a9a.t").write_text("+1 2:1\n-1 4:1\n")
    splits = a9a(str(tmp_path), train=3)
    rows = {tuple(x.nonzero().flatten().tolist()): int(y) for x, y in zip(*splits.train.values(), strict=True)}
    assert rows == {(2, 10): 0, (0, 122): 1, (4,): 0}
    assert {tuple(x.nonzero().flatten().tolist()) for x in splits.test["x"]} == {(1,), (3,)}
    assert splits.input_shape == (123,)
    assert splits.num_classes == 2


@pytest.mark.parametrize(
    ("text", "says"), [("-1 200:1\n", "123 features"), ("3 1:1\n", "labels -1 and"), ("hello world\n", "no LIBSVM")]
)
def test_another_libsvm_file_is_refused(tmp_path: Path, text: str, says: str) -> None:
    for name in ("a9a", "a9a.t"):
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=says):
        a9a(str(tmp_path), train=1)


def test_covtype_is_scaled_by_its_training_rows(tmp_path: Path) -> None:
    rows = [[100 * i, 7, *([i % 2] * 52), 1 + i % 7] for i in range(20)]
    with gzip.open(tmp_path / "covtype.data.gz", "wt") as file:
        file.writelines(",".join(map(str, row)) + "\n" for row in rows)
    splits = covtype(str(tmp_path), train=12, validation=3)
    x = splits.train["x"]
    assert x[:, 0].min() == 0
    assert x[:, 0].max() == 1
    assert (x[:, 1] == 0).all()
    y = torch.cat([splits.train["y"], splits.validation["y"], splits.test["y"]])
    assert sorted(y.tolist()) == sorted(i % 7 for i in range(20))
    assert splits.num_classes == 7


def test_rcv1_keeps_the_most_frequent_terms(tmp_path: Path) -> None:
    stories = {
        "lyrl2004_vectors_train.dat.gz": [
            "2286  864:0.5 1523:0.25",
            "2287  864:0.1 47236:0.9",
            "2288  864:0.2 1523:0.3",
        ],
        "lyrl2004_vectors_test_pt0.dat.gz": ["26151  1523:0.7 30000:0.1"],
        "rcv1-v2.topics.qrels.gz": ["CCAT 2286 1", "E11 2287 1", "CCAT 26151 1", "GCAT 2286 1"],
    }
    for name, lines in stories.items():
        with gzip.open(tmp_path / name, "wt") as file:
            file.write("\n".join(lines) + "\n")
    splits = rcv1(str(tmp_path), features=2, train=3, test=1)
    found = {tuple(x.tolist()): int(y) for x, y in zip(*splits.train.values(), strict=True)}
    expected = {(0.5, 0.25): 1, (0.1, 0.0): 0, (0.2, 0.3): 0}
    assert {tuple(round(v, 4) for v in k): y for k, y in found.items()} == expected
    torch.testing.assert_close(splits.test["x"], torch.tensor([[0.0, 0.7]]))
    assert splits.test["y"].tolist() == [1]


@pytest.mark.parametrize("source", [a9a, covtype, rcv1])
def test_a_folder_without_the_files_is_named(source, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(FileNotFoundError, match=rf"data\.path={tmp_path}"):
        source(str(tmp_path))

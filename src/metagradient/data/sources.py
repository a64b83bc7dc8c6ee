"""The data sets that conf/data names: scikit-learn's digits, and images from the hub or a local folder."""

from collections.abc import Sequence
from pathlib import PurePath

import torch
from torch import Tensor

from metagradient.data.corruption import LabelNoise
from metagradient.data.images import Images, read_images
from metagradient.data.splits import Splits, Table, corrupt, draw, standardise

_TEST_SPLITS = ("train", "official")


def digits(
    train: int = 1000,
    validation: int = 300,
    test: int | None = None,
    noise: LabelNoise | None = None,
    standardize: bool = False,
    seed: int = 0,
) -> Splits:
    """scikit-learn's embedded digits: 1797 grey images of 8x8 pixels, ten classes.

    The splits are random and disjoint, drawn from `seed`; test=None takes every row left. Needs no network.

    Raises:
        ValueError: there are fewer rows than asked for.
    """
    from sklearn.datasets import load_digits  # a second of import that other data sets need not pay

    raw = load_digits()
    x = torch.from_numpy(raw.images).float().div(16).unsqueeze(1)
    y = torch.from_numpy(raw.target).long()
    rows = draw(len(y), {"train": train, "validation": validation, "test": test}, seed, "digits")
    tables = {split: {"x": x[r], "y": y[r]} for split, r in rows.items()}
    names = tuple(map(str, raw.target_names))
    splits = Splits("digits", tables["train"], tables["validation"], tables["test"], names)
    return _finished(splits, noise, standardize, seed)


def hub(
    path: str,
    train: int,
    validation: int,
    test: int | None = None,
    test_split: str = "train",
    noise: LabelNoise | None = None,
    classes: Sequence[int | str] | None = None,
    standardize: bool = False,
    seed: int = 0,
) -> Splits:
    """A labelled image set from the Hugging Face hub, or from a local folder of parquet files in its layout.

    Training and validation rows are random disjoint rows of the set's train split, drawn from `seed`, and so
    are the test rows with test_split="train"; the set's own test split, where it has one, is then
    `extra_tests["official"]`. With test_split="official" the test rows come from there. test=None takes every
    row left.

    `classes` (labels or names) keeps only these classes, relabelled 0, 1, ... in the order given.

    Raises:
        FileNotFoundError: a folder without parquet files, or an unknown hub name.
        ConnectionError: a hub set, and no network.
        ValueError: a set without images and labels, an unknown class or too few rows.
    """
    if test_split not in _TEST_SPLITS:
        raise ValueError(
            f"data.test_split must be one of {', '.join(_TEST_SPLITS)}; got {test_split!r}; "
            "set for example data.test_split=train"
        )
    images = read_images(path)
    if classes is not None:
        images = _only(images, list(classes))
    if "train" not in images.tables:
        raise ValueError(f"data.path={path} has no train split, only {', '.join(images.tables)}; try another set")
    pool, official = images.tables["train"], images.tables.get("test")
    wanted: dict[str, int | None] = {"train": train, "validation": validation}
    if test_split == "train":
        rows = draw(len(pool["y"]), wanted | {"test": test}, seed, f"the train split of {path}")
        test_table = _floats(pool, rows["test"])
        extra = {} if official is None else {"official": _floats(official)}
    else:
        if official is None:
            raise ValueError(f"data.path={path} has no test split of its own; set data.test_split=train")
        rows = draw(len(pool["y"]), wanted, seed, f"the train split of {path}")
        held_out = draw(len(official["y"]), {"test": test}, seed, f"the test split of {path}")
        test_table, extra = _floats(official, held_out["test"]), {}
    splits = Splits(
        PurePath(path).name,
        train=_floats(pool, rows["train"]),
        validation=_floats(pool, rows["validation"]),
        test=test_table,
        classes=images.classes,
        extra_tests=extra,
    )
    return _finished(splits, noise, standardize, seed)


def _finished(splits: Splits, noise: LabelNoise | None, standardize: bool, seed: int) -> Splits:
    splits = corrupt(splits, noise, seed)
    return standardise(splits) if standardize else splits


def _floats(table: Table, rows: Tensor | None = None) -> Table:
    """Rows of a uint8 table, with pixels in [0, 1]."""
    chosen = table if rows is None else {key: values[rows] for key, values in table.items()}
    return {"x": chosen["x"].float().div_(255), "y": chosen["y"]}


def _only(images: Images, classes: list[int | str]) -> Images:
    names = images.classes
    labels = [names.index(c) if isinstance(c, str) and c in names else c for c in classes]
    unknown = [c for c in labels if c not in range(len(names))]
    if unknown or len(set(labels)) != len(labels) or not labels:
        raise ValueError(
            f"data.classes must be different classes among 0..{len(names) - 1} or {', '.join(names)}; "
            f"got {classes}; set for example data.classes=[0,1]"
        )
    order = torch.tensor([int(c) for c in labels])
    tables = {}
    for split, table in images.tables.items():
        hit = table["y"][:, None] == order
        keep = hit.any(1)
        tables[split] = {"x": table["x"][keep], "y": hit[keep].long().argmax(1)}
    return Images(tables, tuple(names[int(c)] for c in labels))

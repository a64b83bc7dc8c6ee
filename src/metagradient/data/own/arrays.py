"""Arrays of the user's own: x and y in an .npz or .safetensors file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file

from metagradient.data.corruption import LabelNoise
from metagradient.data.origins import origins
from metagradient.data.own.inspection import inspect
from metagradient.data.own.rows import NAMES, Shares, divide
from metagradient.data.own.targets import targets_of
from metagradient.data.splits import Splits, Task, corrupt, standardise

ARRAYS = (".npz", ".safetensors")
"""The endings of files of arrays."""


def array_file(
    path: str,
    x: str = "x",
    y: str = "y",
    id: str | None = None,
    train: int | None = None,
    validation: float = 0.1,
    test: float = 0.2,
    stratify: bool = False,
    standardize: bool = False,
    task: Task | None = None,
    noise: LabelNoise | None = None,
    seed: int = 0,
) -> Splits:
    """Inputs x [n, ...] and targets y [n] or [n, C] from one file. Bytes are divided by 255; [n, H, W(, C)] in bytes are images.

    Args:
        path: an .npz or .safetensors file.
        x: the name of the inputs in it.
        y: the name of the targets. [n]: whole numbers, words or truth values are classes, whose names are the sorted values;
            fractions are numbers to be predicted. [n, C]: one-hot and soft labels, several labels of 0 and 1, or numbers.
        id: the name of an array [n] in it that names the examples, which results then carry.
        train: as in `table_file`, like validation, test, stratify, noise and seed.
        validation: see train.
        test: see train.
        stratify: see train.
        standardize: mean 0 and variance 1 per channel, by the training rows.
        task: what y is: classes, numbers or labels; None: what its values say.
        noise: see train.
        seed: see train.

    Raises:
        FileNotFoundError: no such file.
        ValueError: names, shapes or numbers that do not fit.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"data.path={path} does not exist or is no file: give an .npz or .safetensors file")
    held = read_arrays(file)
    for setting, name in (("data.x", x), ("data.y", y), ("data.id", id)):
        if name is not None and name not in held:
            raise ValueError(f"{setting}={name}: no such array; there are: {', '.join(sorted(held))}")
    inputs, labels = held[x], held[y]
    if inputs.dtype.kind not in "biuf":
        raise ValueError(
            f"data.x={x} is {inputs.dtype} {list(inputs.shape)}: inputs are numbers, and no words or complex ones"
        )
    if labels.ndim not in (1, 2) or inputs.ndim < 2 or len(labels) != len(inputs):
        raise ValueError(
            f"data.path={path}: x [n, ...] and y [n] or [n, C] are needed, not {list(inputs.shape)} and {list(labels.shape)}"
        )
    if not inputs[:1].size and len(inputs):
        raise ValueError(f"data.x={x} has shape {list(inputs.shape)}: its rows hold no numbers")
    found = targets_of(labels, f"data.y={y}", task)
    ids = None if id is None else held[id].astype(str)
    if ids is not None and ids.shape != labels.shape[:1]:
        raise ValueError(f"data.id={id} has shape {list(ids.shape)}: one name for each of {len(labels)} rows is needed")
    image = inputs.dtype == np.uint8 and inputs.ndim in (3, 4)
    if inputs.dtype == np.uint8:
        inputs = inputs.astype(np.float32) / 255
    with np.errstate(over="ignore"):
        inputs = inputs.astype(np.float32, copy=False)
    if not np.isfinite(inputs).all():
        bad = np.flatnonzero(~np.isfinite(inputs.reshape(len(inputs), -1)).all(1))
        raise ValueError(
            f"data.x={x} is not finite in {len(bad)} rows, {', '.join(map(str, bad[:5]))} among them, as float32"
        )
    if image and inputs.ndim == 3:
        inputs = inputs[:, None]
    elif image and inputs.shape[-1] in (1, 3, 4) and inputs.shape[1] not in (1, 3):
        inputs = np.moveaxis(inputs, -1, 1)
    rows = divide(found.strata(stratify), Shares(train, validation, test, stratify, seed))
    data, targets = torch.from_numpy(np.ascontiguousarray(inputs, dtype=np.float32)), torch.from_numpy(found.y)
    tables = {name: {"x": data[rows[name]], "y": targets[rows[name]]} for name in NAMES}
    kind = "image" if data.dim() == 4 and data.shape[1] in (1, 3) else "table"
    splits = Splits(
        file.name,
        tables["train"],
        tables["validation"],
        tables["test"],
        found.names,
        kind=kind,  # type: ignore[arg-type]
        source=path,
        arrays=(x, y) if id is None else (x, y, id),
        origins=origins(np.arange(len(labels)), ids, rows),
        task=found.task,
    )
    inspect(splits)
    return corrupt(standardise(splits) if standardize else splits, noise, seed)


def read_arrays(file: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz or .safetensors file by name.

    Raises:
        ValueError: another kind of file, or one that cannot be read.
    """
    try:
        if file.suffix == ".npz":
            with np.load(file, allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files}
        if file.suffix == ".safetensors":
            return load_file(file)
    except TypeError as error:  # of a type that NumPy has not
        raise ValueError(f"data.path={file}: {error}; save the arrays as float32") from error
    except Exception as error:
        if "Object arrays" in str(error):
            raise ValueError(f"data.path={file} holds an array of Python objects: save numbers, as float32") from error
        raise ValueError(f"data.path={file} cannot be read: {str(error).splitlines()[0]}") from error
    raise ValueError(f"data.path={file}: arrays are read from .npz and .safetensors files, not '{file.suffix}'")

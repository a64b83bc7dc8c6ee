"""A multilayer perceptron over a table with numbers and embedded categories."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from metagradient.models.options import ACTIVATIONS, pick
from metagradient.models.transposed import TransposedLinear


class TableMLP(nn.Module):
    """Numbers, and an embedding of each category's code, into a multilayer perceptron.

    Maps [n, F] to [n, classes]. A column of codes is rounded to whole numbers, and so has no derivative; 0, the unknown
    value, has a vector of its own.

    Args:
        input_shape: (F,).
        classes: outputs.
        categories: of each column the number of its codes, 0 of numbers (`Splits.category_sizes`); empty: all numbers.
        hidden: one width per hidden layer; none: a linear map.
        activation: gelu, relu, sigmoid or tanh.
        width: of an embedding; None: half the codes, at most 16.

    Raises:
        ValueError: an unknown activation, inputs that are no table, sizes of other columns.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        classes: int,
        categories: Sequence[int] = (),
        hidden: Sequence[int] = (128,),
        activation: str = "gelu",
        width: int | None = None,
    ) -> None:
        super().__init__()
        if len(input_shape) != 1:
            raise ValueError(
                f"model=table_mlp reads tables [n, F], not inputs of shape {list(input_shape)}: set model=mlp"
            )
        if categories and len(categories) != input_shape[0]:
            raise ValueError(f"categories gives the sizes of {len(categories)} columns, and there are {input_shape[0]}")
        act = pick("activation", activation, ACTIVATIONS)
        sizes = list(categories) or [0] * input_shape[0]
        self.numbers = [i for i, size in enumerate(sizes) if not size]
        self.coded = [i for i, size in enumerate(sizes) if size]
        widths = [width or min(16, (sizes[i] + 1) // 2) for i in self.coded]
        self.embeddings = nn.ModuleList(nn.Embedding(sizes[i], w) for i, w in zip(self.coded, widths, strict=True))
        layers: list[nn.Module] = []
        around = [len(self.numbers) + sum(widths), *hidden]
        for inputs, outputs in pairwise(around):
            layers += [nn.Linear(inputs, outputs), act()]
        self.perceptron = nn.Sequential(*layers, TransposedLinear(around[-1], classes))

    def forward(self, x: Tensor) -> Tensor:
        """[n, F] to [n, classes]."""
        embedded = [e(x[:, i].round().long()) for i, e in zip(self.coded, self.embeddings, strict=True)]
        return self.perceptron(torch.cat([x[:, self.numbers], *embedded], dim=1))

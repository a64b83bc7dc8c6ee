"""A linear layer for few outputs, laid out the other way round."""

import torch
from torch import Tensor, nn


class TransposedLinear(nn.Linear):
    """`nn.Linear` computed as (W x^T + b)^T: the same map on [n, in], the result stored class by class.

    For a handful of outputs this is what a CPU wants: the softmax over 10 classes runs along rows of n numbers
    instead of along n rows of 10, and in a batched pull of many cotangents every product folds into one large matrix
    product. Not for inputs with more than two dimensions.
    """

    def forward(self, input: Tensor) -> Tensor:
        if self.bias is None:
            return torch.mm(self.weight, input.T).T
        return torch.addmm(self.bias.unsqueeze(1), self.weight, input.T).T

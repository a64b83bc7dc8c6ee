"""How products of float32 matrices are computed on a GPU: in float32, or in parts of fewer bits."""

import torch

PRODUCTS = ("highest", "high", "medium")
"""float32; TF32 or three products of bfloat16 parts; bfloat16. Each as of `torch.set_float32_matmul_precision`."""


def set_products(precision: str) -> None:
    """Products of float32 matrices, and convolutions, which torch computes in TF32 unless it is told not to.

    Args:
        precision: one of PRODUCTS.
    """
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.allow_tf32 = precision != "highest"

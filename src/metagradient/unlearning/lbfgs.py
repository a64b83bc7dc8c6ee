"""A quasi-Newton Hessian from a few secant pairs: compact L-BFGS on flat vectors."""

from __future__ import annotations

import torch
from torch import Tensor


class SecantPairs:
    """The last m pairs (s, y = H s) and the BFGS matrix B that they define, never formed.

    With S = [s_1 .. s_m], Y = [y_1 .. y_m] (oldest first) and sigma = y_m . s_m / s_m . s_m, BFGS from sigma I gives

        B v = sigma v - [Y, sigma S] M^-1 [Y^T v; sigma S^T v],   M = [[-D, L^T], [L, sigma S^T S]],

    D the diagonal and L the strictly lower part of S^T Y. B is symmetric, positive definite and meets the last secant
    equation, B s_m = y_m. M is 2m x 2m and is inverted once per pair, on the device, so a product is three small
    matrix-vector products.

    Source: Byrd, Nocedal & Schnabel 1994, representations of quasi-Newton matrices.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._s: list[Tensor] = []
        self._y: list[Tensor] = []
        self._factors: Tensor | None = None  # [2m, P]: Y, sigma S
        self._middle: Tensor | None = None  # [2m, 2m]: M^-1
        self._sigma: float = 0.0

    def __len__(self) -> int:
        return len(self._s)

    @property
    def ready(self) -> bool:
        """Whether all m pairs are there."""
        return len(self) == self.most

    @property
    def length(self) -> float:
        """|s| of the last pair."""
        return float(self._s[-1].norm())

    @property
    def curvature(self) -> float:
        """The largest |y| / |s| of the pairs."""
        return max(float(y.norm() / s.norm()) for s, y in zip(self._s, self._y, strict=True))

    def push(self, s: Tensor, y: Tensor) -> bool:
        """Add a pair if its curvature s . y is positive and finite; the oldest makes room. False: it was refused."""
        curvature, length = float(s @ y), float(s @ s)
        if not (curvature > 0 and length > 0 and curvature < float("inf")):
            return False
        self._s, self._y = [*self._s, s][-self.most :], [*self._y, y][-self.most :]
        while not self._factorise():  # pairs that are linearly dependent to rounding
            self._s, self._y = self._s[1:], self._y[1:]
        return True

    def product(self, v: Tensor) -> Tensor:
        """B v, [P]."""
        assert self._factors is not None
        assert self._middle is not None
        inner = self._middle @ (self._factors @ v)
        return torch.addmv(v, self._factors.T, inner, beta=self._sigma, alpha=-1)

    def _factorise(self) -> bool:
        s, y = torch.stack(self._s), torch.stack(self._y)
        gram, cross = (s @ s.T).double(), (s @ y.T).double()
        sigma = float(cross[-1, -1] / gram[-1, -1])
        lower = cross.tril(-1)
        top = torch.cat([-torch.diag(cross.diagonal()), lower.T], dim=1)
        middle, failed = torch.linalg.inv_ex(torch.cat([top, torch.cat([lower, sigma * gram], dim=1)]))
        usable = not int(failed) and bool(middle.isfinite().all())
        if not usable and len(self) > 1:
            return False
        self._sigma, self._factors, self._middle = sigma, torch.cat([y, sigma * s]), middle.to(s.dtype)
        return True

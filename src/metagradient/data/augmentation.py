"""Training-time augmentation: functions of a batch's fields and of its step's generator."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class RandomShift:
    """Each image moved by up to `pixels` in either direction, zeros where it came from."""

    pixels: int = 2

    def __post_init__(self) -> None:
        if self.pixels < 1:
            raise ValueError(f"the shift must be at least 1 pixel; got {self.pixels}")

    def __call__(self, fields: dict[str, Tensor], rng: torch.Generator) -> dict[str, Tensor]:
        x = fields["x"]
        n, height, width = len(x), x.shape[-2], x.shape[-1]
        windows = F.pad(x, [self.pixels] * 4).unfold(-2, height, 1).unfold(-2, width, 1)
        # [n, C, 2k + 1, 2k + 1, H, W]: every window of every image, as a view
        by = torch.randint(2 * self.pixels + 1, (2, n), generator=rng, device=x.device)
        shifted = windows[torch.arange(n, device=x.device), :, by[0], by[1]]
        return {**fields, "x": shifted}


@dataclass(frozen=True)
class GaussianNoise:
    """Independent normal noise on every pixel, clipped to [0, 1]."""

    sd: float = 0.1

    def __call__(self, fields: dict[str, Tensor], rng: torch.Generator) -> dict[str, Tensor]:
        x = fields["x"]
        noise = torch.randn(x.shape, generator=rng, device=x.device, dtype=x.dtype)
        return {**fields, "x": (x + self.sd * noise).clamp(0, 1)}

"""ResNet-9, the CIFAR speed-run network, with every choice that decides its metasmoothness as a switch."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from metagradient.models.options import ACTIVATIONS, Scale, pick
from metagradient.models.transposed import TransposedLinear

_ACTIVATIONS = {name: ACTIVATIONS[name] for name in ("gelu", "relu")}
_POOLINGS: dict[str, Callable[[int], nn.Module]] = {"avg": nn.AvgPool2d, "max": nn.MaxPool2d}
_NORMS = {"before": True, "after": False}
_SMALLEST = 8  # three poolings halve the image: 8 -> 1


class _Residual(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class ResNet9(nn.Module):
    """ResNet-9: 3x3 stages of 1, 2, 4 and 8 times `width` channels, residual blocks in the second and fourth.

    Maps images [n, in_channels, H, W] to logits [n, classes], for H, W >= 8; eight convolutions without bias,
    each with a batch normalisation, and one linear map, also without bias. The defaults are the smooth
    variant of the metagradient paper; each switch stands alone.

    Args:
        in_channels: channels of the images.
        classes: number of logits.
        width: channels of the first stage: 64 is the original, 8 or 16 do on a CPU.
        pooling: "avg" or "max": a maximum jumps from one pixel to another.
        activation: "gelu" or "relu".
        norm: "before" or "after" the activation.
        logit_scale: multiplies the logits: 0.1 is "logits / 10".

    Raises:
        ValueError: an unknown name, or an image that is too small.

    Source: D. Page, "How to train your ResNet" (2018); the smooth variant: arXiv 2503.13751.
    """

    def __init__(
        self,
        in_channels: int = 3,
        classes: int = 10,
        width: int = 64,
        pooling: str = "avg",
        activation: str = "gelu",
        norm: str = "before",
        logit_scale: float = 0.1,
    ) -> None:
        super().__init__()
        pool = pick("pooling", pooling, _POOLINGS)
        act = pick("activation", activation, _ACTIVATIONS)
        norm_first = pick("norm", norm, _NORMS)

        def conv(inputs: int, outputs: int) -> nn.Sequential:
            # No bias: the batch normalisation brings one.
            convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
            batch_norm = nn.BatchNorm2d(outputs)
            return nn.Sequential(convolution, *((batch_norm, act()) if norm_first else (act(), batch_norm)))

        def residual(channels: int) -> _Residual:
            return _Residual(nn.Sequential(conv(channels, channels), conv(channels, channels)))

        self.stages = nn.Sequential(
            conv(in_channels, width),
            nn.Sequential(conv(width, 2 * width), pool(2), residual(2 * width)),
            nn.Sequential(conv(2 * width, 4 * width), pool(2)),
            nn.Sequential(conv(4 * width, 8 * width), pool(2), residual(8 * width)),
        )
        self.pooling = pooling
        self.head = nn.Sequential(TransposedLinear(8 * width, classes, bias=False), Scale(logit_scale))

    def forward(self, images: Tensor) -> Tensor:
        """Logits [n, classes] of images [n, in_channels, H, W]."""
        if min(images.shape[-2:]) < _SMALLEST:
            size = "x".join(map(str, images.shape[-2:]))
            raise ValueError(f"ResNet9 needs images of at least 8x8 pixels; got {size}; set for example model=mlp")
        features = self.stages(images)
        # mean and amax, not the adaptive poolings: those have no deterministic gradient on CUDA.
        pooled = features.mean((2, 3)) if self.pooling == "avg" else features.amax((2, 3))
        return self.head(pooled)


def resnet9(
    input_shape: Sequence[int],
    classes: int,
    width: int = 64,
    pooling: str = "avg",
    activation: str = "gelu",
    norm: str = "before",
    logit_scale: float = 0.1,
) -> ResNet9:
    """`ResNet9` for images of shape `input_shape` = (channels, H, W): see there."""
    return ResNet9(input_shape[0], classes, width, pooling, activation, norm, logit_scale)

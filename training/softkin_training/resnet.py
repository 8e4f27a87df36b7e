"""ResNet-18 for small images (He, Zhang, Ren, Sun 2016, "Deep Residual Learning for Image Recognition").

Four stages of two basic blocks (fig. 5, left) with 64, 128, 256 and 512 channels, the last three halving the map. For
images of CIFAR's size the stem is one 3x3 convolution without pooling (section 4.2), and shortcuts that change shape
are 1x1 convolutions (option B). With 10 classes and 3 channels it has 11.17 million parameters.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

STAGES = (64, 128, 256, 512)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch normalisation, added to the input: `relu(conv(relu(conv(x))) + shortcut(x))`.

    Args:
        channels: of the input.
        out: channels of the output.
        stride: of the first convolution and of the shortcut.
    """

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            _conv(channels, out, 3, stride), nn.BatchNorm2d(out), nn.ReLU(), _conv(out, out, 3), nn.BatchNorm2d(out)
        )
        self.shortcut = (
            nn.Identity()
            if stride == 1 and channels == out
            else nn.Sequential(_conv(channels, out, 1, stride), nn.BatchNorm2d(out))
        )

    def forward(self, x: Tensor) -> Tensor:
        """`[B, out, H', W']` of `x`, `[B, channels, H, W]`."""
        return torch.relu(self.residual(x) + self.shortcut(x))


def resnet18_blocks(channels: int) -> tuple[dict[str, nn.Module], int]:
    """The hidden blocks `layer1` to `layer4`, the stem being part of the first, and the channels of the last.

    Args:
        channels: of the images.
    """
    stem = [_conv(channels, STAGES[0], 3), nn.BatchNorm2d(STAGES[0]), nn.ReLU()]
    blocks: dict[str, nn.Module] = {}
    width = STAGES[0]
    for i, out in enumerate(STAGES, start=1):
        stage = [BasicBlock(width, out, 1 if i == 1 else 2), BasicBlock(out, out, 1)]
        blocks[f"layer{i}"] = nn.Sequential(*(stem if i == 1 else []), *stage)
        width = out
    return blocks, width


def _conv(channels: int, out: int, size: int, stride: int = 1) -> nn.Conv2d:
    """Without bias, which the batch normalisation after it would undo; initialised for ReLU (He et al. 2015)."""
    conv = nn.Conv2d(channels, out, size, stride, padding=size // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv

"""A residual network that two CPU cores train on CIFAR-10 in minutes: what docs/decisions/0024 and 0027 look at.

    PYTHONPATH=benchmarks softkin-train run cifar10 --set model.kind=import --set model.path=small_resnet:Net ...

Three stages of two basic blocks with 16, 32 and 64 channels (He, Zhang, Ren, Sun 2016, section 4.2, n = 2).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from softkin_training.resnet import BasicBlock

STAGES = (16, 32, 64)


class Net(nn.Module):
    """Standardised images `[B, 3, H, W]` to logits `[B, 10]`; hidden layers `layer1` to `layer3`."""

    def __init__(self) -> None:
        super().__init__()
        width = STAGES[0]
        first = nn.Conv2d(3, width, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(first.weight, mode="fan_out", nonlinearity="relu")
        self.stem = nn.Sequential(first, nn.BatchNorm2d(width), nn.ReLU())
        stages = []
        for out in STAGES:
            stages.append(nn.Sequential(BasicBlock(width, out, 1 if out == width else 2), BasicBlock(out, out, 1)))
            width = out
        self.layer1, self.layer2, self.layer3 = stages
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = nn.Linear(width, 10)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch does not type it

    def forward(self, x: Tensor) -> Tensor:
        """The logits."""
        h = self.stem(x.contiguous(memory_format=torch.channels_last))
        logits: Tensor = self.fc(self.pool(self.layer3(self.layer2(self.layer1(h)))))
        return logits

"""Networks that a user might bring, fit ones and unfit ones, to be imported by path."""

from __future__ import annotations

import torch
from torch import nn

ALREADY_MADE = nn.Linear(2, 2)


class SmallNet(nn.Module):
    """A convolutional network with batch norm, written without a thought of softkin."""

    def __init__(self, classes: int = 8, width: int = 8) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.dropout = nn.Dropout(0.1)
        self.classifier = nn.Sequential(nn.Linear(8 * width, 32), nn.ReLU(), nn.Linear(32, classes))

    def forward(self, x):
        """Logits."""
        return self.classifier(self.dropout(self.features(x).flatten(1)))


class Attentive(nn.Module):
    """A network of one layer of causal attention over the rows of 8x8 images, whose mask is a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.full((8, 8), -torch.inf).triu(1))
        self.keys, self.values = nn.Linear(8, 8), nn.Linear(8, 8)
        self.hidden = nn.Linear(64, 16)
        self.last = nn.Linear(16, 8)

    def forward(self, x):
        """Logits."""
        h = x.flatten(1, 2)
        weights = (h @ self.keys(h).mT + self.mask).softmax(-1)
        return self.last(self.hidden((weights @ self.values(h)).flatten(1)).relu())


class Unfit(nn.Module):
    """A small network on 8x8 images that goes wrong in one way.

    Args:
        fault: which way.
    """

    def __init__(self, fault: str = "none") -> None:
        super().__init__()
        self.fault = fault
        self.first = nn.Linear(64, 16)
        self.relu = nn.ReLU()
        self.pair = Pair()
        self.turned = Turned()
        self.unused = nn.Linear(2, 2)
        self.norm = nn.BatchNorm1d(16, track_running_stats=fault != "no running statistics")
        self.last = nn.Linear(16, 8)

    def forward(self, x):
        """Logits, more or less."""
        h = self.pair(self.relu(self.first(x.flatten(1))))[0]
        h = self.relu(self.turned(h).T)
        if self.fault == "no running statistics":
            h = self.norm(h)
        if self.fault == "random in evaluation":
            h = nn.functional.dropout(h, 0.5)
        if self.fault == "two outputs":
            return self.last(h), h
        if self.fault == "two outputs in training" and self.training:
            return self.last(h), h
        if self.fault == "fails":
            raise ValueError("nothing works today")
        return self.last(h)


class Pair(nn.Module):
    """Hands on two tensors."""

    def forward(self, x):
        """A tuple."""
        return x, x


class Turned(nn.Module):
    """Hands on rows along the last axis."""

    def forward(self, x):
        """The transpose."""
        return x.T


class Wider(nn.Module):
    """A hidden layer that has another shape in training."""

    def __init__(self) -> None:
        super().__init__()
        self.both = Doubled()
        self.last = nn.Linear(64, 8)

    def forward(self, x):
        """Logits."""
        return self.last(self.both(x.flatten(1))[:, :64])


class Doubled(nn.Module):
    """Hands on everything twice while training."""

    def forward(self, x):
        """Twice as wide in training."""
        return torch.cat([x, x], dim=1) if self.training else x


class Lazy(nn.Module):
    """Sizes that only the first call settles."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.LazyLinear(8)

    def forward(self, x):
        """Logits."""
        return self.last(x.flatten(1))


def frozen():
    """Nothing to train."""
    return SmallNet().requires_grad_(False)


def no_network():
    """Something else."""
    return [1, 2, 3]

"""What training and export need of a network: raw input in, logits and hidden layers by name out.

Preprocessing is inside, so that an export carries it. Shapes: B rows; raw input `[B, F]`, `[B, H, W]` or
`[B, H, W, C]`, uint8 or float, exactly as the source stores it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Classifier(nn.Module, ABC):
    """A network with named hidden layers.

    Args:
        hidden_layers: their names from input to output.
        image: whether the network takes `[B, C, H, W]` (True) or `[B, F]` (False).
        mean: subtracted from the raw input; must broadcast against one raw row.
        std: divides it, likewise; > 0.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, hidden_layers: Sequence[str], *, image: bool, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.hidden_layers = tuple(hidden_layers)
        """Names of the hidden layers from input to output."""
        self.image = image
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[B, K]` of raw rows `x`."""
        return self.forward_with_hidden(x)[0]

    @abstractmethod
    def forward_with_hidden(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits `[B, K]` and, by name, what each hidden layer hands on.

        Args:
            x: `[B, ...]` raw rows.

        Returns:
            Logits, and the activations, unflattened: `[B, width]` for a dense layer, `[B, channels, H', W']` for a
            convolutional one.
        """

    def preprocess(self, x: Tensor) -> Tensor:
        """Raw rows, standardised in float32: `[B, C, H, W]` for images, else `[B, F]`."""
        x = (x.to(torch.float32) - self.mean) / self.std
        if not self.image:
            return x.flatten(1)
        return x.unsqueeze(1) if x.ndim == 3 else x.permute(0, 3, 1, 2)


class BlockClassifier(Classifier):
    """A chain of named hidden blocks and a head; what a block hands on is after the nonlinearity (and pooling).

    Args:
        blocks: name -> block, from input to output.
        head: hidden activations of the last block -> logits.
        image: whether blocks take `[B, C, H, W]` (True) or `[B, F]` (False).
        mean: subtracted from the raw input; must broadcast against one raw row.
        std: divides it, likewise; > 0.
    """

    def __init__(
        self, blocks: dict[str, nn.Module], head: nn.Module, *, image: bool, mean: Tensor, std: Tensor
    ) -> None:
        super().__init__(tuple(blocks), image=image, mean=mean, std=std)
        self.blocks = nn.ModuleDict(blocks)
        self.head = head

    def forward_with_hidden(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits `[B, K]` and, by name, what each hidden block hands on."""
        h = self.preprocess(x)
        hidden = {}
        for name, block in self.blocks.items():
            h = hidden[name] = block(h)
        return self.head(h), hidden

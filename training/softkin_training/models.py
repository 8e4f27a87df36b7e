"""Classifiers with named hidden layers, raw input in and preprocessing inside, so that an export carries it.

Shapes: B rows; raw input `[B, F]`, `[B, H, W]` or `[B, H, W, C]`, uint8 or float, exactly as the source stores it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from softkin.errors import DataError
from softkin_training.config import ModelConfig


class Classifier(nn.Module):
    """A chain of named hidden blocks and a linear head.

    Args:
        blocks: name -> block, from input to output.
        head: hidden activations of the last block -> logits.
        image: whether blocks take `[B, C, H, W]` (True) or `[B, F]` (False).
        mean: subtracted from the raw input; must broadcast against one raw row.
        std: divides it, likewise; > 0.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, blocks: dict[str, nn.Module], head: nn.Module, *, image: bool, mean: Tensor, std: Tensor
    ) -> None:
        super().__init__()
        self.hidden_layers = tuple(blocks)
        """Names of the hidden layers from input to output; the last is the one before the logits."""
        self.blocks = nn.ModuleDict(blocks)
        self.head = head
        self.image = image
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[B, K]` of raw rows `x`."""
        return self.forward_with_hidden(x)[0]

    def forward_with_hidden(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits `[B, K]` and, by name, what each hidden block hands on.

        Args:
            x: `[B, ...]` raw rows.

        Returns:
            Logits, and the activations after the nonlinearity (and pooling), unflattened: `[B, width]` for a dense
            layer, `[B, channels, H', W']` for a convolutional one.
        """
        h = self._preprocess(x)
        hidden = {}
        for name, block in self.blocks.items():
            h = hidden[name] = block(h)
        return self.head(h), hidden

    def _preprocess(self, x: Tensor) -> Tensor:
        x = (x.to(torch.float32) - self.mean) / self.std
        if not self.image:
            return x.flatten(1)
        return x.unsqueeze(1) if x.ndim == 3 else x.permute(0, 3, 1, 2)


def build_model(
    model: ModelConfig, input_shape: Sequence[int], num_classes: int, mean: ArrayLike, std: ArrayLike
) -> Classifier:
    """Make the untrained classifier of a recipe, from torch's current random state.

    Args:
        model: kind and widths.
        input_shape: one raw row without the batch axis: `[F]`, `[H, W]` or `[H, W, C]`.
        num_classes: K, at least 2.
        mean: scalar, or broadcastable to `input_shape`; see `input_statistics`.
        std: likewise, > 0.

    Raises:
        DataError: a cnn for rows that are not images, or images too small for it.
    """
    shape = tuple(int(n) for n in input_shape)
    build = _mlp if model.kind == "mlp" else _cnn
    blocks, width = build(model, shape)
    head = nn.Sequential(nn.Dropout(model.dropout), nn.Linear(width, num_classes))
    constants = {k: torch.as_tensor(np.asarray(v, dtype=np.float32)) for k, v in {"mean": mean, "std": std}.items()}
    classifier = Classifier(blocks, head, image=model.kind == "cnn", **constants)
    # A third faster on CPU than the default layout; names and values of the activations do not change.
    if model.kind == "cnn":
        classifier.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch does not type it
    return classifier


def input_statistics(x: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of raw rows `[n, ...]` as `build_model` takes them.

    Per feature for `[n, F]`, one pair for `[n, H, W]`, per channel for `[n, H, W, C]`. Where nothing varies std is 1.
    """
    axes = {2: (0,), 3: (0, 1, 2), 4: (0, 1, 2)}[x.ndim]
    mean, std = x.mean(axis=axes, dtype=np.float64), x.std(axis=axes, dtype=np.float64)
    return np.asarray(mean), np.asarray(np.where(std > 0, std, 1.0))


def _mlp(model: ModelConfig, shape: tuple[int, ...]) -> tuple[dict[str, nn.Module], int]:
    blocks: dict[str, nn.Module] = {}
    width = math.prod(shape)
    for i, (name, out) in enumerate(zip(model.hidden_layers, model.hidden, strict=True)):
        drop = [nn.Dropout(model.dropout)] if i else []
        blocks[name] = nn.Sequential(*drop, nn.Linear(width, out), nn.ReLU())
        width = out
    return blocks, width


def _cnn(model: ModelConfig, shape: tuple[int, ...]) -> tuple[dict[str, nn.Module], int]:
    if len(shape) not in (2, 3):
        raise DataError(f"model.kind = 'cnn' needs rows [H, W] or [H, W, C], these are {list(shape)}; use kind = 'mlp'")
    height, width, channels = (*shape, 1)[:3]
    blocks: dict[str, nn.Module] = {}
    for name, out in zip(model.hidden_layers, model.channels, strict=False):
        if min(height, width) < 2:
            raise DataError(
                f"model.channels has {len(model.channels)} layers, each halving the image; {shape[0]}x{shape[1]} "
                f"allows {len(blocks)}"
            )
        # No batch norm: with it far outliers look like inliers more often (docs/decisions/0004). No in-place ReLU:
        # activations are kept for the loss.
        conv = nn.Conv2d(channels, out, kernel_size=3, padding=1)
        blocks[name] = nn.Sequential(conv, nn.ReLU(), nn.MaxPool2d(2))
        height, width, channels = height // 2, width // 2, out
    dense = nn.Linear(channels * height * width, model.dense)
    blocks["dense"] = nn.Sequential(nn.Flatten(), nn.Dropout(model.dropout), dense, nn.ReLU())
    return blocks, model.dense

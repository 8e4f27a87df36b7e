"""The classifier of a recipe: built-in networks, or one of your own.

Shapes: B rows; raw input `[B, F]`, `[B, H, W]` or `[B, H, W, C]`, uint8 or float, exactly as the source stores it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn

from softkin.errors import DataError
from softkin_training.classifier import BlockClassifier, Classifier
from softkin_training.model_config import ModelConfig
from softkin_training.own_model import HookedClassifier, import_network
from softkin_training.resnet import resnet18_blocks
from softkin_training.rows import Rows

__all__ = ["Classifier", "build_model", "input_statistics"]


def build_model(
    model: ModelConfig,
    input_shape: Sequence[int],
    num_classes: int,
    mean: ArrayLike,
    std: ArrayLike,
    *,
    layers: Sequence[str] = (),
) -> Classifier:
    """Make the untrained classifier of a recipe, from torch's current random state.

    Args:
        model: kind, and widths or import path.
        input_shape: one raw row without the batch axis: `[F]`, `[H, W]` or `[H, W, C]`.
        num_classes: K, at least 2.
        mean: scalar, or broadcastable to `input_shape`; see `input_statistics`.
        std: likewise, > 0.
        layers: hidden layers to hook; read only where kind = 'import', the others know theirs.

    Raises:
        DataError: a convolutional network for rows that are not images, or images too small for it; a network of
            your own that cannot take the rows, or whose logits do not fit the classes.
        RecipeError: a network of your own cannot be imported or made, or lacks a layer; says which it has.
    """
    shape = tuple(int(n) for n in input_shape)
    constants = {k: torch.as_tensor(np.asarray(v, dtype=np.float32)) for k, v in {"mean": mean, "std": std}.items()}
    if model.kind == "import":
        network = import_network(model.path, model.arguments)
        if not model.standardize:
            constants = {"mean": torch.tensor(0.0), "std": torch.tensor(1.0)}
        hooked = HookedClassifier(network, layers, image=len(shape) > 1, **constants)
        hooked.prove(shape, num_classes)
        return hooked
    build = {"mlp": _mlp, "cnn": _cnn, "resnet18": _resnet18}[model.kind]
    blocks, pooling, width = build(model, shape)
    head = nn.Sequential(*pooling, nn.Dropout(model.dropout), nn.Linear(width, num_classes))
    classifier = BlockClassifier(blocks, head, image=model.kind != "mlp", **constants)
    # A third faster on CPU than the default layout; names and values of the activations do not change.
    if model.kind != "mlp":
        classifier.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch does not type it
    return classifier


def input_statistics(x: Rows | NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of raw rows `[n, ...]` as `build_model` takes them.

    Per feature for `[n, F]`, one pair for `[n, H, W]`, per channel for `[n, H, W, C]`. Where nothing varies that
    float32 can tell, std is 1: what rounding leaves is no unit. Rows are read in blocks, twice, wherever they lie;
    equal rows give equal numbers.
    """
    rows = x if isinstance(x, Rows) else Rows.of(x)
    axes = (0,) if len(rows.row_shape) == 1 else (0, 1, 2)
    count = len(rows) * (1 if len(rows.row_shape) == 1 else math.prod(rows.row_shape[:2]))
    mean = np.asarray(sum(b.sum(axis=axes, dtype=np.float64) for b in rows.blocks()) / count)
    squares = sum(np.square(b - mean).sum(axis=axes) for b in rows.blocks())
    std = np.sqrt(np.asarray(squares / count))
    least = np.maximum(np.finfo(np.float32).eps * np.abs(mean), np.finfo(np.float32).tiny)
    return mean, np.asarray(np.where(std > least, std, 1.0))


Parts = tuple[dict[str, nn.Module], list[nn.Module], int]
"""Hidden blocks by name, what stands before the head's linear layer, and its width."""


def _mlp(model: ModelConfig, shape: tuple[int, ...]) -> Parts:
    blocks: dict[str, nn.Module] = {}
    width = math.prod(shape)
    for i, (name, out) in enumerate(zip(model.hidden_layers, model.hidden, strict=True)):
        drop = [nn.Dropout(model.dropout)] if i else []
        blocks[name] = nn.Sequential(*drop, nn.Linear(width, out), nn.ReLU())
        width = out
    return blocks, [], width


def _cnn(model: ModelConfig, shape: tuple[int, ...]) -> Parts:
    height, width, channels = _image_shape(model, shape)
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
    return blocks, [], model.dense


def _resnet18(model: ModelConfig, shape: tuple[int, ...]) -> Parts:
    blocks, width = resnet18_blocks(_image_shape(model, shape)[2])
    return blocks, [nn.AdaptiveAvgPool2d(1), nn.Flatten()], width


def _image_shape(model: ModelConfig, shape: tuple[int, ...]) -> tuple[int, int, int]:
    if len(shape) not in (2, 3):
        raise DataError(
            f"model.kind = {model.kind!r} needs rows [H, W] or [H, W, C], these are {list(shape)}; use kind = 'mlp'"
        )
    height, width, channels = (*shape, 1)[:3]
    return height, width, channels

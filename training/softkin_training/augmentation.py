"""Random changes of training images, by kornia.

Everything random comes from torch's own generator on the CPU, whose state a checkpoint holds: a training that goes on
after a kill draws the same changes as one that was not stopped. Each process changes its own rows.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from softkin.errors import DataError
from softkin_training.data_config import AugmentationConfig
from softkin_training.row_cache import optional_package

Augment = Callable[[Tensor], Tensor]


def make_augmentation(config: AugmentationConfig, row_shape: tuple[int, ...]) -> Augment | None:
    """A function that changes raw training rows as a recipe asks; None where it asks for nothing.

    Args:
        config: the recipe's section.
        row_shape: of one raw row, `[H, W]` or `[H, W, C]`.

    Returns:
        Changes `[B, H, W]` or `[B, H, W, C]` of any number type to float32 of the same shape, scale and device.

    Raises:
        RecipeError: kornia is not installed.
        DataError: the rows are not images.
    """
    if config == AugmentationConfig():
        return None
    if len(row_shape) not in (2, 3):
        raise DataError(
            f"augmentation: rows are {list(row_shape)}; it needs images [H, W] or [H, W, C], so leave the section out"
        )
    kornia: Any = optional_package("kornia.augmentation", "augmentation", "the section [augmentation]")
    steps: list[Any] = []
    if config.crop_padding:
        steps.append(partial(_cropped, kornia.RandomCrop(size=row_shape[:2], padding=config.crop_padding)))
    if config.horizontal_flip:
        steps.append(kornia.RandomHorizontalFlip(p=config.horizontal_flip))
    if config.rotation_degrees:
        steps.append(kornia.RandomRotation(degrees=config.rotation_degrees, p=1.0))

    @torch.no_grad()
    def augment(x: Tensor) -> Tensor:
        images = x.to(torch.float32)
        images = images.unsqueeze(1) if x.ndim == 3 else images.permute(0, 3, 1, 2)
        for step in steps:
            images = step(images)
        return images.squeeze(1) if x.ndim == 3 else images.permute(0, 2, 3, 1)

    return augment


def _cropped(crop: Any, images: Tensor) -> Tensor:
    """The crops that kornia draws of `[B, C, H, W]`, made by one gather: its loop over images keeps a GPU waiting."""
    left, right, top, bottom = crop.compute_padding(images.shape)
    corner_B2 = crop.forward_parameters(images.shape)["src"][:, 0].long().to(images.device, non_blocking=True)
    padded_BHWC = nn.functional.pad(images.permute(0, 2, 3, 1), (0, 0, left, right, top, bottom))
    height, width = crop.flags["size"]
    rows_BH1 = (corner_B2[:, 1:] + torch.arange(height, device=images.device)).unsqueeze(2)
    columns_B1W = (corner_B2[:, :1] + torch.arange(width, device=images.device)).unsqueeze(1)
    image_B11 = torch.arange(len(images), device=images.device)[:, None, None]
    return padded_BHWC[image_B11, rows_BH1, columns_B1W].permute(0, 3, 1, 2)

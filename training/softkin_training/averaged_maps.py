"""Feature maps averaged over squares, as torch computes it: for a detector's representations and for the loss."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from softkin_training.projection import CHANNELS_FIRST, channels_last


def averaged(z: Tensor, side: int) -> Tensor:
    """Means over squares of maps, at the far edges over what is left of a square; in float32 at least.

    Args:
        z: `[B, C, H, W]`, or `[B, H, W, C]` where `projection.channels_last` says so.
        side: of the squares, see `projection.pooling`; 1 = `z` itself, of whatever shape.

    Returns:
        `[B, C, ceil(H / side), ceil(W / side)]`.
    """
    if side == 1:
        return z
    if channels_last(z.shape[1:]):
        z = z.permute(CHANNELS_FIRST)
    z = z.to(torch.promote_types(z.dtype, torch.float32))
    return avg_pool2d(z, side, ceil_mode=True, count_include_pad=False)

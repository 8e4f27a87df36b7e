"""The soft nearest neighbor loss (SNNL) of Frosst, Papernot & Hinton 2019 (arXiv:1902.01889): the public functions.

Low = classes apart, high = classes entangled; chance (labels tell nothing) is the limit of infinite temperature.

    loss          soft_nearest_neighbor_loss, and LayeredSnnl for training
                                                  (here and in layer_losses; maths in snnl_math, distances)
    temperature   searched, followed, or learned as published                 (snnl_temperature, published_snnl)
    analysis      entanglement, entanglement_between, chance_level, minimize_temperature       (entanglement)

Everything is computed in float32 at least, also under autocast; float64 stays float64. Products of float32 follow
torch.set_float32_matmul_precision.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from softkin.errors import InvalidInputError
from softkin.mass import Metric
from softkin_training.averaged_maps import averaged
from softkin_training.cuda_graph import Replayed
from softkin_training.distances import check_metric, distances_of_products, flat_rows, pairwise_distances
from softkin_training.entanglement import (
    Entanglement,
    chance_level,
    entanglement,
    entanglement_between,
    minimize_temperature,
)
from softkin_training.layer_losses import LossesAndWeights, layer_losses, losses_and_weights
from softkin_training.processes import Gathering
from softkin_training.projection import pooling
from softkin_training.published_snnl import published_loss, step_inverse
from softkin_training.snnl_math import Neighbours, loss_of_distances
from softkin_training.snnl_temperature import TemperatureMinimum, search

__all__ = [
    "Entanglement",
    "LayeredSnnl",
    "TemperatureMinimum",
    "TemperatureMode",
    "chance_level",
    "entanglement",
    "entanglement_between",
    "minimize_temperature",
    "soft_nearest_neighbor_loss",
]

TemperatureMode = Literal["minimized", "fixed", "learned"]


def soft_nearest_neighbor_loss(
    z: Tensor, y: Tensor, *, temperature: float | Tensor, metric: Metric = "squared_euclidean"
) -> Tensor:
    """SNNL of one batch at a given temperature (eq. 1), differentiable in `z` and `temperature`.

    Args:
        z: `[B, ...]` activations, flattened per row.
        y: `[B]` integer labels.
        temperature: > 0, in units of the metric; a float, or a tensor of one element.
        metric: `squared_euclidean`: ||a - b||^2; `cosine`: 1 - cos(a, b), where a row of zeros has distance 1 from
            every other and gets no gradient.

    Returns:
        Scalar, the mean over rows that have a partner of their class; 0 with zero gradient where none has.

    Raises:
        InvalidInputError: shapes that do not fit, an unknown metric, or a temperature that is not one positive number.
    """
    distances_BB = pairwise_distances(flat_rows(z, y), metric)
    t = torch.as_tensor(temperature, dtype=distances_BB.dtype, device=distances_BB.device)
    if t.numel() != 1 or not bool(t > 0):
        raise InvalidInputError("temperature", f"is {t.tolist()}; it must be one positive number")
    if not len(y):
        return distances_BB.sum()
    return loss_of_distances(distances_BB.unsqueeze(0), Neighbours.of(y), t.reshape(1)).squeeze(0)


class LayeredSnnl(nn.Module):
    """SNNL of several layers on one batch, for training: shared masks, and one temperature per layer.

    * `minimized`: the first batch searches each layer's minimiser (eq. 2); every later batch moves log T by
      `newton_steps` clipped Newton steps before the loss is taken there. T is a constant in the gradient, which at the
      minimiser is exact (envelope theorem).
    * `fixed`: `fixed_temperature` on every batch.
    * `learned`: the authors' published algorithm with its known faults, for repetition: see `published_snnl`.

    Under several processes (an initialised torch.distributed group) every process must call it with its share of the
    batch, and gets the loss of the whole batch; gradients are right where they are averaged over processes, as
    DistributedDataParallel does. The temperatures are buffers: `state_dict` carries them.

    Args:
        layers: names of the layers.
        metric: see `soft_nearest_neighbor_loss`.
        temperature: one of the three modes.
        fixed_temperature: > 0, in units of the metric; read only where fixed.
        initial_temperature: > 0, T0; read only where learned.
        temperature_step: >= 0, the step on t = T0 / T per batch, 0 keeps T0; read only where learned.
        newton_steps: per batch, at least 1; read only where minimized.
        max_side: maps `[B, C, H, W]`, or `[B, H, W, C]`, with more rows or columns are averaged down to at most so many
            before, as a detector's representations are; 0 = none is, as published.

    Raises:
        InvalidInputError: an unknown metric, or an unknown mode of `temperature`.
    """

    temperature: Tensor
    """`[layers]` float64, in units of the metric; NaN before the first batch where minimized."""
    inverse: Tensor
    """`[layers]` float64, t = T0 / T; only where learned."""

    def __init__(
        self,
        layers: Iterable[str],
        *,
        metric: Metric = "cosine",
        temperature: TemperatureMode = "minimized",
        fixed_temperature: float = 100.0,
        initial_temperature: float = 100.0,
        temperature_step: float = 0.1,
        newton_steps: int = 1,
        max_side: int = 0,
    ) -> None:
        super().__init__()
        self.layers, self.max_side = tuple(layers), max_side
        self.metric: Metric = check_metric(metric)
        if temperature not in (modes := get_args(TemperatureMode)):
            raise InvalidInputError("temperature", f"is {temperature!r}; allowed: {modes}")
        self.mode: TemperatureMode = temperature
        self.initial_temperature, self.temperature_step = initial_temperature, temperature_step
        self._newton_steps = newton_steps if temperature == "minimized" else 0
        self._replayed = Replayed(partial(losses_and_weights, newton_steps=self._newton_steps))
        self._known = False
        start = {"minimized": math.nan, "fixed": fixed_temperature, "learned": initial_temperature}[temperature]
        self.register_buffer("temperature", torch.full((len(self.layers),), start, dtype=torch.float64))
        if temperature == "learned":
            self.register_buffer("inverse", torch.ones(len(self.layers), dtype=torch.float64))

    def forward(self, hidden: Mapping[str, Tensor], y: Tensor) -> dict[str, Tensor]:
        """Take the loss of every layer, moving the temperatures first.

        Args:
            hidden: name -> `[B, ...]` activations; must hold every one of `layers`.
            y: `[B]` integer labels.

        Returns:
            Name -> scalar loss at that layer's temperature.
        """
        gather = Gathering.of(y)
        all_y = gather(y)
        rows = [gather(self._rows(hidden[name], y)) for name in self.layers]
        if self.mode == "learned":
            with torch.autocast(y.device.type, enabled=False):
                losses = [self._learned(i, pairwise_distances(r, self.metric), all_y) for i, r in enumerate(rows)]
            return dict(zip(self.layers, losses, strict=True))
        if not rows:
            return {}
        # Reading the temperatures waits for the GPU: not once all are known.
        self._known = self._known or bool(torch.isfinite(self.temperature).all())
        losses_L = layer_losses(rows, self.metric == "cosine", partial(self._of_products, all_y))
        return dict(zip(self.layers, losses_L.unbind(), strict=True))

    def temperatures(self) -> dict[str, float]:
        """Temperature of each layer, in units of the metric; NaN before the first batch where minimized."""
        return dict(zip(self.layers, self.temperature.tolist(), strict=True))

    def _rows(self, z: Tensor, y: Tensor) -> Tensor:
        side, _ = pooling(z.shape[1:], self.max_side)
        return flat_rows(averaged(z, side), y)

    def _of_products(self, y: Tensor, products_LBB: Tensor, inverse_norm_LB: Tensor | None) -> LossesAndWeights:
        if self._known:
            found = LossesAndWeights(*self._replayed(products_LBB, inverse_norm_LB, self.temperature, y))
            if self._newton_steps:
                self.temperature[:] = found.temperature
            return found
        self._search(distances_of_products(products_LBB, inverse_norm_LB), Neighbours.of(y))
        temperature_L = self.temperature.nan_to_num(1.0)  # where nobody has a partner the loss is 0 at any temperature
        return losses_and_weights(products_LBB, inverse_norm_LB, temperature_L, y, newton_steps=0)

    def _search(self, distances_LBB: Tensor, neighbours: Neighbours) -> None:
        if bool(neighbours.num_valid > 0):
            found = [search(d_BB.double(), neighbours).temperature for d_BB in distances_LBB]
            self.temperature[:] = self.temperature.new_tensor(found)

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        self._known = False

    def _learned(self, i: int, distances_BB: Tensor, y: Tensor) -> Tensor:
        t0, step = self.initial_temperature, self.temperature_step
        t = step_inverse(distances_BB, y, self.inverse[i], initial_temperature=t0, step=step)
        self.inverse[i], self.temperature[i] = t, t0 / t
        return published_loss(distances_BB, y, t0 / t)

"""The soft nearest neighbor loss (SNNL) of Frosst, Papernot & Hinton 2019 (arXiv:1902.01889) and its temperature.

Low = classes apart, high = classes entangled; chance (labels tell nothing) is the limit of infinite temperature.
Shapes: B rows of a batch, D activations of a row. `same` = of the same class and not the row itself.

    l(T)     = -mean_i log( sum_same exp(-d_ij / T) / sum_others exp(-d_ik / T) )                            (eq. 1)
    l'       = min over T of l(T)                                                                            (eq. 2)
    d l / d log T = sum_ik W_ik e_ik                     with e = d / T and W_ik = (p_all - p_same)_ik / #valid rows
    d2l / d log T2 = mean_i(Var_all e - Var_same e) - d l / d log T

Everything is computed in float32 at least, also under autocast; float64 stays float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from softkin.errors import InvalidInputError
from softkin.mass import METRICS, Metric

LOG_TEMPERATURE_SPAN = math.log(1e3)
"""Temperatures from 1e-3 to 1e3 times the typical distance are searched."""
GRID_POINTS = 31
MAX_NEWTON_STEP = 0.7
"""Largest change of log T per step: a factor of two."""


class TemperatureMinimum(NamedTuple):
    """The minimiser of the loss over temperature."""

    temperature: float
    value: float
    at_bound: bool
    """The loss still falls at the end of the range: fully entangled (upper end) or fully apart (lower end)."""


@dataclass(frozen=True)
class Entanglement:
    """How mixed the classes of one set of rows are. Compare only values of equal row counts and class mix."""

    value: float
    """SNNL at the temperature that minimises it (eq. 2)."""
    temperature: float
    """That temperature, in units of the metric."""
    chance: float
    """The value if labels told nothing."""
    ratio: float
    """value / chance: 0 = apart, 1 = fully entangled; NaN where no row has a partner or chance is 0 (one class)."""
    valid_rows: int
    """Rows with at least one other row of their class; only they count."""
    at_bound: bool
    """The minimiser lies at the end of the searched range."""


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
        InvalidInputError: shapes that do not fit, an unknown metric, or a temperature that is not positive.
    """
    rows_BD, offset_B = _embed(z, y, metric)
    t = torch.as_tensor(temperature, dtype=rows_BD.dtype, device=rows_BD.device).reshape(())
    if not bool(t > 0):
        raise InvalidInputError("temperature", f"is {float(t)}; it must be positive")
    loss, _ = _fused(rows_BD, t, offset_B, _Neighbours.of(y), None)
    return loss


def entanglement(z: Tensor, y: Tensor, *, metric: Metric = "squared_euclidean") -> Entanglement:
    """Measure the entanglement of a layer: SNNL minimised over temperature (eq. 2), beside its chance level.

    Takes O(B^2) memory and float64; not differentiable (train with `LayeredSnnl`, or with
    `soft_nearest_neighbor_loss` at the temperature of `minimize_temperature`, which has the same gradient).

    Args:
        z: `[B, ...]` activations, flattened per row.
        y: `[B]` integer labels.
        metric: see `soft_nearest_neighbor_loss`; the value does not depend on the scale of `z` for either.
    """
    least = minimize_temperature(z, y, metric=metric)
    valid_rows, chance = _Neighbours.of(y).num_valid, chance_level(y)
    ratio = least.value / chance if chance > 0 else math.nan
    return Entanglement(least.value, least.temperature, chance, ratio, valid_rows, least.at_bound)


def entanglement_between(a: Tensor, b: Tensor, *, metric: Metric = "squared_euclidean") -> Entanglement:
    """Entanglement of two sets of rows, `[N, ...]` and `[M, ...]`, such as inliers and outliers: ratio 1 = mixed."""
    y = torch.cat([torch.zeros(len(a), dtype=torch.long), torch.ones(len(b), dtype=torch.long)])
    return entanglement(torch.cat([a.flatten(1), b.flatten(1)]), y.to(a.device), metric=metric)


def chance_level(y: Tensor) -> float:
    """SNNL at infinite temperature: mean of log((B - 1) / (n_y - 1)) over rows with a partner; 0 without any."""
    _, group_B, counts = torch.unique(y, return_inverse=True, return_counts=True)
    partners_B = counts[group_B].double() - 1
    valid = partners_B > 0
    return float(torch.log((len(y) - 1) / partners_B[valid]).mean()) if bool(valid.any()) else 0.0


@torch.no_grad()
def minimize_temperature(z: Tensor, y: Tensor, *, metric: Metric = "squared_euclidean") -> TemperatureMinimum:
    """Find the temperature that minimises SNNL: a log grid of 1e-3 to 1e3 times the median distance, then Newton.

    The loss is not convex in T, so the grid finds the basin; Newton steps on log T refine inside it.
    Where all distances are 0 every temperature is equal and 1 is returned.

    Args:
        z: `[B, ...]` activations, flattened per row.
        y: `[B]` integer labels.
        metric: see `soft_nearest_neighbor_loss`.
    """
    rows_BD, offset_B = _embed(z.double(), y, metric)
    neighbours = _Neighbours.of(y)
    return _search(_distances(rows_BD, offset_B), neighbours)


class LayeredSnnl(nn.Module):
    """SNNL of several layers on one batch, for training: shared masks, one fused pass and one temperature per layer.

    With `temperature="minimized"` the first batch searches each layer's minimiser; every later batch moves log T by
    `newton_steps` clipped Newton steps before the loss is taken there. T is a constant in the gradient, which at the
    minimiser is exact (envelope theorem). The temperatures are buffers: `state_dict` carries them.

    Args:
        layers: names of the layers.
        metric: see `soft_nearest_neighbor_loss`.
        temperature: `minimized` or `fixed`.
        fixed_temperature: > 0, in units of the metric; read only where fixed.
        newton_steps: per batch, at least 1.
    """

    temperature: Tensor

    def __init__(
        self,
        layers: Iterable[str],
        *,
        metric: Metric = "cosine",
        temperature: Literal["minimized", "fixed"] = "minimized",
        fixed_temperature: float = 100.0,
        newton_steps: int = 1,
    ) -> None:
        super().__init__()
        self.layers = tuple(layers)
        self.metric: Metric = metric
        self.minimized = temperature == "minimized"
        self.newton_steps = newton_steps
        start = math.nan if self.minimized else fixed_temperature
        self.register_buffer("temperature", torch.full((len(self.layers),), start, dtype=torch.float64))

    def forward(self, hidden: Mapping[str, Tensor], y: Tensor) -> dict[str, Tensor]:
        """Take the loss of every layer, moving the temperatures first.

        Args:
            hidden: name -> `[B, ...]` activations; must hold every one of `layers`.
            y: `[B]` integer labels.

        Returns:
            Name -> scalar loss at that layer's temperature.
        """
        neighbours = _Neighbours.of(y)
        losses = {}
        for i, name in enumerate(self.layers):
            rows_BD, offset_B = _embed(hidden[name], y, self.metric)
            start = self.temperature[i].to(rows_BD.dtype)
            refine = self._refine(neighbours) if self.minimized else None
            losses[name], reached = _fused(rows_BD, start, offset_B, neighbours, refine)
            if neighbours.num_valid:
                self.temperature[i] = reached
        return losses

    def temperatures(self) -> dict[str, float]:
        """Temperature of each layer, in units of the metric; NaN before the first batch."""
        return {name: float(t) for name, t in zip(self.layers, self.temperature, strict=True)}

    def _refine(self, neighbours: _Neighbours) -> Callable[[Tensor, Tensor], Tensor]:
        def refine(distances_BB: Tensor, start: Tensor) -> Tensor:
            if not bool(torch.isfinite(start)):
                return start.new_tensor(_search(distances_BB.double(), neighbours).temperature)
            log_t = start.log()
            # Bounds follow the batch, so a run cannot drift into temperatures where the kernel is flat or 0 everywhere.
            typical = distances_BB.mean().clamp_min(torch.finfo(start.dtype).tiny).log()
            for _ in range(self.newton_steps):
                _, slope, curvature = _derivatives(distances_BB, neighbours, log_t.exp())
                # |curvature| makes every step a descent; on the plateaus at both ends the quotient tends to +-1.
                step = -slope / curvature.abs().clamp_min(torch.finfo(start.dtype).tiny)
                log_t = log_t + step.nan_to_num(0.0).clamp(-MAX_NEWTON_STEP, MAX_NEWTON_STEP)
                log_t = log_t.clamp(typical - LOG_TEMPERATURE_SPAN, typical + LOG_TEMPERATURE_SPAN)
            return log_t.exp()

        return refine


@dataclass(frozen=True)
class _Neighbours:
    """What the labels of a batch say, shared by all layers."""

    same: Tensor
    """`[B, B]`, True for pairs of one class, False on the diagonal."""
    valid: Tensor
    """`[B]`, True for rows with a partner."""
    num_valid: int

    @staticmethod
    def of(y: Tensor) -> _Neighbours:
        same_BB = y.unsqueeze(0) == y.unsqueeze(1)
        same_BB.fill_diagonal_(False)
        valid_B = same_BB.any(dim=1)
        return _Neighbours(same_BB, valid_B, int(valid_B.sum()))


def _embed(z: Tensor, y: Tensor, metric: Metric) -> tuple[Tensor, Tensor | None]:
    """Rows `[B, D]` whose squared Euclidean distance is the metric, and `[B]` what each row adds to its distances."""
    if y.ndim != 1 or z.ndim < 2 or len(z) != len(y):
        shapes = f"are {tuple(z.shape)} and {tuple(y.shape)}"
        raise InvalidInputError("z, y", f"{shapes}; they must be [B, ...] activations and [B] labels")
    if metric not in METRICS:
        raise InvalidInputError("metric", f"is {metric!r}; allowed: {METRICS}")
    if z.ndim == 4 and z.is_contiguous(memory_format=torch.channels_last):
        z = z.permute(0, 2, 3, 1)  # distances ignore the order of features: take memory's, and save a copy
    with torch.autocast(z.device.type, enabled=False):
        rows_BD = z.flatten(1).to(torch.promote_types(z.dtype, torch.float32))
        if metric == "squared_euclidean":
            return rows_BD, None
        norm_B1 = torch.linalg.vector_norm(rows_BD, dim=1, keepdim=True)
        zero_B1 = norm_B1 <= torch.finfo(rows_BD.dtype).tiny
        # 1 - cos = ||u - v||^2 / 2 for unit rows; the division is guarded inside the where, else its gradient is NaN.
        scale_B1 = torch.where(zero_B1, 0.0, math.sqrt(0.5) / torch.where(zero_B1, 1.0, norm_B1))
        return rows_BD * scale_B1, 0.5 * zero_B1.squeeze(1).to(rows_BD.dtype)


def _distances(rows_BD: Tensor, offset_B: Tensor | None) -> Tensor:
    """`[B, B]` squared Euclidean distances plus offsets, at least 0, exactly 0 on the diagonal."""
    centred_BD = rows_BD - rows_BD.mean(dim=0)  # a common offset would eat the digits of the expanded form
    half_B = centred_BD.square().sum(dim=1)
    distances_BB = torch.addmm(half_B.unsqueeze(1) + half_B.unsqueeze(0), centred_BD, centred_BD.T, alpha=-2)
    distances_BB.clamp_min_(0)
    if offset_B is not None:
        distances_BB += offset_B.unsqueeze(1) + offset_B.unsqueeze(0)
    return distances_BB.fill_diagonal_(0)


def _softmaxes(distances_BB: Tensor, neighbours: _Neighbours, temperature: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, and the probabilities `[B, B]` of picking a neighbour among all others and among the same class."""
    logits_BB = (distances_BB / -temperature).fill_diagonal_(-math.inf)
    same_BB = logits_BB.masked_fill(~neighbours.same, -math.inf)
    total_B, own_B = logits_BB.logsumexp(dim=1), same_BB.logsumexp(dim=1)
    # An invalid row has no same-class mass: +inf turns its probabilities into 0, where -inf would give NaN.
    own_B = torch.where(neighbours.valid, own_B, math.inf)
    loss_B = torch.where(neighbours.valid, total_B - own_B, 0.0)
    loss = loss_B.sum() / neighbours.num_valid
    return loss, (logits_BB - total_B.unsqueeze(1)).exp_(), (same_BB - own_B.unsqueeze(1)).exp_()


def _derivatives(distances_BB: Tensor, neighbours: _Neighbours, temperature: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, and its first and second derivative in log T."""
    loss, all_BB, same_BB = _softmaxes(distances_BB, neighbours, temperature)
    scaled_BB = distances_BB / temperature

    def moments(p_BB: Tensor) -> tuple[Tensor, Tensor]:
        mean_B = (p_BB * scaled_BB).sum(dim=1)
        return mean_B, (p_BB * (scaled_BB - mean_B.unsqueeze(1)).square_()).sum(dim=1)

    (mean_all_B, var_all_B), (mean_same_B, var_same_B) = moments(all_BB), moments(same_BB)
    valid_B = neighbours.valid
    slope = (mean_all_B - mean_same_B)[valid_B].mean()
    return loss, slope, (var_all_B - var_same_B)[valid_B].mean() - slope


def _search(distances_BB: Tensor, neighbours: _Neighbours) -> TemperatureMinimum:
    num_rows = len(distances_BB)
    off_diagonal = distances_BB[~torch.eye(num_rows, dtype=torch.bool, device=distances_BB.device)]
    typical = float(off_diagonal.median()) if num_rows > 1 else 0.0
    if typical == 0 and num_rows > 1:  # more than half the pairs coincide: the others set the scale
        typical = float(off_diagonal.mean())
    if neighbours.num_valid == 0 or not typical > 0:
        one = distances_BB.new_tensor(1.0)
        value = float(_softmaxes(distances_BB, neighbours, one)[0]) if neighbours.num_valid else 0.0
        return TemperatureMinimum(1.0, value, at_bound=False)

    def evaluate(log_t: float) -> tuple[float, float, float]:
        temperature = distances_BB.new_tensor(math.exp(log_t))
        value, slope, curvature = _derivatives(distances_BB, neighbours, temperature)
        return float(value), float(slope), float(curvature)

    centre, spacing = math.log(typical), 2 * LOG_TEMPERATURE_SPAN / (GRID_POINTS - 1)
    grid = [centre - LOG_TEMPERATURE_SPAN + i * spacing for i in range(GRID_POINTS)]
    best_value, best = min((evaluate(u)[0], u) for u in grid)
    low, high = max(best - spacing, grid[0]), min(best + spacing, grid[-1])
    log_t = best
    for _ in range(40):
        value, slope, curvature = evaluate(log_t)
        if value <= best_value:
            best_value, best = value, log_t
        low, high = (log_t, high) if slope < 0 else (low, log_t)
        newton = log_t - slope / curvature if curvature > 0 else math.nan
        step_to = newton if low < newton < high else (low + high) / 2
        if abs(step_to - log_t) < 1e-9:
            break
        log_t = step_to
    at_bound = min(best - grid[0], grid[-1] - best) < 1e-6
    return TemperatureMinimum(math.exp(best), best_value, at_bound)


class _FusedSnnl(torch.autograd.Function):
    """Forward and hand-written backward: one GEMM each, and only the rows and one `[B, B]` matrix are kept."""

    @staticmethod
    def forward(
        ctx: Any,
        rows_BD: Tensor,
        temperature: Tensor,
        offset_B: Tensor | None,
        neighbours: _Neighbours,
        refine: Callable[[Tensor, Tensor], Tensor] | None,
    ) -> tuple[Tensor, Tensor]:
        """Return the loss and the temperature it was taken at."""
        with torch.autocast(rows_BD.device.type, enabled=False):
            distances_BB = _distances(rows_BD, offset_B)
            reached = temperature.clone() if refine is None else refine(distances_BB, temperature)
            loss, weight_BB, same_BB = _softmaxes(distances_BB, neighbours, reached)
            weight_BB -= same_BB
            weight_BB *= (neighbours.valid.to(rows_BD.dtype) / neighbours.num_valid).unsqueeze(1)
            slope = (weight_BB * distances_BB).sum() / reached.square()  # dl/dT
        ctx.save_for_backward(rows_BD, weight_BB, reached, slope)
        ctx.mark_non_differentiable(reached)
        return loss, reached

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        rows_BD, weight_BB, reached, slope = ctx.saved_tensors
        with torch.autocast(rows_BD.device.type, enabled=False):
            # dl/dd = -W/T and dd_ik/dz_i = 2 (z_i - z_k): two products with the symmetrised weights.
            pull_BB = (weight_BB + weight_BB.T) * (-2 * grad / reached)
            centred_BD = rows_BD - rows_BD.mean(dim=0)
            rows_grad = pull_BB.sum(dim=1, keepdim=True) * centred_BD - pull_BB @ centred_BD
        return rows_grad, grad * slope, None, None, None


def _fused(
    rows_BD: Tensor,
    temperature: Tensor,
    offset_B: Tensor | None,
    neighbours: _Neighbours,
    refine: Callable[[Tensor, Tensor], Tensor] | None,
) -> tuple[Tensor, Tensor]:
    if neighbours.num_valid == 0:
        return (rows_BD * 0).sum(), temperature.detach()
    loss, reached = _FusedSnnl.apply(rows_BD, temperature, offset_B, neighbours, refine)  # type: ignore[no-untyped-call]
    return loss, reached

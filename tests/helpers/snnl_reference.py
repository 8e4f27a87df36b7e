"""The soft nearest neighbor loss by loops, and batches to try it on."""

from __future__ import annotations

import math

import numpy as np
import torch

METRICS = ["squared_euclidean", "cosine"]


def batch(num_rows=24, width=5, num_classes=3, scale=1.0, seed=0, dtype=torch.float64):
    """Rows whose classes overlap."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(num_classes, (num_rows,), generator=generator)
    z = torch.randn(num_rows, width, generator=generator, dtype=torch.float64) + y.unsqueeze(1) * 0.7
    return (z * scale).to(dtype), y


def distance(a, b, metric):
    """One distance, from its definition."""
    if metric == "squared_euclidean":
        return sum((x - w) ** 2 for x, w in zip(a, b, strict=True))
    norms = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(w * w for w in b))
    return 1 - (sum(x * w for x, w in zip(a, b, strict=True)) / norms if norms else 0.0)


def looped_loss(z, y, temperature, metric):
    """Equation 1 by loops; rows without a partner left out."""
    z, y = z.double().flatten(1).tolist(), y.tolist()
    terms = []
    for i, row in enumerate(z):
        others = [k for k in range(len(z)) if k != i]
        exponents = {k: -distance(row, z[k], metric) / temperature for k in others}
        same = [k for k in others if y[k] == y[i]]
        if same:
            terms.append(
                np.logaddexp.reduce([exponents[k] for k in others]) - np.logaddexp.reduce([exponents[k] for k in same])
            )
    return float(np.mean(terms)) if terms else 0.0


CASES = {
    "plain": batch(),
    "two rows": (torch.tensor([[0.0, 1.0], [2.0, 0.5]], dtype=torch.float64), torch.tensor([1, 1])),
    "one wide class": batch(num_classes=1, width=40),
    "singletons among pairs": (batch(num_rows=7)[0], torch.tensor([0, 1, 1, 2, 3, 3, 4])),
    "nobody has a partner": (batch(num_rows=4)[0], torch.arange(4)),
    "duplicates": (batch(num_rows=6)[0].repeat(3, 1), torch.tensor([0, 1, 2, 0, 1, 2]).repeat(3)),
    "all rows equal": (torch.ones(6, 3, dtype=torch.float64), torch.tensor([0, 0, 0, 1, 1, 2])),
    "a row of zeros": (torch.cat([batch(num_rows=8)[0], torch.zeros(2, 5)]).double(), torch.tensor([0, 1] * 5)),
    "norm 1e4": batch(scale=1e4 / 3),
    "far from the origin": (batch()[0] + 1e3 * torch.tensor([1, -1, 2, -2, 1]), batch()[1]),
    "images": (batch(width=12)[0].reshape(24, 3, 2, 2), batch(width=12)[1]),
}


def published_loss_by_loops(z, y, temperature, metric):
    """The authors' loss at a temperature, and its gradient in each row and in 1 / temperature; plain Python floats.

    z: lists of floats, y: ints. Every derivative is written out from the equations of `published_snnl`.
    """
    eps, n = 1e-5, len(z)
    d = [[0.0 if i == k else distance(z[i], z[k], metric) for k in range(n)] for i in range(n)]
    f = [[0.0 if i == k else math.exp(-d[i][k] / temperature) for k in range(n)] for i in range(n)]
    row_sum = [eps + sum(f[i]) for i in range(n)]
    picked = [sum(f[i][k] for k in range(n) if y[k] == y[i]) / row_sum[i] for i in range(n)]
    loss = -sum(math.log(eps + picked[i]) for i in range(n)) / n

    gradient, by_inverse = [[0.0] * len(z[0]) for _ in range(n)], 0.0
    for i in range(n):
        for k in range(n):
            if i == k:
                continue
            by_f = -((y[i] == y[k]) - picked[i]) / row_sum[i] / (eps + picked[i]) / n
            by_inverse += by_f * -d[i][k] * f[i][k]
            by_d = by_f * -f[i][k] / temperature
            for row, other in ((i, k), (k, i)):
                for j, slope in enumerate(distance_gradient(z[row], z[other], metric)):
                    gradient[row][j] += by_d * slope
    return loss, gradient, by_inverse


def distance_gradient(a, b, metric):
    """How one distance changes with `a`."""
    if metric == "squared_euclidean":
        return [2 * (x - w) for x, w in zip(a, b, strict=True)]
    norm_a, norm_b = (math.sqrt(sum(x * x for x in row)) for row in (a, b))
    cosine = sum(x * w for x, w in zip(a, b, strict=True)) / norm_a / norm_b
    return [(cosine * x / norm_a - w / norm_b) / norm_a for x, w in zip(a, b, strict=True)]


def published_step_by_loops(z, y, t, *, initial_temperature, step, metric):
    """One batch of the authors' algorithm: t moves down its gradient, then the loss is taken at T0 / t."""
    slope = published_loss_by_loops(z, y, initial_temperature / t, metric)[2] / initial_temperature
    t -= step * slope
    loss, gradient, _ = published_loss_by_loops(z, y, initial_temperature / t, metric)
    return loss, t, gradient

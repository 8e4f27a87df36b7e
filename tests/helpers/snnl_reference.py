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
    "far from the origin": (batch()[0] + 1e3, batch()[1]),
    "images": (batch(width=12)[0].reshape(24, 3, 2, 2), batch(width=12)[1]),
}

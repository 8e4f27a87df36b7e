"""Tickets of the stand-in detector, and what their answers must be."""

from __future__ import annotations

import numpy as np

from softkin.scores import Scores
from softkin.tickets import Ticket

ARRAYS = ("outlier_score", "p_value", "is_outlier", "predicted_class", "credibility", "confidence", "class_p_values")


def rows(n, offset=0):
    """Rows whose sums all differ."""
    return (np.arange(n * 6, dtype=np.float32) / 7 + offset).reshape(n, 2, 3)


def ticket(detector, x, *, guarantee="marginal", alpha=0.05, seed=None, **options):
    """A ticket with the rule that the request would get."""
    rule = detector.rule(alpha=alpha, guarantee=guarantee, smoothed=seed is not None)
    return Ticket(detector, x, rule, smoothing_seed=seed, **options)


def assert_same(found: Scores, expected: Scores):
    """Bit by bit; stage times apart."""
    for name in ARRAYS:
        a, b = getattr(found, name), getattr(expected, name)
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes()), name
    assert found.budget == expected.budget
    assert (found.neighbors is None) == (expected.neighbors is None)
    if found.neighbors is not None:
        assert found.neighbors.ids.tolist() == expected.neighbors.ids.tolist()
    assert (found.parts is None) == (expected.parts is None)
    if found.parts is not None:
        assert (found.parts.names, found.parts.values.tolist()) == (
            expected.parts.names,
            expected.parts.values.tolist(),
        )

"""Answers as Python objects."""

from __future__ import annotations

import numpy as np

from standin import StandIn


def test_answers_can_be_compared_and_kept_in_sets():
    """One answer equals itself alone: of arrays, equality by value would be an array of its own."""
    x = np.zeros((2, 2, 3), np.float32)
    one, other = StandIn().score(x, num_neighbors=2), StandIn().score(x, num_neighbors=2)

    assert one == one
    assert one != other
    assert one.neighbors != other.neighbors
    assert len({one, other, one}) == 2

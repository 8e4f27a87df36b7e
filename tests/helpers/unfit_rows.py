"""Rows that make no array, for scoring in process and over the wire."""

import numpy as np
import pytest

MASKED = "inputs: values of a masked array are hidden; give it filled, or leave such rows out"


class Elsewhere:
    """Like a tensor with gradients, which torch refuses in one way, or one on a GPU, which it refuses in another."""

    def __init__(self, error):
        self.error = error

    def __array__(self, dtype=None, copy=None):
        raise self.error


UNFIT_ROWS = [
    pytest.param(lambda x: [x[0], x[1][:-1]], "inputs: they make no array .*; give one, with rows", id="ragged"),
    pytest.param(
        lambda x: Elsewhere(RuntimeError("call detach() first")),
        r"inputs: they make no array \(call detach\(\) first\)",
        id="with gradients",
    ),
    pytest.param(
        lambda x: Elsewhere(TypeError("call cpu() first")),
        r"inputs: they make no array \(call cpu\(\) first\)",
        id="on a GPU",
    ),
    pytest.param(lambda x: np.ma.masked_less(x, x.max()), MASKED, id="masked"),
]
"""What is made of rows `[3, ...]` of float32, and what is said of it."""

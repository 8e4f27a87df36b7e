"""Rows that make no array, for scoring in process and over the wire."""

import numpy as np
import pytest

MASKED = "inputs: values of a masked array are hidden; give it filled, or leave such rows out"


class Elsewhere:
    """Like a tensor on a GPU, or one with gradients."""

    def __array__(self, dtype=None, copy=None):
        raise RuntimeError("call detach() first")


UNFIT_ROWS = [
    pytest.param(lambda x: [x[0], x[1][:-1]], "inputs: they make no array .*; give one, with rows", id="ragged"),
    pytest.param(lambda x: Elsewhere(), r"inputs: they make no array \(call detach\(\) first\)", id="elsewhere"),
    pytest.param(lambda x: np.ma.masked_less(x, x.max()), MASKED, id="masked"),
]
"""What is made of rows `[3, ...]` of float32, and what is said of it."""

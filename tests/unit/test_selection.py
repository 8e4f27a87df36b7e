"""Selection over a batch: Benjamini and Hochberg, against SciPy and by brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import false_discovery_control

from softkin.selection import fewest_selectable, selection_threshold


def by_definition(p, rate):
    """The largest p_(k) with p_(k) m <= k rate, by a loop over the sorted p-values."""
    threshold = 0.0
    for k, value in enumerate(sorted(p), start=1):
        if value * len(p) <= rate * k:
            threshold = value
    return threshold


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(1, 40), st.integers(0, 2**32), st.floats(0.011, 0.97), st.integers(0, 3))
def test_the_selection_is_that_of_benjamini_and_hochberg(m, n, seed, rate, strange):
    """Conformal p-values of n calibration rows, full of ties: the rows whose adjusted p-value is at most the rate."""
    rng = np.random.default_rng(seed)
    p = rng.integers(1, n + 2, m) / (n + 1)
    p[rng.random(m) < strange / 3] = 1 / (n + 1)
    adjusted = false_discovery_control(p, method="bh")
    if (np.abs(adjusted - rate) < 1e-12).any():
        return  # on the edge, where the last bit decides

    found = selection_threshold(p, rate)

    assert ((p <= found) == (adjusted <= rate)).all()
    assert found == by_definition(p, rate)


@settings(deadline=None)
@given(st.lists(st.floats(1e-9, 1), min_size=1, max_size=50), st.floats(0.01, 0.99), st.integers(0, 2**32))
def test_the_order_of_rows_does_not_matter(p, rate, seed):
    """A set of p-values has one threshold; 0 or one of them."""
    shuffled = np.random.default_rng(seed).permutation(p)

    found = selection_threshold(np.array(p), rate)

    assert found == selection_threshold(shuffled, rate) == by_definition(p, rate)
    assert found == 0 or found in p


def test_none_and_all_can_be_selected():
    """Nothing strange: threshold 0, below every p-value. Everything strange: the largest p-value."""
    assert selection_threshold(np.full(100, 0.06), 0.05) == 0.0
    assert selection_threshold(np.full(100, 0.04), 0.05) == 0.04
    assert selection_threshold(np.array([0.01, 0.02, 0.05]), 0.05) == 0.05


@pytest.mark.parametrize(("p", "expected"), [(0.05, 0.05), (np.nextafter(0.05, 1), 0.0), (1.0, 0.0)])
def test_a_batch_of_one_is_flagged_at_the_rate_itself(p, expected):
    """m = 1: the selection is the test p <= rate, inclusive."""
    assert selection_threshold(np.array([p]), 0.05) == expected


def test_a_step_that_fails_is_skipped_when_a_larger_one_holds():
    """Step-up: p_(1) = 0.04 > rate / m alone, yet selected with its mates."""
    assert selection_threshold(np.array([0.04, 0.045, 0.045, 0.9]), 0.1) == 0.045


@settings(deadline=None)
@given(st.integers(1, 400), st.integers(1, 12_000), st.sampled_from([0.01, 0.05, 0.1, 0.2, 1 / 3]))
@example(300, 9999, 0.01)
@example(150, 4999, 0.01)
@example(450, 4999, 0.01)
@example(3, 4, 0.2)  # the quotient is a little above 3, and 3 rows are enough
@example(189, 104, 0.05)  # it is 36, and 36 rows are one too few
def test_the_fewest_selectable_rows_are_those_of_trying(m, n, rate):
    """Exactly as the threshold compares, where m / (rate (n + 1)) is whole too; more than m: nothing ever is."""
    smallest = 1.0 / (n + 1.0)

    def selects(k):
        return selection_threshold(np.concatenate([np.full(k, smallest), np.ones(m - k)]), rate) >= smallest

    found = fewest_selectable(m, n, rate)

    assert found >= 1
    if found > m:
        assert not selects(m)
    else:
        assert selects(found)
        assert found == 1 or not selects(found - 1)

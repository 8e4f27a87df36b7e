"""p-values, alpha and the scale that fuses parts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from softkin import conformal
from softkin.errors import InvalidInputError

scores = st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=30)


@given(scores, scores)
def test_p_value_is_the_definition(calibration, tested):
    """(1 + number of calibration scores at least as large) / (n + 1), ties included."""
    found = conformal.p_values(np.array(tested), np.sort(calibration))

    n = len(calibration)
    expected = [(1 + sum(c >= s for c in calibration)) / (n + 1) for s in tested]
    assert found.tolist() == expected


@given(scores, scores)
def test_p_value_falls_as_the_score_rises_and_stays_in_range(calibration, tested):
    """Monotone, and in [1/(n+1), 1]."""
    p = conformal.p_values(np.sort(tested), np.sort(calibration))

    assert (np.diff(p) <= 0).all()
    assert p.min() >= conformal.smallest_p_value(len(calibration))
    assert p.max() <= 1


def test_an_infinite_score_gets_the_smallest_p_value():
    """A row without any mass is the strangest there is."""
    assert conformal.p_values(np.array([np.inf]), np.arange(9.0)).tolist() == [0.1]


@pytest.mark.parametrize("alpha", [0.0, 1.0, -1.0, 2.0, float("nan")])
def test_alpha_outside_the_open_unit_interval_is_refused(alpha):
    """The message has the value and the range."""
    with pytest.raises(InvalidInputError, match=r"alpha: got .*strictly in \(0, 1\)"):
        conformal.check_alpha(alpha, 100)


def test_alpha_below_the_smallest_p_value_is_refused_with_the_rows_needed():
    """Nothing could ever be flagged, so the caller is told how many rows would do."""
    with pytest.raises(
        InvalidInputError, match=r"99 calibration rows.*alpha >= 0\.01 or at least 999 calibration rows"
    ):
        conformal.check_alpha(0.001, 99)
    assert conformal.check_alpha(0.001, 999) == 0.001


def test_confidence_is_one_minus_the_second_largest_p():
    """With ties the second largest equals the largest; with one class there is no second."""
    p = np.array([[0.2, 0.9, 0.5], [0.7, 0.7, 0.1]])

    assert conformal.credibility(p).tolist() == [0.9, 0.7]
    np.testing.assert_allclose(conformal.confidence(p), [0.5, 0.3])
    assert conformal.confidence(p[:, :1]).tolist() == [1.0, 1.0]


@given(scores.filter(lambda s: len(s) >= 2), st.lists(st.floats(-20, 20), min_size=2, max_size=50))
def test_tail_surprise_is_monotone_finite_and_not_negative(reference, tested):
    """Ties and constant references included."""
    found = conformal.tail_surprise(np.sort(tested), np.sort(reference))

    assert np.isfinite(found).all()
    assert (found >= 0).all()
    assert (np.diff(found) >= 0).all()


def test_tail_surprise_is_standard_exponential_for_inliers_and_orders_far_outliers():
    """Mean 1 on fresh rows of the same law; past the reference it still grows."""
    rng = np.random.default_rng(0)
    reference = np.sort(rng.normal(size=20_000))

    assert conformal.tail_surprise(rng.normal(size=20_000), reference).mean() == pytest.approx(1.0, abs=0.03)
    far = conformal.tail_surprise(np.array([10.0, 20.0]), reference)
    assert far[1] > far[0] > np.log(20_000)

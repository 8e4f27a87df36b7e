"""p-values, alpha and the scale that fuses parts."""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_right
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import kstest

from softkin import conformal
from softkin.errors import InvalidInputError

LEVEL = 1e-4
"""Chance that a correct implementation fails one of the statistical tests."""

scores = st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=30)


def smoothed(score, calibration, u):
    """The definition of a smoothed p-value, by loops."""
    above = sum(c > score for c in calibration)
    equal = sum(c == score for c in calibration)
    return (above + u * (1 + equal)) / (len(calibration) + 1)


@given(scores, scores)
def test_p_value_is_the_definition(calibration, tested):
    """(1 + number of calibration scores at least as large) / (n + 1), ties included."""
    found = conformal.p_values(np.array(tested), np.sort(calibration))

    n = len(calibration)
    expected = [(1 + sum(c >= s for c in calibration)) / (n + 1) for s in tested]
    assert found.tolist() == expected


@settings(deadline=None)
@given(scores, scores, st.integers(0, 2**32))
def test_a_smoothed_p_value_is_the_definition(calibration, tested, seed):
    """(number larger + u (1 + number equal)) / (n + 1), ties included; never above the p-value without smoothing."""
    u = np.random.default_rng(seed).random(len(tested))

    found = conformal.p_values(np.array(tested), np.sort(calibration), u)

    assert found.tolist() == [smoothed(s, calibration, v) for s, v in zip(tested, u, strict=True)]
    assert (found <= conformal.p_values(np.array(tested), np.sort(calibration))).all()


@settings(deadline=None)
@given(scores, st.integers(0, 2**32))
def test_one_uniform_number_smooths_all_classes_of_a_row(calibration, seed):
    """u `[B, 1]` is broadcast over the scores `[B, C]`."""
    rng = np.random.default_rng(seed)
    tested, u = rng.integers(-6, 7, size=(4, 3)).astype(float), rng.random(4)

    found = conformal.p_values(tested, np.sort(calibration), u[:, None])

    assert found.tolist() == [
        [smoothed(s, calibration, v) for s in row] for row, v in zip(tested.tolist(), u, strict=True)
    ]


def test_the_smoothed_p_value_of_an_infinite_score_is_below_the_smallest_step():
    """No calibration row is above it, and only the row itself is equal."""
    assert conformal.p_values(np.array([np.inf]), np.arange(9.0), np.array([0.25])).tolist() == [0.025]


@pytest.mark.parametrize("u", [None, np.array([0.5])])
def test_a_score_that_is_no_number_is_a_fault_and_never_a_p_value(u):
    """It would sort past the end and pass for the strangest of all."""
    with pytest.raises(AssertionError):
        conformal.p_values(np.array([np.nan]), np.arange(9.0), u)


def test_no_rows_have_no_p_values():
    """Whatever shape holds none of them."""
    for shape in ((0,), (0, 3)):
        assert conformal.p_values(np.empty(shape), np.arange(3.0)).shape == shape


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


class_rows = st.lists(st.tuples(st.integers(-5, 5).map(float), st.integers(0, 3)), min_size=1, max_size=40)


@settings(deadline=None)
@given(class_rows, class_rows, st.booleans(), st.integers(0, 2**32))
def test_class_conditional_p_values_are_those_of_the_class_alone(calibration, tested, smooth, seed):
    """The definition among the calibration rows of the row's class; a class without any gives 1."""
    calibration = sorted(calibration)
    parts = conformal.ScoresByClass.of(
        np.array([a for a, _ in calibration]), np.array([b for _, b in calibration], np.int32), 4
    )
    s, j = np.array([r[0] for r in tested]), np.array([r[1] for r in tested], np.int32)
    u = np.random.default_rng(seed).random(len(s))

    found = conformal.class_conditional_p_values(s, j, parts, u if smooth else None)

    for i in range(len(s)):
        same = [a for a, b in calibration if b == j[i]]
        expected = smoothed(s[i], same, u[i]) if smooth else (1 + sum(a >= s[i] for a in same)) / (len(same) + 1)
        assert found[i] == expected
        assert smooth or same or found[i] == 1.0


def test_the_number_for_smoothing_depends_on_seed_and_row_alone():
    """Not on place, batch mates, memory layout or the array's strides; other seed or row, other number."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 4, 3)).astype(np.float32)
    order = rng.permutation(50)

    u = conformal.row_uniforms(7, x)

    assert u.shape == (50,)
    assert u.dtype == np.float64
    assert ((u > 0) & (u < 1)).all()
    assert conformal.row_uniforms(7, x[order]).tolist() == u[order].tolist()
    assert [conformal.row_uniforms(7, row[None]).item() for row in x] == u.tolist()
    assert conformal.row_uniforms(7, np.asfortranarray(x)).tolist() == u.tolist()
    assert conformal.row_uniforms(7, np.repeat(x, 2, axis=0)[::2]).tolist() == u.tolist()
    assert len({*u, *conformal.row_uniforms(8, x), *conformal.row_uniforms(2**64 - 1, x)}) == 150
    assert conformal.row_uniforms(np.int64(7), x).tolist() == u.tolist()


@pytest.mark.parametrize("seed", [0, 7, 2**64 - 1])
def test_the_number_for_smoothing_is_the_same_from_every_server_and_version(seed):
    """52 bits of a keyed hash, from the middle of their step: whoever gave a seed can have the verdict again."""
    row = np.array([1.5, -2.0], "<f4")
    digest = hashlib.blake2b(row.tobytes(), digest_size=8, key=seed.to_bytes(8, "little")).digest()

    expected = ((int.from_bytes(digest, "little") >> 12) + 0.5) / 2**52

    assert conformal.row_uniforms(seed, row[None]).item() == expected


def test_equal_bytes_get_equal_numbers_and_one_bit_more_another():
    """Copies of a row are smoothed alike; 0 and -0 differ in a bit."""
    x = np.array([[1.0, 0.0], [1.0, 0.0], [1.0, -0.0]], np.float32)

    a, b, c = conformal.row_uniforms(0, x)

    assert a == b != c


@pytest.mark.parametrize(("rows", "seeds"), [(1, 20_000), (20_000, 1), (100, 200)])
def test_the_numbers_for_smoothing_are_uniform(rows, seeds):
    """Over seeds for one row, over rows for one seed, and over both: Kolmogorov-Smirnov at the declared level."""
    x = np.arange(rows, dtype=np.int64)[:, None]

    u = np.concatenate([conformal.row_uniforms(seed, x) for seed in range(seeds)])

    assert kstest(u, "uniform").pvalue > LEVEL


@settings(deadline=None)
@given(st.integers(1, 3000), st.integers(0, 3001), st.integers(-2, 2))
@example(48, 1, 0)  # 1 / 49 * 49 rounds to less than 1
@example(9, 9, -1)  # the float below 9 / 10 times 10 rounds to 9
def test_rank_counts_the_p_values_at_most_alpha(n, k, steps):
    """As floating-point p-values compare: at k / (n + 1) exactly, and one or two floats beside it."""
    alpha = min(k, n + 1) / (n + 1)
    for _ in range(abs(steps)):
        alpha = float(np.nextafter(alpha, np.sign(steps)))
    alpha = min(max(alpha, 0.0), 1.0)

    assert conformal.rank(alpha, n) == sum(c / (n + 1) <= alpha for c in range(1, n + 2))


@settings(deadline=None)
@given(st.integers(1, 3000), st.floats(0, 1))
def test_rank_counts_the_p_values_at_most_any_alpha(n, alpha):
    """The same for an alpha that has nothing to do with n."""
    assert conformal.rank(alpha, n) == sum(c / (n + 1) <= alpha for c in range(1, n + 2))


@settings(deadline=None)
@given(st.floats(1e-9, 1))
@example(0.1234561)
def test_a_rate_is_rounded_up_by_at_most_a_step_of_its_sixth_digit(rate):
    """Never down: what a message names must be accepted."""
    step = 10.0 ** (math.floor(math.log10(rate)) - 5)

    assert 0 <= float(conformal.rounded_up(rate)) - rate <= step * (1 + 1e-6)


@settings(deadline=None)
@given(st.integers(1, 10**7))
def test_alpha_is_honoured_from_the_smallest_p_value_on(n):
    """1 / (n + 1) itself is accepted, the float below it is not, and the message's remedy is accepted too."""
    least = conformal.smallest_p_value(n)
    assert conformal.check_alpha(least, n) == least
    assert conformal.rank(least, n) == 1

    with pytest.raises(InvalidInputError) as e:
        conformal.check_alpha(float(np.nextafter(least, 0)), n)

    remedy = float(str(e.value).partition("use alpha >= ")[2].partition(" ")[0])
    assert conformal.check_alpha(remedy, n) == remedy
    assert Fraction(remedy) <= Fraction(least) * (1 + Fraction(1, 10**4))


@settings(deadline=None)
@given(st.one_of(st.integers(2, 10**9).map(lambda values: 1 / values), st.floats(1e-9, 0.999)), st.integers(-2, 2))
@example(1 / 49, 0)  # 1 / (1 / 49) rounds to more than 49
@example(1 / 10**7, -1)  # the float below needs one row more
def test_the_rows_needed_for_alpha_are_enough_and_one_fewer_is_not(alpha, steps):
    """The fewest rows that `check_alpha` accepts, also one or two floats beside 1 / (n + 1)."""
    for _ in range(abs(steps)):
        alpha = float(np.nextafter(alpha, np.sign(steps)))

    n = conformal.rows_needed(alpha)

    assert conformal.check_alpha(alpha, n) == alpha
    with pytest.raises(InvalidInputError, match=rf"or at least {n} calibration rows"):
        conformal.check_alpha(alpha, n - 1)


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
    with pytest.raises(InvalidInputError, match=r"alpha: got 4\.94066e-324"):
        conformal.check_alpha(5e-324, 99)


def test_confidence_is_one_minus_the_second_largest_p():
    """With ties the second largest equals the largest; with one class there is no second."""
    p = np.array([[0.2, 0.9, 0.5], [0.7, 0.7, 0.1]])

    assert conformal.credibility(p).tolist() == [0.9, 0.7]
    np.testing.assert_allclose(conformal.confidence(p), [0.5, 0.3])
    assert conformal.confidence(p[:, :1]).tolist() == [1.0, 1.0]
    many = np.random.default_rng(0).random((50, 1000))  # NumPy sorts shorter rows whole, whatever it is asked for
    np.testing.assert_allclose(conformal.confidence(many), [1 - sorted(row)[-2] for row in many.tolist()])


@given(scores.filter(lambda s: len(s) >= 2), st.lists(st.floats(-20, 20), min_size=2, max_size=50))
def test_tail_surprise_is_monotone_finite_and_not_negative(reference, tested):
    """Ties and constant references included; to the rounding of an interpolation."""
    found = conformal.tail_surprise(np.sort(tested), np.sort(reference))

    assert np.isfinite(found).all()
    assert (found >= 0).all()
    assert (np.diff(found) >= -1e-15).all()


@settings(deadline=None)
@given(st.lists(st.integers(-50, 50), min_size=2, max_size=40, unique=True), st.lists(st.floats(-60, 60), min_size=1))
def test_tail_surprise_is_the_log_p_value_joined_by_lines_with_an_exponential_tail(reference, tested):
    """By loops: at reference scores, between, below all of them, and above by the mean excess of the top tenth."""
    r, n = sorted(map(float, reference)), len(reference)
    at_reference = [-math.log(sum(v >= score for v in r) / (n + 1)) for score in r]
    top = r[int(0.9 * (n - 1)) :]
    excess = sum(v - top[0] for v in top) / len(top)

    found = conformal.tail_surprise(np.array(tested + r), np.array(r))

    for score, value in zip(tested + r, found, strict=True):
        if score <= r[0]:
            expected = 0.0
        elif score >= r[-1]:
            expected = at_reference[-1] + (score - r[-1]) / excess
        else:
            i = bisect_right(r, score) - 1
            share = (score - r[i]) / (r[i + 1] - r[i])
            expected = (1 - share) * at_reference[i] + share * at_reference[i + 1]
        assert value == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_tail_surprise_counts_reference_rows_of_the_same_score_as_no_less_strange():
    """Most rows may have one score, as the posterior of a network that is sure of everything."""
    reference = np.array([0.0] * 6 + [1.0] * 3)

    found = conformal.tail_surprise(np.array([-1.0, 0.0, 1e-9, 0.5, 1.0, 1.0 + 1e-9]), reference)

    on_the_line = -math.log(4 / 10), -math.log(3 / 10)
    expected = [0, 0, on_the_line[0], sum(on_the_line) / 2, on_the_line[1], math.log(10)]
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("rounding", [0.0, 1e-16, 1e-9])
@pytest.mark.parametrize("score", [0.0, 1.0, -700.0])
def test_tail_surprise_past_equal_reference_scores_grows_by_the_score_itself(score, rounding):
    """They have no excess to measure by; what rounding makes of one is none, or that part would be all there is."""
    reference = score + np.arange(9) * rounding

    found = conformal.tail_surprise(np.array([score + 2]), reference).item()

    assert found == pytest.approx(math.log(10) + 2, rel=1e-6)


def test_tail_surprise_is_standard_exponential_for_inliers_and_orders_far_outliers():
    """Mean 1 on fresh rows of the same law; past the reference it still grows."""
    rng = np.random.default_rng(0)
    reference = np.sort(rng.normal(size=20_000))

    assert conformal.tail_surprise(rng.normal(size=20_000), reference).mean() == pytest.approx(1.0, abs=0.03)
    far = conformal.tail_surprise(np.array([10.0, 20.0]), reference)
    assert far[1] > far[0] > np.log(20_000)

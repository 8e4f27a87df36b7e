"""Every guarantee: what it flags, what it states, and what it refuses with which words."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta

from softkin.certificate import certified_rank, smoothed_bound, smoothed_certified
from softkin.errors import InvalidInputError
from softkin.selection import fewest_selectable, selection_threshold
from softkin.verdicts import GUARANTEES, check_rule

N = 300
SIZES = (100, 140, 60)


def rule(guarantee, **changes):
    """A rule on 300 calibration rows in three classes."""
    return check_rule(guarantee, **{"alpha": 0.05, "calibration_size": N, "class_sizes": SIZES, **changes})


def quantile(k, n, confidence=0.95):
    """The bound of rank k, by SciPy."""
    return pytest.approx(beta.ppf(confidence, k, n + 1 - k), rel=1e-9)


def every_p(n):
    """All values that a p-value can take, rising."""
    return np.arange(1, n + 2) / (n + 1)


def test_the_guarantees_are_a_contract():
    """Flags, requests and pages name them; adding one is a decision."""
    assert GUARANTEES == ("marginal", "certified", "class_conditional", "false_discovery_rate")


@pytest.mark.parametrize("alpha", [0.05, 0.01, 15 / 301, 1 / 301, 0.999])
def test_marginal_flags_p_at_most_alpha_and_bounds_that_rank(alpha):
    """Inclusive; the bound is the quantile of the rank that alpha comes to."""
    p = every_p(N)

    found = rule("marginal", alpha=alpha).decide(p)

    k = int((p <= alpha).sum())
    assert found.is_outlier.tolist() == [v <= alpha for v in p]
    assert found.p_value_threshold == alpha
    assert found.false_alarm_bound == quantile(k, N)
    assert found.fewest_selectable is None


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("alpha", [0.02, 0.05, 0.5])
def test_certified_flags_as_many_ranks_as_the_certificate_allows(alpha, confidence):
    """The largest rank whose bound is at most alpha; never a larger bound than alpha."""
    p = every_p(N)

    found = rule("certified", alpha=alpha, confidence=confidence).decide(p)

    k = certified_rank(alpha, N, confidence)
    assert found.is_outlier.sum() == k
    assert found.p_value_threshold == k / (N + 1)
    assert found.false_alarm_bound == quantile(k, N, confidence)
    assert found.false_alarm_bound <= alpha < beta.ppf(confidence, k + 1, N - k)
    assert found.fewest_selectable is None


def test_class_conditional_flags_p_at_most_alpha_and_states_the_worst_class():
    """0.05 comes to rank 5 of 101, 7 of 141 and 3 of 61; the smallest class has the widest bound."""
    p = every_p(60)

    found = rule("class_conditional").decide(p)

    bounds = [beta.ppf(0.95, k, n + 1 - k) for k, n in ((5, 100), (7, 140), (3, 60))]
    assert found.is_outlier.tolist() == [v <= 0.05 for v in p]
    assert found.p_value_threshold == 0.05
    assert found.false_alarm_bound == pytest.approx(max(bounds), rel=1e-9)
    assert found.fewest_selectable is None


@given(st.integers(1, 80), st.integers(0, 2**32), st.floats(0.004, 0.9))
@settings(deadline=None)
def test_false_discovery_rate_selects_in_the_batch(m, seed, rate):
    """Threshold and fewest rows are those of the selection; about a batch there is no bound per row."""
    p = np.random.default_rng(seed).integers(1, N + 2, m) ** 2 / (N + 1) ** 2

    found = rule("false_discovery_rate", alpha=rate).decide(p)

    assert found.p_value_threshold == selection_threshold(p, rate)
    assert found.is_outlier.tolist() == [v <= found.p_value_threshold for v in p]
    assert found.false_alarm_bound is None
    assert found.fewest_selectable == fewest_selectable(m, N, rate)


def test_a_single_row_is_selected_where_its_smoothed_p_value_is_small_enough():
    """There is no smallest p-value, of which so and so many rows were needed."""
    p = np.append(np.full(999, 0.9), 1e-6)

    smoothed, plain = (rule("false_discovery_rate", alpha=0.05, smoothed=s).decide(p) for s in (True, False))

    assert smoothed.is_outlier.tolist() == [False] * 999 + [True]
    assert (smoothed.fewest_selectable, plain.fewest_selectable) == (None, fewest_selectable(1000, N, 0.05))


def test_false_discovery_rate_flags_nothing_where_nothing_is_strange():
    """Threshold 0, which no p-value reaches."""
    found = rule("false_discovery_rate").decide(np.full(10, 0.5))

    assert found.p_value_threshold == 0
    assert not found.is_outlier.any()


@pytest.mark.parametrize(
    ("alpha", "smoothed", "bound"),
    [
        pytest.param(0.05, False, quantile(15, N), id="floor(0.05 * 301) = 15"),
        pytest.param(0.05, True, smoothed_bound(15.05, N, 0.95), id="smoothed: 0.05 * 301, ranks and a share of one"),
        pytest.param(15 / 301, True, smoothed_bound(15, N, 0.95), id="whole: scores may tie all the same"),
        pytest.param(15 / 301, False, quantile(15, N), id="whole, not smoothed"),
        pytest.param(0.9999, True, smoothed_bound(0.9999 * 301, N, 0.95), id="smoothed: nearly everything is flagged"),
    ],
)
def test_the_bound_of_smoothed_p_values_is_that_of_rates_where_scores_tie(alpha, smoothed, bound):
    """P(p <= alpha) is alpha exactly, more than floor(alpha (n + 1)) ranks' worth, and a coin decides between ties."""
    found = rule("marginal", alpha=alpha, smoothed=smoothed).decide(every_p(N))

    assert found.p_value_threshold == alpha
    assert found.false_alarm_bound == (pytest.approx(bound, rel=1e-9) if smoothed else bound)


def test_smoothing_certifies_the_largest_p_value_whose_smoothed_bound_is_alpha():
    """A little less than without: where scores tie, rates of single calibration sets err together."""
    plain, smoothed = (rule("certified", smoothed=s).decide(every_p(N)) for s in (False, True))

    assert smoothed.p_value_threshold == smoothed_certified(0.05, N, 0.95) / (N + 1)
    assert smoothed.p_value_threshold < plain.p_value_threshold
    assert smoothed.false_alarm_bound == pytest.approx(0.05, rel=1e-9)


def test_smoothing_widens_every_class_of_a_conditional_rule():
    """Each class's alpha lies between two of its own ranks."""
    found = rule("class_conditional", smoothed=True).decide(every_p(60))

    bounds = [smoothed_bound(0.05 * (n + 1), n, 0.95) for n in (100, 140, 60)]
    assert found.false_alarm_bound == pytest.approx(max(bounds), rel=1e-9)


@pytest.mark.parametrize("guarantee", GUARANTEES)
def test_the_smallest_p_value_is_that_of_the_rows_behind_it(guarantee):
    """All of them, or those of the smallest class."""
    expected = 1 / 61 if guarantee == "class_conditional" else 1 / 301

    assert rule(guarantee).smallest_p_value == expected


@pytest.mark.parametrize("guarantee", GUARANTEES)
def test_the_budget_says_all_of_it(guarantee):
    """Whose verdicts, by which rule, and what they come to."""
    r = rule(guarantee, alpha=0.1, confidence=0.9, smoothed=True)
    found = r.decide(every_p(N))

    budget = r.budget(found, detector="d", version="v", digest="x", device="cpu")

    assert vars(budget) == {
        "detector": "d",
        "version": "v",
        "digest": "x",
        "device": "cpu",
        "guarantee": guarantee,
        "alpha": 0.1,
        "confidence": 0.9,
        "p_value_threshold": found.p_value_threshold,
        "false_alarm_bound": found.false_alarm_bound,
        "fewest_selectable": found.fewest_selectable,
        "calibration_size": N,
        "smallest_p_value": r.smallest_p_value,
        "smoothed": True,
    }


def test_a_budget_is_that_of_its_batch_and_its_detector():
    """A selection's threshold is another for every batch; what is the same for every request is kept by detector."""
    selecting, fixed = rule("false_discovery_rate"), rule("marginal")
    batches = [selecting.decide(np.full(10, p)) for p in (1 / 301, 0.5)]
    same = fixed.decide(every_p(N))

    budgets = [selecting.budget(b, detector="d", version="v", digest="x", device="cpu") for b in batches]
    named = [fixed.budget(same, detector=d, version="v", digest=d, device="cpu") for d in ("a", "b", "a")]

    assert [b.p_value_threshold for b in budgets] == [1 / 301, 0.0]
    assert [b.detector for b in named] == ["a", "b", "a"]


REFUSED = {
    "unknown guarantee": (
        ("most", {}),
        "guarantee: got 'most'; allowed: marginal, certified, class_conditional, false_discovery_rate",
    ),
    "no confidence": (("marginal", {"confidence": 0.0}), "confidence: got 0; it must lie strictly in (0, 1)"),
    "full confidence": (("marginal", {"confidence": 1.0}), "confidence: got 1; it must lie strictly in (0, 1)"),
    "confidence NaN": (("certified", {"confidence": math.nan}), "confidence: got nan; it must lie strictly in (0, 1)"),
    "certified with too few rows": (
        ("certified", {"alpha": 0.005}),
        "alpha: got 0.005, but 300 calibration rows certify nothing below 0.00993609 at confidence 0.95; use "
        "alpha >= 0.00993609, a lower confidence, or at least 598 calibration rows",
    ),
    "certified below the smallest p-value": (
        ("certified", {"alpha": 0.003}),
        "alpha: got 0.003, but 300 calibration rows certify nothing below 0.00993609 at confidence 0.95; use "
        "alpha >= 0.00993609, a lower confidence, or at least 998 calibration rows",
    ),
    "a class with too few rows": (
        ("class_conditional", {"alpha": 0.01}),
        "alpha: got 0.01, but class 2 has only 60 calibration rows, which cannot give a p-value below 0.0163935; use "
        "alpha >= 0.0163935, guarantee marginal, or more calibration rows",
    ),
    "a class with too few rows, below the smallest p-value": (
        ("class_conditional", {"alpha": 0.003}),
        "alpha: got 0.003, but class 2 has only 60 calibration rows, which cannot give a p-value below 0.0163935; use "
        "alpha >= 0.0163935, guarantee marginal, or more calibration rows",
    ),
    "a named class with too few rows": (
        ("class_conditional", {"alpha": 0.01, "classes": ("cat", "dog", "bird")}),
        "alpha: got 0.01, but class 'bird' has only 60 calibration rows, which cannot give a p-value below 0.0163935; "
        "use alpha >= 0.0163935, guarantee marginal, or more calibration rows",
    ),
    "a named class without rows": (
        ("class_conditional", {"class_sizes": (160, 0, 140), "classes": ("cat", "dog", "bird")}),
        "guarantee: class_conditional, but class 'dog' has no calibration rows; use guarantee marginal, or calibrate "
        "with rows of it",
    ),
    "a class without rows": (
        ("class_conditional", {"class_sizes": (160, 0, 140)}),
        "guarantee: class_conditional, but class 1 has no calibration rows; use guarantee marginal, or calibrate with "
        "rows of it",
    ),
    **{
        f"alpha below the smallest p-value, {guarantee}": (
            (guarantee, {"alpha": 0.003}),
            "alpha: got 0.003, but 300 calibration rows cannot give a p-value below 0.00332226, so nothing could be "
            "flagged; use alpha >= 0.00332226 or at least 333 calibration rows",
        )
        for guarantee in ("marginal", "false_discovery_rate")
    },
    **{
        f"alpha {alpha}, {guarantee}": (
            (guarantee, {"alpha": alpha}),
            f"alpha: got {alpha:g}; it is a false-alarm rate and must lie strictly in (0, 1)",
        )
        for alpha in (-0.1, 0.0, 1.0, math.nan)
        for guarantee in GUARANTEES
    },
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_calibration_rows_cannot_honour_is_refused(case):
    """The whole message: the argument, its value, what is allowed, and how many rows would do."""
    (guarantee, changes), message = REFUSED[case]

    with pytest.raises(InvalidInputError) as e:
        rule(guarantee, **changes)

    assert str(e.value) == message


def test_the_rows_that_a_refusal_asks_for_are_enough():
    """598 rows certify 0.005, 597 do not; 333 rows flag at 0.003, 332 do not."""
    for n, guarantee, alpha in ((598, "certified", 0.005), (333, "marginal", 0.003)):
        assert check_rule(guarantee, alpha=alpha, calibration_size=n, class_sizes=(n,)).alpha == alpha
        with pytest.raises(InvalidInputError, match=f"at least {n} calibration rows"):
            check_rule(guarantee, alpha=alpha, calibration_size=n - 1, class_sizes=(n - 1,))


@given(st.integers(20, 19_980), st.floats(0.7, 0.9999), st.sampled_from(["certified", "class_conditional"]))
@settings(deadline=None)
def test_the_alpha_that_a_refusal_names_is_accepted(n, confidence, guarantee):
    """Copied from the message as it stands, it is not refused again for a rounded digit."""
    options = {"confidence": confidence, "calibration_size": 20_001, "class_sizes": (n, 20_001 - n)}
    if guarantee == "certified":
        options |= {"calibration_size": n, "class_sizes": (n,)}
    with pytest.raises(InvalidInputError) as e:
        check_rule(guarantee, alpha=1 / (options["calibration_size"] + 1), **options)

    remedy = float(str(e.value).partition("use alpha >= ")[2].partition(",")[0])

    assert check_rule(guarantee, alpha=remedy, **options).decide(np.zeros(1)).is_outlier.all()

"""What a drift watch remembers: counts, recent rows, and all that another process needs to go on."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from softkin import conformal, drift
from softkin.drift import HISTOGRAM_BINS, SLICE_ROWS, WINDOW_ROWS, DriftReport, DriftWatch

N = 99


def watch(seed=0, n=N, **options):
    """A watch on n calibration rows, with the generator that it draws from."""
    rng = np.random.default_rng(seed)
    calibration = np.sort(rng.normal(size=n))
    return DriftWatch(calibration, rng=rng, **options), calibration, rng


def shown(report):
    """All of a report, for comparison."""
    return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in vars(report).items()}


def same(a, b):
    """Whether two states are equal, bit by bit."""
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and a[k].tobytes() == b[k].tobytes() for k in a)


def test_a_state_is_as_large_as_the_documentation_says():
    """It grows with the calibration rows, up to the number of gaps that are told apart."""
    sizes = [round(len(save(watch(n=n)[0].state())) / 1000) for n in (300, 2_000, 10_000, 100_000)]

    said = "({} kB with 300 calibration rows, {} kB with 2,000, {} kB with 10,000 or more)".format(*sizes[:3])
    assert sizes[3] == sizes[2]
    assert said in (Path(__file__).parents[2] / "docs" / "deploy.md").read_text()


def test_before_the_first_row_there_is_no_evidence_and_no_rate():
    """A martingale begins at 1; a share of no rows is 0, not NaN."""
    found = DriftWatch(np.arange(9.0), level=0.125).report(alpha=0.2)

    assert shown(found) == shown(
        DriftReport(
            rows=0,
            level=0.125,
            log10_martingale=0.0,
            max_log10_martingale=0.0,
            alarm_row=0,
            cusum=0.0,
            window_rows=0,
            flag_rate=0.0,
            alpha=0.2,
            histogram=np.zeros(HISTOGRAM_BINS, np.int64),
        )
    )
    assert not found.alarm
    assert dataclasses.replace(found, alarm_row=1).alarm


def test_rows_wait_for_their_slice_and_no_longer():
    """What is watched is ranked as soon as a slice is full, so that memory does not grow where nobody asks."""
    w, _, rng = watch()
    none = np.zeros(0)

    w.observe(rng.normal(size=SLICE_ROWS - 1))
    assert w.note(none) == SLICE_ROWS - 1
    w.observe(rng.normal(size=1))
    assert w.note(none) == 0


def test_the_histogram_has_bins_open_to_the_left_and_the_flag_rate_includes_alpha():
    """p = k / 20 belongs to bin k - 1, whatever its rounding; counted by a loop in whole numbers."""
    w, calibration, rng = watch()
    scores = np.concatenate([rng.normal(size=2000), calibration, [np.inf, -np.inf]])
    ranks = [1 + sum(c >= s for c in calibration) for s in scores]  # p = rank / 100
    w.observe(scores)

    assert w.report().histogram.tolist() == [sum(5 * b < k <= 5 * (b + 1) for k in ranks) for b in range(20)]
    for percent in (1, 5, 7, 29, 57, 58, 99):
        found = w.report(alpha=percent / 100)
        assert (found.alpha, found.window_rows) == (percent / 100, len(scores))
        assert found.flag_rate == pytest.approx(sum(k <= percent for k in ranks) / len(scores), rel=1e-12)


@pytest.mark.parametrize("batch", [1000, 1001, 12_345])
def test_only_recent_rows_count(batch):
    """The last WINDOW_ROWS of them, in whatever batches they came."""
    w, calibration, rng = watch()
    scores = np.concatenate([np.full(2345, np.inf), rng.normal(size=WINDOW_ROWS)])
    for i in range(0, len(scores), batch):
        w.observe(scores[i : i + batch])
    p = conformal.p_values(scores[-WINDOW_ROWS:], calibration)

    found = w.report()

    assert (found.rows, found.window_rows) == (len(scores), WINDOW_ROWS)
    assert found.flag_rate == pytest.approx((p <= 0.05).mean(), rel=1e-12)
    assert found.histogram.sum() == WINDOW_ROWS
    assert found.histogram[0] == (p <= 0.05).sum()


@pytest.mark.parametrize("batch", [1, 3, 127, 128, 129, 700])
def test_batching_does_not_change_what_is_counted(batch):
    """Rows, urn, recent p-values and CUSUM follow from the scores and one tie-break for each row."""
    whole, _, rng = watch(3)
    parts, _, _ = watch(3)
    scores = rng.normal(1, size=700)

    whole.observe(scores)
    for i in range(0, len(scores), batch):
        parts.observe(scores[i : i + batch])

    a, b = whole.state(), parts.state()
    for name in ("values", "keys", "weights", "recent"):  # no score is tied, so no draw decides a gap
        assert a[name].tobytes() == b[name].tobytes(), name
    assert a["counters"][0] == b["counters"][0] == 700
    assert whole.report().histogram.tolist() == parts.report().histogram.tolist()
    assert whole.report().cusum == pytest.approx(parts.report().cusum, abs=1e-9)


def test_an_array_that_is_used_again_by_the_caller_is_not_watched_twice():
    """Rows wait to be ranked; what the caller writes into the array meanwhile is not theirs."""
    w, _, _ = watch()
    buffer = np.full(5, -np.inf)

    w.observe(buffer)
    buffer[:] = np.inf

    assert w.report().histogram[-1] == 5


def test_a_state_does_not_change_when_the_watch_goes_on():
    """It is written to disk while other threads observe."""
    w, _, rng = watch()
    w.observe(rng.normal(size=300))
    state = w.state()
    before = {k: v.copy() for k, v in state.items()}

    w.observe(rng.normal(3, size=300))
    w.report()

    assert same(state, before)
    watch()[0].restore(state)


@pytest.mark.parametrize("rows", [0, 5, 300, WINDOW_ROWS + 77])
@pytest.mark.parametrize("n", [N, 3000])
def test_a_restored_watch_goes_on_identically(n, rows):
    """Rows that wait to be ranked included: given the same draws, everything afterwards is the same bit by bit."""
    w, calibration, rng = watch(1, n)
    w.observe(rng.normal(size=rows))
    w.observe(rng.normal(2, size=40))
    state = w.state()
    other = np.random.default_rng(99)
    restored = DriftWatch(calibration, rng=other)

    restored.restore({k: v.copy() for k, v in state.items()})
    other.bit_generator.state = rng.bit_generator.state
    assert same(restored.state(), state)
    assert shown(restored.report()) == shown(w.report())
    for scores in np.split(np.random.default_rng(5).normal(1, size=600), [100, 101, 350]):
        w.observe(scores)
        restored.observe(scores)

    assert same(restored.state(), w.state())
    assert shown(restored.report()) == shown(w.report())
    assert w.report().rows == rows + 640


def test_a_restored_watch_shares_nothing_with_the_state_it_came_from():
    """One state can start several watches."""
    w, calibration, rng = watch()
    w.observe(rng.normal(size=200))
    state = w.state()
    before = {k: v.copy() for k, v in state.items()}

    for _ in range(2):
        other = DriftWatch(calibration, rng=np.random.default_rng(1))
        other.restore(state)
        other.observe(rng.normal(size=500))
        assert other.report().rows == 700

    assert same(state, before)


def test_rows_that_were_observed_before_a_restore_are_replaced():
    """A restore puts the watch where the state was taken."""
    w, _, rng = watch()
    state = w.state()
    w.observe(rng.normal(size=20))

    w.restore(state)

    assert w.report().rows == 0


def damaged(name, *values):
    """A state after ten rows, of which one array begins with other numbers; integers are moved by them."""
    w, _, rng = watch()
    w.observe(rng.normal(size=10))
    state = w.state()
    array = state[name].copy()
    if array.dtype.kind == "i":
        array[: len(values)] += np.array(values)
    else:
        array[: len(values)] = values
    return state | {name: array}


def fewer_than_none():
    """A state whose numbers add up, though rows would have been taken back: merged gaps have more than one each."""
    state = watch(n=3000)[0].state()
    gone = state["weights"].sum() - len(state["weights"])
    return state | {"weights": np.ones_like(state["weights"]), "counters": np.array([-gone, 0])}


REFUSED = {
    "another calibration of the same size": (lambda: watch(seed=5)[0].state(), "it belongs to another calibration"),
    "another size": (lambda: watch(n=N + 1)[0].state(), r"array 'values' is float64\[100\]"),
    "an array is missing": (
        lambda: {k: v for k, v in watch()[0].state().items() if k != "keys"},
        r"arrays are \['counters', 'evidence', .*\], expected \['counters', 'evidence', 'keys', .*\]",
    ),
    "an array too many": (lambda: watch()[0].state() | {"more": np.zeros(1)}, r"arrays are \[.*'more'.*\], expected"),
    "another shape": (lambda: watch()[0].state() | {"recent": np.zeros(7, np.float32)}, r"'recent' is float32\[7\]"),
    "another type": (
        lambda: watch()[0].state() | {"recent": np.zeros(WINDOW_ROWS)},
        r"array 'recent' is float64\[10000\]",
    ),
    "counters that do not fit": (
        lambda: watch()[0].state() | {"counters": np.array([3, 0])},
        "it belongs to another calibration",
    ),
    "evidence that is none": (lambda: damaged("evidence", np.nan), "it is damaged"),
    "evidence without bottom": (lambda: damaged("evidence", -np.inf), "it is damaged"),
    "a CUSUM below its floor": (lambda: damaged("evidence", 0.0, 0.0, -1.0), "it is damaged"),
    "a p-value above 1": (lambda: damaged("recent", 1.5), "it is damaged"),
    "a p-value of 0": (lambda: damaged("recent", 0.0), "it is damaged"),
    "a p-value that is none": (lambda: damaged("recent", np.nan), "it is damaged"),
    "an alarm after the last row": (lambda: damaged("counters", 0, 11), "it is damaged"),
    "an alarm before the first row": (lambda: damaged("counters", 0, -1), "it is damaged"),
    "a gap among others": (lambda: damaged("keys", -1e9), "it is damaged"),
    "fewer rows than none": (fewer_than_none, "it is damaged"),
    "wealth without end": (lambda: damaged("log_wealth", np.inf), "it is damaged"),
    "a gap past others": (lambda: damaged("keys", 3.0), "it is damaged"),
    "gaps out of order, each where it may be": (lambda: damaged("keys", 1.2, 1.1), "it is damaged"),
    "a gap with less than nothing": (lambda: damaged("weights", -5, 5), "it is damaged"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_state_that_does_not_fit_is_refused_and_the_watch_is_as_it_was(case):
    """ValueError says what does not fit."""
    make, message = REFUSED[case]
    w, _, rng = watch(n=3000 if case == "fewer rows than none" else N)
    w.observe(rng.normal(size=20))
    before = w.state()

    with pytest.raises(ValueError, match=message):
        w.restore(make())

    assert same(w.state(), before)


def test_a_large_calibration_of_another_size_is_told_apart_by_the_number_of_rows():
    """Merged gaps have the same shapes whatever n is."""
    calibration = np.zeros(5000)
    a, b = DriftWatch(calibration), DriftWatch(calibration[:-1])
    assert {k: v.shape for k, v in a.state().items()} == {k: v.shape for k, v in b.state().items()}

    with pytest.raises(ValueError, match="it belongs to another calibration"):
        a.restore(b.state())


def test_another_level_judges_a_restored_watch_anew():
    """By the largest evidence so far: the row of an alarm is kept where it holds, else it is the last row seen."""
    rng = np.random.default_rng(2)
    calibration = np.sort(rng.normal(size=N))
    w = DriftWatch(calibration, level=0.01, rng=rng)
    w.observe(rng.normal(size=50))
    w.observe(rng.normal(2.5, size=70))
    report, state = w.report(), w.state()
    assert 50 < report.alarm_row < 120
    assert 2 < report.max_log10_martingale < 20

    def at(level):
        other = DriftWatch(calibration, level=level)
        other.restore(state)
        return other.report()

    assert (at(0.01).alarm_row, at(0.5).alarm_row) == (report.alarm_row, report.alarm_row)
    assert (at(1e-20).alarm, at(1e-20).alarm_row) == (False, 0)
    never = DriftWatch(calibration, level=1e-20, rng=rng)
    never.restore(state)
    state = never.state()
    assert (at(0.01).alarm, at(0.01).alarm_row, at(0.01).rows) == (True, 120, 120)
    w.observe(rng.normal(size=5000))
    report, state = w.report(), w.state()
    assert report.log10_martingale < 2 < report.max_log10_martingale
    assert (at(0.01).alarm_row, at(0.5).alarm_row) == (report.alarm_row, report.alarm_row)


def test_threads_lose_no_row():
    """Eight threads observe while one reports and saves: rows, urn and window add up."""
    w, calibration, _ = watch()
    batches = [np.random.default_rng(i).normal(size=(40, 17)) for i in range(8)]
    ended = threading.Event()
    states = []

    def observe(rows):
        for scores in rows:
            w.observe(scores)

    def look():
        while not ended.is_set():
            report = w.report()
            states.append(w.state())
            assert report.histogram.sum() == report.window_rows == report.rows

    threads = [threading.Thread(target=observe, args=(b,)) for b in batches]
    looker = threading.Thread(target=look)
    for t in (looker, *threads):
        t.start()
    for t in threads:
        t.join()
    ended.set()
    looker.join()

    report, state = w.report(), w.state()
    every = np.concatenate([b.ravel() for b in batches])
    assert report.rows == 8 * 40 * 17 == len(every)
    assert state["weights"].sum() == N + 1 + len(every)
    assert (
        np.sort(state["recent"][: len(every)]).tolist()
        == np.sort(conformal.p_values(every, calibration).astype(np.float32)).tolist()
    )
    for s in states:
        assert s["weights"].sum() == N + 1 + s["counters"][0]


@pytest.mark.parametrize("what", ["bets", "staked", "kept", "log_low_bet"])
def test_of_rows_whose_ranking_fails_nothing_is_kept(monkeypatch, what):
    """Out of memory, say: half of a slice made a state that no later start would take."""
    watched, calibration, rng = watch()
    watched.observe(rng.normal(size=3 * SLICE_ROWS))
    before = watched.state()

    def fails(*arguments):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(drift, what, fails)
        with pytest.raises(MemoryError):
            watched.observe(rng.normal(size=SLICE_ROWS))

    assert same(watched.state(), before)
    watched.observe(rng.normal(size=SLICE_ROWS))
    DriftWatch(calibration).restore(watched.state())

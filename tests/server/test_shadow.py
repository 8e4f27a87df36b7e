"""Shadow mode: a candidate scores live traffic silently, and how far it disagrees decides its promotion."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from scipy import stats

import standin_bundles
from softkin.errors import DeviceError, PreconditionError
from softkin.shadow import Comparison
from standin import StandIn
from standin_bundles import Shifted

EVERY = {"shadow_share": 1.0}


@pytest.fixture
def shadowed(start):
    """Starts a server whose version 1 is stable, with a candidate labelled shadow."""

    def run(candidate, *others, live=None, **options):
        running = start(live or StandIn(), candidate, *others, **{"admin_port": 0, **EVERY, **options})
        with running.admin() as admin:
            admin.set_label("standin", "1", "stable")
            admin.set_label("standin", candidate.manifest.version, "shadow")
        return running

    return run


def counted(running, version="2"):
    """Rows of the shadow version by result; those that are 0 left out."""
    labels = {"detector": "standin", "version": version}
    found = {
        r: running.sample("softkin_shadow_rows_total", **labels, result=r) for r in ("agree", "disagree", "dropped")
    }
    return {r: int(n) for r, n in found.items() if n}


def settle(running, rows, version="2"):
    """Wait until so many rows have been compared or dropped."""
    running.until(lambda: sum(counted(running, version).values()) >= rows)


def gauges(running, version="2"):
    """Disagreement and difference of p-values, as they are shown."""
    labels = {"detector": "standin", "version": version}
    names = ("softkin_shadow_disagreement", "softkin_shadow_p_value_difference")
    return tuple(running.sample(name, **labels) for name in names)


def test_what_is_counted_is_what_both_versions_make_of_the_same_requests(shadowed):
    """Verdicts at each request's own alpha, guarantee, confidence and seed; p-values row by row."""
    live, candidate = StandIn(), Shifted(version="2", shift=10)
    running = shadowed(candidate)
    rng = np.random.default_rng(0)
    asked = [
        {},
        {"alpha": 0.3},
        {"alpha": 0.2, "guarantee": "class_conditional"},
        {"alpha": 0.1, "guarantee": "certified", "confidence": 0.99},
        {"alpha": 0.5, "guarantee": "false_discovery_rate"},
        {"alpha": 0.1, "guarantee": "certified", "smoothing_seed": 10**7},  # which adds 0.01 to every p-value here
    ]
    disagree, difference, total = 0, 0.0, 0
    with running.client() as client:
        for n, options in enumerate(asked, start=1):
            x = rng.integers(0, 6, (5 * n, 2, 3)).astype(np.float32)
            client.score(x, **options)
            a, b = (d.score(x, **options) for d in (live, Shifted(version="2", shift=10)))
            disagree += int((a.is_outlier != b.is_outlier).sum())
            difference += float(np.abs(a.p_value - b.p_value).sum())
            total += len(x)
    settle(running, total)

    assert counted(running) == {"agree": total - disagree, "disagree": disagree}
    assert 0 < disagree < total
    assert gauges(running) == pytest.approx((disagree / total, difference / total))


def test_each_request_of_a_batch_is_compared_with_its_own_answer(shadowed, gate):
    """Not with that of the batch, nor with another caller's."""
    live = StandIn(gate=gate)
    running = shadowed(Shifted(version="2", shift=10), live=live, workers=1)
    asked = [np.full((n, 2, 3), value, np.float32) for n, value in ((1, 0.0), (2, 0.0), (3, 2.5), (4, 0.5))]

    with ThreadPoolExecutor(len(asked)) as pool:
        calls = [pool.submit(running.score, asked[0])]
        assert live.entered.acquire(timeout=20)
        calls += [pool.submit(running.score, x) for x in asked[1:]]
        running.until(lambda: running.server.pending_requests == len(asked))
        gate.set()
        for call in calls:
            call.result(timeout=20)
    settle(running, 10)

    assert live.batches == [1, 9]
    assert counted(running) == {"agree": 7, "disagree": 3}
    a, b = (np.concatenate([d.score(x).p_value for x in asked]) for d in (StandIn(), Shifted(shift=10)))
    assert gauges(running) == pytest.approx((0.3, np.abs(a - b).mean()))


def test_a_request_in_slices_is_compared_as_a_whole(shadowed, rows):
    """Every row once."""
    running = shadowed(Shifted(version="2"), max_batch_rows=4)
    with running.client() as client:
        client.score(rows(11))

    settle(running, 11)

    assert counted(running) == {"agree": 11}
    assert gauges(running) == (0.0, 0.0)


def test_it_is_silent(shadowed, rows):
    """Neither metrics nor drift watch of any version have a trace of it, nor do the answers."""
    running = shadowed(Shifted(version="2", shift=1000))
    answer = running.score(rows(6))
    settle(running, 6)

    assert answer.budget.version == "1"
    assert list(answer.outlier_score) == StandIn().score(rows(6)).outlier_score.tolist()
    assert running.sample("softkin_drift_rows", detector="standin", version="1") == 6
    assert running.sample("softkin_drift_rows", detector="standin", version="2") == 0
    assert sum(v for k, v in running.series("softkin_rows_total").items() if "'version': '2'" in k) == 0
    histograms = running.series("softkin_p_value_", "softkin_outlier_score")
    assert {v for k, v in histograms.items() if "'version': '2'" in k} == {0.0}
    assert running.sample("softkin_batch_rows_count") == 1
    assert running.sample("softkin_batch_rows_sum") == 6
    assert running.sample("softkin_request_rows_count") == 1


@pytest.mark.parametrize(("batch_rows", "excess"), [(1, 6), (2, 6), (3, 5)])
def test_no_answer_waits_for_it_and_what_finds_no_room_is_dropped(shadowed, rows, gate, batch_rows, excess):
    """The candidate hangs: every caller gets its answer; one request waits, or four batches; the others are dropped."""
    candidate = Shifted(version="2", gate=gate)
    running = shadowed(candidate, workers=1, max_rows=8, max_batch_rows=batch_rows)

    answers = [len(running.score(rows(8)).p_value)]
    assert candidate.entered.acquire(timeout=20)  # it has the eight: while the next caller waits it takes none
    answers += [len(running.score(rows(n)).p_value) for n in (5, 1)]
    settle(running, excess)
    dropped = counted(running)
    gate.set()
    settle(running, 14)

    assert answers == [8, 5, 1]
    assert dropped == {"dropped": excess}
    assert counted(running) == {"agree": 14 - excess, "dropped": excess}


def test_a_busy_server_drops_what_it_would_compare(shadowed, rows, gate, caplog):
    """Callers come first, also between two batches of a comparison; that is no fault of the candidate."""
    candidate = Shifted(version="2", gate=gate)
    running = shadowed(candidate, max_batch_rows=2, max_rows=8)
    shadow = running.server._path.shadow
    running.score(rows(6))
    assert candidate.entered.acquire(timeout=20)

    shadow._busy = lambda: True
    gate.set()
    settle(running, 6)
    running.score(rows(3))
    settle(running, 9)

    assert counted(running) == {"dropped": 9}
    assert candidate.rows_scored == 2
    assert not caplog.records


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0), (0.25, 3), (1.0, 10)])
def test_a_share_of_the_requests_is_drawn(shadowed, rows, share, expected):
    """Those whose draw lies below it."""
    running = shadowed(Shifted(version="2"), shadow_share=share)
    draws = iter([0.9, 0.2, 0.3, 0.1, 0.99, 0.25, 0.24, 0.5, 0.7, 0.8, -1.0])  # the last in any case, after all others
    running.server._path.shadow._draw = lambda: next(draws)

    for _ in range(10):
        running.score(rows(1))
    running.score(rows(5))
    settle(running, expected + 5)

    assert counted(running) == {"agree": expected + 5}


def test_only_answers_of_the_version_that_serves_are_compared(shadowed, rows):
    """That is whose place the candidate would take; its own answers say nothing."""
    running = shadowed(Shifted(version="2", shift=10), StandIn(version="3"), StandIn("other"))

    for fields in ({"version": "2"}, {"version": "3"}, {"label": "shadow"}):
        running.score(rows(4), detector="standin", **fields)
    running.score(rows(4), detector="other")
    running.score(rows(1), detector="standin")
    settle(running, 1)

    assert sum(counted(running).values()) == 1


def test_rows_that_the_candidate_refuses_or_fails_on_disagree(shadowed, rows, caplog):
    """After a promotion, callers would meet that; the log says it once for each candidate."""
    candidate = Shifted(version="2", failure=DeviceError("no memory"))
    running = shadowed(candidate)

    with caplog.at_level(logging.WARNING, "softkin.server"):
        for _ in range(3):
            running.score(rows(2))
        settle(running, 6)

    assert counted(running) == {"disagree": 6}
    assert gauges(running) == (1.0, 0.0)
    assert [r.getMessage() for r in caplog.records] == [
        'event=shadow_failed detector=standin version=2 error="no memory"'
    ]


@pytest.mark.parametrize(("k", "n"), [(0, 1), (0, 1000), (3, 1000), (50, 1000), (999, 1000), (1000, 1000), (7, 10**6)])
def test_the_limit_is_that_of_clopper_and_pearson(k, n):
    """Against an independent implementation: the one-sided limit at confidence 0.95."""
    found = Comparison(shadow="", live="", rows=n, disagreements=k).disagreement_limit

    expected = 1.0 if k == n else stats.binomtest(k, n, alternative="less").proportion_ci(0.95, "exact").high
    assert found == pytest.approx(expected, rel=1e-9)


class TestPromotion:
    """Moving `stable` to the version that was compared."""

    LIMITS = {"shadow_min_rows": 100, "shadow_max_disagreement": 0.05}  # noqa: RUF012

    def compare(self, running, agreeing, disagreeing):
        """Score rows on which shift 10 makes no difference, and rows on which it does."""
        for n, value in ((agreeing, 0.0), (disagreeing, 2.5)):
            if n:
                running.score(np.full((n, 2, 3), value, np.float32))
        settle(running, agreeing + disagreeing)

    def test_it_is_refused_on_too_few_rows(self, shadowed):
        """With what was compared and what is needed; one more row and it is allowed."""
        running = shadowed(Shifted(version="2", shift=10), **self.LIMITS)
        self.compare(running, 99, 0)

        with running.admin() as admin:
            with pytest.raises(PreconditionError) as e:
                admin.set_label("standin", "2", "stable")
            refused = running.score(np.zeros((1, 2, 3), np.float32)).budget.version
            settle(running, 100)
            admin.set_label("standin", "2", "stable")

        assert str(e.value) == (
            "version '2' was compared with live traffic on 99 rows, and shadow_min_rows = 100; wait for more traffic, "
            "or set 'stable' with force"
        )
        assert refused == "1"
        assert running.score(np.zeros((1, 2, 3), np.float32)).budget.version == "2"

    @pytest.mark.parametrize(("disagreeing", "refused"), [(0, False), (12, False), (13, True), (40, True)])
    def test_it_is_refused_when_the_upper_limit_of_the_disagreement_is_too_high(self, shadowed, disagreeing, refused):
        """Of 400 rows, 12 may differ at most: the upper limit is 0.0482 then, and 0.0509 for 13."""
        running = shadowed(Shifted(version="2", shift=10), **self.LIMITS)
        self.compare(running, 400 - disagreeing, disagreeing)
        assert counted(running).get("disagree", 0) == disagreeing

        with running.admin() as admin:
            if refused:
                message = rf"version '2' disagrees on {disagreeing} of 400 rows of live traffic: up to 0\.\d+ at conf"
                with pytest.raises(PreconditionError, match=message):
                    admin.set_label("standin", "2", "stable")
            else:
                assert admin.set_label("standin", "2", "stable") == "1"

        answered = running.score(np.zeros((1, 2, 3), np.float32)).budget.version
        assert answered == ("1" if refused else "2")

    def test_force_promotes_all_the_same(self, shadowed):
        """Whoever forces it has read the message."""
        running = shadowed(Shifted(version="2", shift=10), **self.LIMITS)

        with running.admin() as admin:
            assert admin.set_label("standin", "2", "stable", force=True) == "1"

    def test_other_labels_and_versions_without_shadow_are_free(self, shadowed):
        """Rollback must never be refused."""
        running = shadowed(Shifted(version="2", shift=10), StandIn(version="3"), **self.LIMITS)

        with running.admin() as admin:
            admin.set_label("standin", "2", "canary")
            assert admin.set_label("standin", "3", "stable") == "1"
            assert admin.set_label("standin", "1", "stable") == "3"
            assert admin.set_label("standin", "2", "stable", force=True) == "1"
            assert admin.set_label("standin", "2", "stable") == "2"
            assert admin.set_label("standin", "1", "stable") == "2"

    def test_taking_stable_away_is_no_way_around_it(self, shadowed):
        """Without the label the version that came last would serve, which is the candidate."""
        running = shadowed(Shifted(version="2"))
        with running.admin() as admin:
            with pytest.raises(PreconditionError, match=r"version '2' was compared .* on 0 rows, and shadow_min_rows"):
                admin.remove_label("standin", "stable")
            refused = running.score(np.zeros((1, 2, 3), np.float32)).budget.version

            admin.remove_label("standin", "shadow")
            assert admin.remove_label("standin", "stable") == "1"

        assert refused == "1"
        assert running.score(np.zeros((1, 2, 3), np.float32)).budget.version == "2"

    def test_loading_the_same_bundle_again_as_stable_is_no_way_around_it(self, start, loading, tmp_path):
        """LoadDetector moves labels too."""
        standin_bundles.write(tmp_path / "v2", "2", shift=10)
        running = start(StandIn(), load=loading, admin_port=0, bundle_root=tmp_path, **EVERY, **self.LIMITS)

        with running.admin() as admin:
            admin.load("v2", ["shadow"])
            with pytest.raises(PreconditionError, match="was compared with live traffic on 0 rows"):
                admin.load("v2", ["canary", "stable"])
            assert [d.labels for d in admin.detectors()] == [("stable",), ("shadow",)]

    @pytest.mark.parametrize("change", ["live", "shadow"])
    def test_a_comparison_begins_anew_when_either_side_changes(self, shadowed, change):
        """What was found out about other versions says nothing about these."""
        running = shadowed(Shifted(version="2", shift=10), StandIn(version="3"), **self.LIMITS)
        self.compare(running, 198, 2)
        assert gauges(running)[0] == 0.01

        with running.admin() as admin:
            if change == "live":
                admin.set_label("standin", "3", "stable")
            else:
                admin.set_label("standin", "3", "shadow")
                admin.set_label("standin", "2", "shadow")
                admin.set_label("standin", "1", "other")
                running.server._registry.exchange("2", Shifted(version="2", shift=10))
                running.server._registry.loaded("standin", "2").digest = "another"
            assert gauges(running) == (0.0, 0.0)
            with pytest.raises(PreconditionError, match="on 0 rows"):
                admin.set_label("standin", "2", "stable")
        x = np.full((1, 2, 3), 2.5, np.float32)
        running.score(x)
        settle(running, 201)

        difference = StandIn().score(x).p_value - Shifted(version="2", shift=10).score(x).p_value
        assert gauges(running) == (1.0, abs(difference.item()))


def test_without_the_label_nothing_is_compared_or_shown(shadowed, rows):
    """What was counted stays."""
    running = shadowed(Shifted(version="2"))
    running.score(rows(3))
    settle(running, 3)

    with running.admin() as admin:
        admin.remove_label("standin", "shadow")
        running.score(rows(3))
        without = gauges(running)
        admin.set_label("standin", "2", "shadow")
    running.score(rows(1))  # compared after the three before it, if those were
    settle(running, 4)

    assert without == (None, None)
    assert counted(running) == {"agree": 4}


def test_a_server_stops_although_its_shadow_hangs(shadowed, rows):
    """The comparison is dropped."""
    gate = threading.Event()
    candidate = Shifted(version="2", gate=gate)
    running = shadowed(candidate)
    running.score(rows(2))
    assert candidate.entered.acquire(timeout=20)
    stopping = threading.Thread(target=running.server.stop)

    stopping.start()
    stopping.join(timeout=20)
    ended = not stopping.is_alive()
    gate.set()

    assert ended
    assert counted(running) == {"dropped": 2}

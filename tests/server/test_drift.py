"""The drift watch as callers, scrapers and the command line see it."""

from __future__ import annotations

import json
import threading
import urllib.request

import grpc
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

import standin_bundles
from softkin import cli, conformal
from softkin.drift import DriftWatch
from softkin.errors import NotFoundError
from softkin.v1 import outlier_pb2 as pb
from standin import StandIn

LABELS = {"detector": "standin", "version": "1"}


def ordinary(n, seed=0):
    """Rows whose stand-in scores are those of its calibration rows, 0 to 98, in any order."""
    x = np.zeros((n, 2, 3), np.float32)
    x[:, 0, 0] = np.random.default_rng(seed).integers(0, 99, n)
    return x


def strange(n):
    """Rows that score far above every calibration row."""
    return np.full((n, 2, 3), 1000, np.float32)


def drift_of(running, **names):
    """GetDrift as it travels."""
    return running.stub.GetDrift(pb.GetDriftRequest(**names), timeout=20)


def test_before_the_first_row_the_watch_has_seen_nothing(start):
    """Whose watch it is, at which level and alpha; evidence 10^0."""
    running = start(StandIn(), alpha=0.1, drift_level=0.25)

    found = drift_of(running)

    assert found == pb.GetDriftResponse(
        detector="standin",
        version="1",
        digest=StandIn().digest,
        alarm_level=0.25,
        alpha=0.1,
        p_value_histogram=[0] * 20,
    )


def test_get_drift_tells_what_was_scored(start):
    """Rows, recent p-values and CUSUM are those of a watch on the same scores; refused rows are not among them."""
    running = start(StandIn(), alpha=0.1, max_rows=4096)
    local = DriftWatch(StandIn().calibration_scores)
    batches = [ordinary(300), strange(40), ordinary(30, seed=1)]
    for x in batches:
        running.score(x)
        local.observe(StandIn().score(x).outlier_score)
    with pytest.raises(grpc.RpcError):
        running.score(strange(50), alpha=2.0)

    found, expected = drift_of(running), local.report(0.1)

    assert (found.detector, found.version, found.digest) == ("standin", "1", StandIn().digest)
    assert found.rows == found.window_rows == 370
    assert list(found.p_value_histogram) == expected.histogram.tolist()
    assert (found.flag_rate, found.alpha) == (expected.flag_rate, 0.1)
    assert found.cusum_no_guarantee == pytest.approx(expected.cusum, abs=1e-9)
    assert found.cusum_no_guarantee > 50
    assert found.alarm
    assert found.alarm_level == 0.01
    assert 300 < found.alarm_row <= 340
    assert found.max_log10_martingale >= 2
    assert found.log10_martingale <= found.max_log10_martingale


def test_drift_is_about_scores_whatever_the_request_asks_for(start):
    """Guarantee, alpha and smoothing change verdicts, not what is watched."""
    running = start(StandIn(), max_rows=64)
    x = ordinary(50)
    for options in ({}, {"alpha": 0.5}, {"guarantee": 4}, {"smoothing_seed": 3}, {"num_neighbors": 2}):
        running.score(x, **options)

    found = drift_of(running)

    p = conformal.p_values(StandIn().score(x).outlier_score, StandIn().calibration_scores)
    assert found.rows == 250
    assert found.flag_rate == pytest.approx((p <= 0.05).mean(), rel=1e-12)


def test_the_client_gets_the_same_report(start):
    """Arrays and fields of softkin's own types."""
    running = start(StandIn())
    running.score(strange(64))
    raw = drift_of(running)

    with running.client() as client:
        found = client.drift()

    r = found.report
    assert (found.detector, found.version, found.digest) == (raw.detector, raw.version, raw.digest)
    assert (r.rows, r.window_rows, r.alarm_row) == (64, 64, raw.alarm_row)
    assert (r.alarm, r.level, r.alpha) == (True, 0.01, 0.05)
    assert (r.log10_martingale, r.max_log10_martingale) == (raw.log10_martingale, raw.max_log10_martingale)
    assert (r.cusum, r.flag_rate) == (raw.cusum_no_guarantee, 1.0)
    assert r.histogram.tolist() == [64] + [0] * 19


def test_each_detector_and_version_has_its_own_watch(start):
    """An empty version is the one that serves."""
    running = start(StandIn("a", "1"), StandIn("a", "2"), StandIn("b", "1"))
    for n, names in ((1, {"detector": "a", "version": "1"}), (2, {"detector": "a"}), (3, {"detector": "b"})):
        running.score(strange(n), **names)

    found = [
        drift_of(running, detector=name, version=version)
        for name, version in (("a", "1"), ("a", "2"), ("a", ""), ("b", ""))
    ]

    assert [f.rows for f in found] == [1, 2, 2, 3]
    assert [(f.detector, f.version) for f in found] == [("a", "1"), ("a", "2"), ("a", "2"), ("b", "1")]


def test_an_unknown_detector_has_no_watch(shared_server):
    """NOT_FOUND -> NotFoundError, with what is loaded."""
    with (
        shared_server.client(detector="nope") as client,
        pytest.raises(NotFoundError, match="loaded: standin version 1"),
    ):
        client.drift()


def test_a_server_that_is_not_ready_has_no_watch_yet(start):
    """UNAVAILABLE, which callers retry."""
    with pytest.raises(grpc.RpcError) as e:
        drift_of(start(StandIn(), ready=False))

    assert e.value.code() is grpc.StatusCode.UNAVAILABLE


def test_metrics_show_what_get_drift_says(start):
    """Every gauge, per detector and version, read when it is scraped."""
    running = start(StandIn(), StandIn("other"), alpha=0.1)
    running.score(ordinary(200), detector="standin")
    running.score(strange(30), detector="standin")
    found = drift_of(running, detector="standin")

    with urllib.request.urlopen(f"http://127.0.0.1:{running.server.metrics_port}/metrics", timeout=20) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))

    shown = {
        s.name: s.value
        for family in families
        for s in family.samples
        if s.name.startswith("softkin_drift_") and s.labels == LABELS
    }
    assert shown == {
        "softkin_drift_rows": 230,
        "softkin_drift_log10_martingale": found.log10_martingale,
        "softkin_drift_max_log10_martingale": found.max_log10_martingale,
        "softkin_drift_alarm": 1,
        "softkin_drift_alarm_level": 0.01,
        "softkin_drift_cusum_no_guarantee": found.cusum_no_guarantee,
        "softkin_drift_flag_rate": found.flag_rate,
    }
    assert found.rows == 230
    assert running.sample("softkin_drift_rows", detector="other", version="1") == 0
    assert running.sample("softkin_drift_alarm", detector="other", version="1") == 0


def test_metrics_show_no_watch_before_the_server_is_ready(start):
    """A gauge of 0 would be a claim."""
    running = start(StandIn(), ready=False)
    before = running.sample("softkin_drift_rows", **LABELS)

    running.server.make_ready()

    assert (before, running.sample("softkin_drift_rows", **LABELS)) == (None, 0)


def test_states_are_saved_as_often_as_the_setting_says(start, tmp_path):
    """Unless it says otherwise, every 10 seconds."""
    start(StandIn(), drift_state=tmp_path, drift_save_seconds=0.01)

    for _ in range(1000):
        if list(tmp_path.glob("*.safetensors")):
            return
        threading.Event().wait(0.005)
    raise AssertionError("nothing was saved for 5 seconds")


def test_an_unloaded_version_is_watched_no_longer_and_goes_on_where_it_was(start, tmp_path, loading):
    """Its state is saved as it goes, not with those that are watched on; loaded again, it has lost no row."""
    standin_bundles.write(tmp_path / "two", "2")
    running = start(
        StandIn(),
        load=loading,
        admin_port=0,
        bundle_root=tmp_path,
        drift_state=tmp_path / "state",
        drift_save_seconds=3600,
    )
    with running.admin() as admin, running.client(version="2") as client:
        admin.load("two")
        client.score(strange(64))
        running.until(lambda: client.drift().report.rows == 64)

        admin.unload("standin", "2")
        saved = [file.name[:9] for file in (tmp_path / "state").glob("*.safetensors")]
        admin.load("two")
        again = client.drift().report.rows

    assert (saved, again) == (["standin-2"], 64)


def test_the_drift_command_prints_json_for_programs(start, capsys):
    """All of the report, and the alarm as a truth value."""
    running = start(StandIn())
    running.score(strange(64))
    with running.client() as client:
        drift = client.drift()

    status = cli.main(["drift", "--target", running.target, "--detector", "standin", "--json"])

    [line] = capsys.readouterr().out.splitlines()
    assert status == 0
    assert json.loads(line) == {
        "detector": "standin",
        "version": "1",
        "digest": StandIn().digest,
        "alarm": True,
        "report": {**vars(drift.report), "histogram": drift.report.histogram.tolist()},
    }


def test_the_drift_command_prints_a_table_for_people(start, capsys, monkeypatch):
    """Rows, alarm, evidence, and that CUSUM promises nothing."""
    monkeypatch.setenv("COLUMNS", "160")
    running = start(StandIn())
    running.score(strange(64))
    r = drift_of(running)

    status = cli.main(["drift", "--target", running.target])

    out = capsys.readouterr().out
    assert status == 0
    for text in (
        "standin 1",
        f"yes, at row {r.alarm_row} (chance of one, ever, while nothing drifts: at most 0.01)",
        f"10^{r.log10_martingale:.2f}, highest 10^{r.max_log10_martingale:.2f}; alarm at 100",
        "nats (CUSUM, no guarantee on false alarms)",
        "100.00% of 64 rows, alpha is 0.05",
    ):
        assert text in out


def test_the_drift_command_fails_as_score_does(shared_server, capsys):
    """Status 1, one line."""
    status = cli.main(["drift", "--target", shared_server.target, "--detector", "nope"])

    captured = capsys.readouterr()
    assert (status, captured.out) == (1, "")
    assert captured.err == "softkin: error: no detector named 'nope'; loaded: standin version 1\n"

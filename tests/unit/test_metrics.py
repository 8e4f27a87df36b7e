from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from softkin.drift import DriftWatch
from softkin.metrics import OUTLIER_SCORES, P_VALUES, REJECTED, RELOADS, SHADOW_RESULTS, Metrics
from softkin.scores import ErrorBudget, Scores

CONTRACT = {
    "grpc_server_handled": ("counter", {"grpc_type", "grpc_service", "grpc_method", "grpc_code"}),
    "grpc_server_handling_seconds": ("histogram", {"grpc_type", "grpc_service", "grpc_method"}),
    "grpc_server_msg_received": ("counter", {"grpc_type", "grpc_service", "grpc_method"}),
    "grpc_server_msg_sent": ("counter", {"grpc_type", "grpc_service", "grpc_method"}),
    "grpc_server_started": ("counter", {"grpc_type", "grpc_service", "grpc_method"}),
    "softkin_alpha": ("gauge", {"detector", "version"}),
    "softkin_bank_rows": ("gauge", {"detector", "version"}),
    "softkin_batch_rows": ("histogram", set()),
    "softkin_batch_seconds": ("histogram", set()),
    "softkin_build_info": ("gauge", {"version"}),
    "softkin_calibration_rows": ("gauge", {"detector", "version"}),
    "softkin_detector_info": ("gauge", {"detector", "version", "digest", "device"}),
    "softkin_detector_load_seconds": ("histogram", set()),
    "softkin_device_fallback": ("gauge", set()),
    "softkin_drift_alarm": ("gauge", {"detector", "version"}),
    "softkin_drift_alarm_level": ("gauge", {"detector", "version"}),
    "softkin_drift_cusum_no_guarantee": ("gauge", {"detector", "version"}),
    "softkin_drift_flag_rate": ("gauge", {"detector", "version"}),
    "softkin_drift_log10_martingale": ("gauge", {"detector", "version"}),
    "softkin_drift_max_log10_martingale": ("gauge", {"detector", "version"}),
    "softkin_drift_rows": ("gauge", {"detector", "version"}),
    "softkin_outlier_score": ("histogram", {"detector", "version"}),
    "softkin_p_value": ("histogram", {"detector", "version"}),
    "softkin_pending_bytes": ("gauge", set()),
    "softkin_pending_requests": ("gauge", set()),
    "softkin_pending_rows": ("gauge", set()),
    "softkin_queued_rows": ("gauge", set()),
    "softkin_ready": ("gauge", set()),
    "softkin_rejected": ("counter", {"reason"}),
    "softkin_reloads": ("counter", {"result"}),
    "softkin_request_rows": ("histogram", set()),
    "softkin_rows": ("counter", {"detector", "version", "verdict"}),
    "softkin_shadow_compared_rows": ("gauge", {"detector", "version"}),
    "softkin_shadow_disagreement": ("gauge", {"detector", "version"}),
    "softkin_shadow_p_value_difference": ("gauge", {"detector", "version"}),
    "softkin_shadow_rows": ("counter", {"detector", "version", "result"}),
    "softkin_stage_seconds": ("histogram", {"stage"}),
    "softkin_streams": ("gauge", set()),
}


def scores(p_value, outlier_score, alpha=0.05):
    """An answer with these columns."""
    p, s = np.asarray(p_value, np.float64), np.asarray(outlier_score, np.float64)
    return Scores(
        outlier_score=s,
        p_value=p,
        is_outlier=p <= alpha,
        predicted_class=np.zeros(len(p), np.int32),
        credibility=p,
        confidence=p,
        class_p_values=p[:, None],
        budget=ErrorBudget(
            detector="d",
            version="1",
            digest="x",
            device="cpu",
            guarantee="marginal",
            alpha=alpha,
            confidence=0.95,
            p_value_threshold=alpha,
            false_alarm_bound=0.1,
            fewest_selectable=None,
            calibration_size=99,
            smallest_p_value=0.01,
            smoothed=False,
        ),
    )


@pytest.fixture
def metrics():
    """On a registry of their own."""
    return Metrics(CollectorRegistry(), version="1.2.3")


def test_names_types_and_labels_are_a_contract(metrics):
    """Dashboards and alerts are written against them; counters show with _total."""
    method = ("UNARY", "s", "m")
    metrics.call_started(method)
    metrics.call_handled(method, "OK", 0.1)
    metrics.messages(method, received=1, sent=1)
    metrics.detector_ready("d", "1", digest="x", device="cpu", alpha=0.05, calibration_rows=9, bank_rows=8)
    metrics.rows_scored(scores([0.5], [1.0]))
    metrics.answered(1, {"infer": 0.1})
    metrics.batch_ran(1, 0.1)
    metrics.drift_watched("d", "1", DriftWatch(np.arange(9.0)).report)
    metrics.shadow_rows("d", "2", "agree", 1)
    metrics.shadows_watched(lambda: {("d", "2"): (8, 0.25, 0.125)})

    found = {
        family.name: (family.type, {k for s in family.samples for k in s.labels} - {"le"})
        for family in metrics.registry.collect()
    }

    assert found == CONTRACT


@pytest.mark.parametrize("result", SHADOW_RESULTS)
def test_a_candidate_that_was_promoted_before_any_scrape_shows_all_that_was_counted(metrics, result):
    """What was counted 0 times, too: without it, a share of all rows is none."""
    metrics.shadow_rows("d", "2", result, 7)

    found = {
        r: metrics.registry.get_sample_value(
            "softkin_shadow_rows_total", {"detector": "d", "version": "2", "result": r}
        )
        for r in SHADOW_RESULTS
    }
    assert found == {**dict.fromkeys(SHADOW_RESULTS, 0.0), result: 7.0}


def test_versions_that_come_and_go_leave_no_series_for_ever(metrics):
    """The last ones keep their counts, also those that came again; a server that reloads daily does not grow."""

    def serve_for_a_while(version):
        sized = {"alpha": 0.05, "calibration_rows": 9, "bank_rows": 8}
        metrics.detector_ready("d", version, digest="x", device="cpu", **sized)
        answer = scores([0.5, 0.01], [1.0, 2.0])
        metrics.rows_scored(replace(answer, budget=replace(answer.budget, version=version)))
        metrics.shadow_rows("d", version, "agree", 1)
        metrics.detector_gone("d", version, digest="x", device="cpu")

    def versions(name):
        families = [family for family in metrics.registry.collect() if family.name == name]
        return {s.labels["version"] for family in families for s in family.samples}

    for number in range(150):
        serve_for_a_while(str(number))
        serve_for_a_while("back again")

    for name in ("softkin_rows", "softkin_shadow_rows", "softkin_p_value", "softkin_outlier_score"):
        assert versions(name) == {"back again", *map(str, range(23, 150))}, name
    rows = {"detector": "d", "version": "back again", "verdict": "outlier"}
    assert metrics.registry.get_sample_value("softkin_rows_total", rows) == 150

    serve_for_a_while("3")
    counts = {"detector": "d", "version": "3", "le": "+Inf"}
    assert metrics.registry.get_sample_value("softkin_p_value_bucket", counts) == 2


@pytest.mark.parametrize(("name", "bounds"), [("softkin_p_value", P_VALUES), ("softkin_outlier_score", OUTLIER_SCORES)])
def test_bucket_counts_are_those_of_a_loop(metrics, name, bounds):
    """A value equal to a bound belongs to that bound's bucket (le), as everywhere in Prometheus."""
    rng = np.random.default_rng(0)
    batches = [np.concatenate([bounds, rng.uniform(-2, 2, 50)]), rng.uniform(-2000, 2000, 30), [np.inf]]
    for values in batches:
        metrics.rows_scored(scores(values, values))
    every = np.concatenate(batches)

    for bound in bounds:
        labels = {"detector": "d", "version": "1", "le": str(float(bound))}
        assert metrics.registry.get_sample_value(f"{name}_bucket", labels) == sum(v <= bound for v in every)
    labels = {"detector": "d", "version": "1", "le": "+Inf"}
    assert metrics.registry.get_sample_value(f"{name}_bucket", labels) == len(every)


def test_p_values_of_inliers_fill_the_buckets_evenly(metrics):
    """The 20 buckets are equal, and p = k / 20 falls into bucket k whatever the arithmetic that made it."""
    n = 1999
    p = (1 + np.arange(n + 1)) / (n + 1)

    metrics.rows_scored(scores(p, p))

    counts = [
        metrics.registry.get_sample_value("softkin_p_value_bucket", {"detector": "d", "version": "1", "le": str(b)})
        for b in P_VALUES
    ]
    assert np.diff([0, *counts]).tolist() == [(n + 1) / 20] * 20


def test_every_reason_shows_from_the_start(metrics):
    """A rate needs a 0 to start from."""
    assert [metrics.registry.get_sample_value("softkin_rejected_total", {"reason": r}) for r in REJECTED] == [0] * len(
        REJECTED
    )


def test_two_services_in_one_process_do_not_share_metrics(metrics):
    """Nothing is registered globally."""
    other = Metrics(CollectorRegistry(), version="1.2.3")

    metrics.rejected("invalid")

    assert other.registry.get_sample_value("softkin_rejected_total", {"reason": "invalid"}) == 0


def test_a_detector_that_is_gone_is_shown_no_longer_but_what_it_did_is(metrics):
    """Another version's series stay; counters never go back."""
    for version in "12":
        metrics.detector_ready("d", version, digest="x", device="cpu", alpha=0.05, calibration_rows=9, bank_rows=8)
        metrics.drift_watched("d", version, DriftWatch(np.arange(9.0)).report)
    metrics.rows_scored(scores([0.5], [1.0]))

    metrics.detector_gone("d", "1", digest="x", device="cpu")

    shown = {s.labels.get("version"): s.name for f in metrics.registry.collect() for s in f.samples if s.value == 9.0}
    assert shown == {"2": "softkin_calibration_rows"}
    counted = [s.name for f in metrics.registry.collect() for s in f.samples if s.labels.get("version") == "1"]
    assert {name.rpartition("_")[0] for name in counted} == {"softkin_rows", "softkin_p_value", "softkin_outlier_score"}


@pytest.mark.parametrize("result", RELOADS)
def test_reloads_begin_at_0_and_are_counted_by_result(metrics, result):
    """So that an alert on failures sees the first one."""
    metrics.reloaded(result)

    counts = [metrics.registry.get_sample_value("softkin_reloads_total", {"result": r}) for r in RELOADS]
    assert counts == [float(r == result) for r in RELOADS]

"""A real Prometheus scrapes a real server and counts what was sent."""

from __future__ import annotations


def test_prometheus_counts_the_rows_that_were_sent(served, tiny, prometheus):
    """Every row sent is in softkin_rows_total once, under its verdict, and once in the histogram of p-values."""
    prometheus.until("sum(softkin_rows_total)", 0)  # counters that start at 0 let increase() see the first rows

    scores = [served.client.score(x) for x in (tiny.inliers[:1], tiny.inliers[1:120], tiny.outliers[:17])]

    flagged = sum(int(s.is_outlier.sum()) for s in scores)
    prometheus.until("sum(softkin_rows_total)", 137)
    prometheus.until('sum(softkin_rows_total{verdict="outlier"})', flagged)
    prometheus.until("sum(softkin_p_value_count)", 137)
    assert flagged >= 17


def test_prometheus_evaluates_the_rules_and_raises_no_alert_on_a_healthy_server(served, tiny, prometheus):
    """The shipped rules run without errors against the metrics as they really are."""
    served.client.score(tiny.inliers)
    prometheus.until('count(softkin_detector_info{job="softkin"})', 1)
    prometheus.until("count(job_detector_version:softkin_rows:increase1h)", 1)

    rules = [rule for group in prometheus.get("/api/v1/rules")["groups"] for rule in group["rules"]]

    assert {(r["name"], r["health"]) for r in rules if r["health"] != "ok"} == set()
    assert prometheus.get("/api/v1/alerts")["alerts"] == []

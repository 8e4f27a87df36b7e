"""A real Prometheus scrapes a real server and counts what was sent."""

from __future__ import annotations

import json
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
import yaml

DEADLINE_SECONDS = 30


@pytest.fixture
def prometheus(served, program, root, tmp_path):
    """Base URL of a Prometheus with the shipped configuration, pointed at the server and made to hurry."""
    config = yaml.safe_load((root / "deploy/prometheus/prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(root / "deploy/prometheus/rules.yml")]
    config["scrape_configs"][0]["static_configs"][0]["targets"] = [f"127.0.0.1:{served.server.metrics_port}"]
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [
        program("prometheus"),
        f"--config.file={tmp_path / 'prometheus.yml'}",
        f"--storage.tsdb.path={tmp_path / 'data'}",
        f"--web.listen-address={address}",
    ]
    with (tmp_path / "log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        yield Prometheus(f"http://{address}", process, tmp_path / "log")
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()


class Prometheus:
    """A running Prometheus and its HTTP API."""

    def __init__(self, url: str, process: subprocess.Popen, log: Path) -> None:
        self.url, self.process, self.log = url, process, log

    def get(self, path: str, **parameters: str) -> dict:
        """The data of an API answer."""
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"{self.url}{path}?{query}", timeout=5) as answer:
            return json.load(answer)["data"]

    def until(self, expr: str, expected: float) -> None:
        """Wait until an instant query gives one sample of that value."""
        values: object = "no answer"
        give_up = time.monotonic() + DEADLINE_SECONDS
        while time.monotonic() < give_up and self.process.poll() is None:
            try:
                values = [float(r["value"][1]) for r in self.get("/api/v1/query", query=expr)["result"]]
            except urllib.error.URLError as e:  # it is still starting
                values = e
            if values == [expected]:
                return
            time.sleep(0.2)
        end = f"exit status {self.process.poll()}\n{self.log.read_text()}"
        pytest.fail(f"{expr} gave {values}, expected {expected}; {end}")


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

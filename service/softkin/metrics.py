"""Every Prometheus metric of the service, on a registry that the caller gives.

Label values are bounded: names of loaded detectors, methods, codes and fixed words; never what a caller sent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import ClassVar

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from softkin.drift import DriftReport
from softkin.histogram import Histogram
from softkin.scores import Scores

SECONDS = [1e-5 * 2**k for k in range(22)]  # 10 us to 21 s
LOAD_SECONDS = [0.01 * 2**k for k in range(17)]  # 10 ms to 11 minutes
ROWS = [float(2**k) for k in range(15)]
P_VALUES = [k / 20 for k in range(1, 21)]
OUTLIER_SCORES = [-1000, -300, -100, -50, -20, -10, -5, -2, -1, 0, 1, 2, 5, 10, 20, 50, 100, 300, 1000]

REJECTED = (
    "queue_full",
    "unmeetable",
    "too_large",
    "undelivered",
    "invalid",
    "not_found",
    "unsupported",
    "unauthenticated",
    "unavailable",
    "deadline",
    "cancelled",
    "internal",
)
RELOADS = ("loaded", "unchanged", "failed")
STAGES = ("decode", "queue", "infer", "calibrate", "encode")
VERDICTS = ("inlier", "outlier")
SHADOW_RESULTS = ("agree", "disagree", "dropped")
DETECTOR = ("detector", "version")
_METHOD = ("grpc_type", "grpc_service", "grpc_method")
VERSIONS_REMEMBERED = 128
"""Unloaded versions whose counts stay, so that the last ones are scraped; those of every reload would fill memory."""


class Metrics:
    """The service's metrics.

    Args:
        registry: where they are registered and what /metrics shows.
        version: of the software, for `softkin_build_info`.
    """

    def __init__(self, registry: CollectorRegistry, *, version: str) -> None:
        self.registry = registry
        self._children: dict[tuple[int, tuple[str, ...]], Counter] = {}
        self._unloaded: list[tuple[str, str]] = []
        self._started = Counter("grpc_server_started_total", "RPCs started.", _METHOD, registry=registry)
        self._handled = Counter("grpc_server_handled_total", "RPCs done.", (*_METHOD, "grpc_code"), registry=registry)
        self._handling = Histogram("grpc_server_handling_seconds", "Seconds per RPC.", _METHOD, SECONDS)
        self._received = Counter("grpc_server_msg_received_total", "Messages of streams.", _METHOD, registry=registry)
        self._sent = Counter("grpc_server_msg_sent_total", "Messages of streams.", _METHOD, registry=registry)
        self._rows = Counter("softkin_rows_total", "Rows scored.", (*DETECTOR, "verdict"), registry=registry)
        self._p_value = Histogram(
            "softkin_p_value", "Conformal p-values of scored rows: flat when they are inliers.", DETECTOR, P_VALUES
        )
        # Scores may be negative, so this histogram has buckets but, by the rules of the format, no sum and no count.
        self._outlier_score = Histogram(
            "softkin_outlier_score", "Outlier scores of scored rows.", DETECTOR, OUTLIER_SCORES
        )
        self._stage = Histogram("softkin_stage_seconds", "Seconds per request and stage.", ("stage",), SECONDS)
        for stage in STAGES:
            self._stage.begin((stage,))
        self._request_rows = Histogram("softkin_request_rows", "Rows per request.", (), ROWS)
        self._batch_rows = Histogram("softkin_batch_rows", "Rows per run of the device.", (), ROWS)
        self._batch_seconds = Histogram("softkin_batch_seconds", "Seconds per run of the device.", (), SECONDS)
        for histogram in (
            self._handling,
            self._p_value,
            self._outlier_score,
            self._stage,
            self._request_rows,
            self._batch_rows,
            self._batch_seconds,
        ):
            registry.register(histogram)
        self.ready = Gauge(
            "softkin_ready", "1 while every bundle is loaded and the server is not stopping.", registry=registry
        )
        self.pending_rows = Gauge("softkin_pending_rows", "Rows waiting or being scored.", registry=registry)
        self.pending_bytes = Gauge("softkin_pending_bytes", "Bytes of their inputs.", registry=registry)
        self.pending_requests = Gauge("softkin_pending_requests", "Requests waiting or scored.", registry=registry)
        self.queued_rows = Gauge("softkin_queued_rows", "Rows that no batch has taken yet.", registry=registry)
        self.streams = Gauge("softkin_streams", "ScoreStream calls open.", registry=registry)
        self._rejected = Counter("softkin_rejected_total", "Requests not scored.", ("reason",), registry=registry)
        for reason in REJECTED:
            self._rejected.labels(reason)
        self._detector_info = Gauge(
            "softkin_detector_info", "1 per loaded detector.", (*DETECTOR, "digest", "device"), registry=registry
        )
        self._alpha = Gauge(
            "softkin_alpha", "False-alarm rate used when a request names none.", DETECTOR, registry=registry
        )
        self._calibration_rows = Gauge(
            "softkin_calibration_rows", "Calibration rows behind each p-value.", DETECTOR, registry=registry
        )
        self._bank_rows = Gauge("softkin_bank_rows", "Training rows in the bank.", DETECTOR, registry=registry)
        self._load_seconds = Histogram(
            "softkin_detector_load_seconds", "Seconds from reading a bundle to serving it.", (), LOAD_SECONDS
        )
        registry.register(self._load_seconds)
        self._reloads = Counter(
            "softkin_reloads_total", "Bundles read while the server runs.", ("result",), registry=registry
        )
        for result in RELOADS:
            self._reloads.labels(result)
        self._shadow_rows = Counter(
            "softkin_shadow_rows_total",
            "Rows of live traffic for the shadow version, by whether it agrees with the verdict.",
            (*DETECTOR, "result"),
            registry=None,
        )
        self._shadow = _ShadowCollector(self._shadow_rows)
        registry.register(self._shadow)
        self._drift = _DriftCollector()
        registry.register(self._drift)
        self.device_fallback = Gauge(
            "softkin_device_fallback",
            "1 when device auto took the CPU though there is an NVIDIA driver.",
            registry=registry,
        )
        build = Gauge(
            "softkin_build_info", "1; the label says which software this is.", ("version",), registry=registry
        )
        build.labels(version).set(1)

    def call_started(self, method: tuple[str, str, str]) -> None:
        """Count a call that arrived; `method`: kind, service and name."""
        self._child(self._started, method).inc()

    def call_handled(self, method: tuple[str, str, str], code: str, seconds: float) -> None:
        """Count its end, whatever the status."""
        self._child(self._handled, (*method, code)).inc()
        self._handling.observe(method, seconds)

    def messages(self, method: tuple[str, str, str], *, received: int = 0, sent: int = 0) -> None:
        """Count messages of a stream."""
        self._child(self._received, method).inc(received)
        self._child(self._sent, method).inc(sent)

    def rejected(self, reason: str) -> None:
        """Count a request that was not scored; `reason` is one of `REJECTED`."""
        self._rejected.labels(reason).inc()

    def rows_scored(self, scores: Scores) -> None:
        """Count rows that got their verdicts, of one request or several."""
        labels = (scores.budget.detector, scores.budget.version)
        outliers = int(np.count_nonzero(scores.is_outlier))
        self._child(self._rows, (*labels, "outlier")).inc(outliers)
        self._child(self._rows, (*labels, "inlier")).inc(len(scores) - outliers)
        self._p_value.observe_all(labels, scores.p_value)
        self._outlier_score.observe_all(labels, scores.outlier_score)

    def answered(self, rows: int, stage_seconds: Mapping[str, float]) -> None:
        """Count one request that got its answer."""
        self._request_rows.observe((), rows)
        for stage, seconds in stage_seconds.items():
            self._stage.observe((stage,), seconds)

    def batch_ran(self, rows: int, seconds: float) -> None:
        """Count one run of the device."""
        self._batch_rows.observe((), rows)
        self._batch_seconds.observe((), seconds)

    def _child(self, counter: Counter, labels: tuple[str, ...]) -> Counter:
        """`counter.labels(*labels)`, which takes longer than all else about an increment."""
        key = (id(counter), labels)
        if key not in self._children:
            self._children[key] = counter.labels(*labels)
        return self._children[key]

    def detector_ready(
        self, name: str, version: str, *, digest: str, device: str, alpha: float, calibration_rows: int, bank_rows: int
    ) -> None:
        """Describe a detector that begins to serve, and start its counters at 0."""
        if (name, version) in self._unloaded:
            self._unloaded.remove((name, version))
        self._detector_info.labels(name, version, digest, device).set(1)
        self._alpha.labels(name, version).set(alpha)
        self._calibration_rows.labels(name, version).set(calibration_rows)
        self._bank_rows.labels(name, version).set(bank_rows)
        for verdict in VERDICTS:
            self._rows.labels(name, version, verdict)
        for histogram in (self._p_value, self._outlier_score):
            histogram.begin((name, version))

    def detector_gone(self, name: str, version: str, *, digest: str, device: str) -> None:
        """Describe a detector no longer; what was counted stays until `VERSIONS_REMEMBERED` others are gone, too."""
        self._detector_info.remove(name, version, digest, device)
        for gauge in (self._alpha, self._calibration_rows, self._bank_rows):
            gauge.remove(name, version)
        self._drift.forget((name, version))
        self._unloaded.append((name, version))
        if len(self._unloaded) > VERSIONS_REMEMBERED:
            self._forget(self._unloaded.pop(0))

    def _forget(self, labels: tuple[str, str]) -> None:
        for counter, values in ((self._rows, VERDICTS), (self._shadow_rows, SHADOW_RESULTS)):
            for value in values:
                self._children.pop((id(counter), (*labels, value)), None)
                with suppress(KeyError):  # of older prometheus_client, where there is no such series
                    counter.remove(*labels, value)
        for histogram in (self._p_value, self._outlier_score):
            histogram.forget(labels)

    def detector_loaded(self, seconds: float) -> None:
        """Count a bundle that was loaded; `seconds`: from reading it to serving it."""
        self._load_seconds.observe((), seconds)

    def reloaded(self, result: str) -> None:
        """Count a bundle that was read while the server runs; `result` is one of `RELOADS`."""
        self._reloads.labels(result).inc()

    def shadow_rows(self, name: str, version: str, result: str, rows: int) -> None:
        """Count rows for the shadow version; `result` is one of `SHADOW_RESULTS`."""
        for other in SHADOW_RESULTS:  # perhaps it is no candidate any more at the next scrape, which shows all or none
            self._child(self._shadow_rows, (name, version, other)).inc(rows if other == result else 0)

    def shadows_watched(self, reports: Callable[[], Mapping[tuple[str, str], tuple[float, ...]]]) -> None:
        """Show how far shadow versions differ: compared rows, disagreement, p-value difference, by name and version.

        `reports` is asked at every scrape. Whatever version it names has its counters too, from 0.
        """
        self._shadow.reports = reports

    def certificate_watched(self, expires: Callable[[], float]) -> None:
        """Show when the TLS certificate expires, asked at every scrape; without TLS there is no such metric."""
        name = "softkin_tls_certificate_expiry_seconds"
        self._watched(name, "Unix time at which the TLS certificate expires.", expires)

    def drift_saving_watched(self, unsaved: Callable[[], float]) -> None:
        """Show how many drift states could not be written, asked at every scrape; only where states are kept."""
        name = "softkin_unsaved_drift_states"
        self._watched(name, "Drift states that could not be written at the last attempt.", unsaved)

    def _watched(self, name: str, text: str, value: Callable[[], float]) -> None:
        Gauge(name, text, registry=self.registry).set_function(value)

    def drift_watched(self, name: str, version: str, report: Callable[[], DriftReport]) -> None:
        """Show the drift watch of a detector; `report` is asked at every scrape."""
        self._drift.watch((name, version), report)


class _DriftCollector(Collector):
    """The drift watches' gauges, read when they are scraped."""

    GAUGES: ClassVar[dict[str, tuple[str, Callable[[DriftReport], float]]]] = {
        "rows": ("Rows watched, over restarts where state is kept.", lambda r: r.rows),
        "log10_martingale": (
            "Evidence against exchangeability with the calibration rows.",
            lambda r: r.log10_martingale,
        ),
        "max_log10_martingale": ("The largest evidence so far.", lambda r: r.max_log10_martingale),
        "alarm": ("1 once the martingale has reached 1 / alarm level.", lambda r: r.alarm),
        "alarm_level": ("Chance of an alarm, ever, while nothing drifts.", lambda r: r.level),
        "cusum_no_guarantee": (
            "Recent evidence for strange rows, in nats; alarms on it have no rate.",
            lambda r: r.cusum,
        ),
        "flag_rate": ("Share of recent rows with p-value <= softkin_alpha.", lambda r: r.flag_rate),
    }

    def __init__(self) -> None:
        self._reports: dict[tuple[str, str], Callable[[], DriftReport]] = {}

    def watch(self, labels: tuple[str, str], report: Callable[[], DriftReport]) -> None:
        self._reports = {**self._reports, labels: report}

    def forget(self, labels: tuple[str, str]) -> None:
        self._reports = {k: report for k, report in self._reports.items() if k != labels}

    def describe(self) -> list[GaugeMetricFamily]:
        return [GaugeMetricFamily(f"softkin_drift_{k}", text, labels=DETECTOR) for k, (text, _) in self.GAUGES.items()]

    def collect(self) -> Iterator[GaugeMetricFamily]:
        reports = {labels: report() for labels, report in self._reports.items()}
        for family, (_, value) in zip(self.describe(), self.GAUGES.values(), strict=True):
            for labels, report in reports.items():
                family.add_metric(labels, float(value(report)))
            yield family


class _ShadowCollector(Collector):
    """What shadow versions make of live traffic, read when it is scraped.

    Args:
        rows: the counter of their rows, registered nowhere else: a version that has none yet shows with 0.
    """

    GAUGES: ClassVar[dict[str, str]] = {
        "compared_rows": "Rows compared since the shadow version or the one that serves has changed.",
        "disagreement": "Share of compared rows with another verdict.",
        "p_value_difference": "Mean absolute difference of p-values over compared rows.",
    }

    def __init__(self, rows: Counter) -> None:
        self._rows = rows
        self.reports: Callable[[], Mapping[tuple[str, str], tuple[float, ...]]] = dict

    def describe(self) -> list[Metric]:
        return [*self._rows.describe(), *self._gauges()]

    def collect(self) -> Iterator[Metric]:
        reports = self.reports()
        for labels in reports:
            for result in SHADOW_RESULTS:
                self._rows.labels(*labels, result)
        yield from self._rows.collect()
        for i, family in enumerate(self._gauges()):
            for labels, values in reports.items():
                family.add_metric(labels, values[i])
            yield family

    def _gauges(self) -> list[GaugeMetricFamily]:
        return [GaugeMetricFamily(f"softkin_shadow_{k}", text, labels=DETECTOR) for k, text in self.GAUGES.items()]

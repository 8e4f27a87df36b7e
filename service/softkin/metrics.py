"""Every Prometheus metric of the service, on a registry that the caller gives.

Label values are bounded: names of loaded detectors, methods, codes and fixed words; never what a caller sent.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from softkin.drift import DriftReport
from softkin.scores import Scores

SECONDS = [1e-5 * 2**k for k in range(22)]  # 10 us to 21 s
ROWS = [float(2**k) for k in range(15)]
P_VALUES = [k / 20 for k in range(1, 21)]
OUTLIER_SCORES = [-1000, -300, -100, -50, -20, -10, -5, -2, -1, 0, 1, 2, 5, 10, 20, 50, 100, 300, 1000]

REJECTED = ("queue_full", "invalid", "not_found", "unavailable", "deadline", "cancelled", "internal")
DETECTOR = ("detector", "version")
_METHOD = ("grpc_type", "grpc_service", "grpc_method")


class Metrics:
    """The service's metrics.

    Args:
        registry: where they are registered and what /metrics shows.
        version: of the software, for `softkin_build_info`.
    """

    def __init__(self, registry: CollectorRegistry, *, version: str) -> None:
        self.registry = registry
        self._started = Counter("grpc_server_started_total", "RPCs started.", _METHOD, registry=registry)
        self._handled = Counter("grpc_server_handled_total", "RPCs done.", (*_METHOD, "grpc_code"), registry=registry)
        self._handling = Histogram(
            "grpc_server_handling_seconds", "Seconds per RPC.", _METHOD, buckets=SECONDS, registry=registry
        )
        self._rows = Counter("softkin_rows_total", "Rows scored.", (*DETECTOR, "verdict"), registry=registry)
        self._p_value = _RowHistogram(
            "softkin_p_value", "Conformal p-values of scored rows: flat when they are inliers.", P_VALUES
        )
        # Scores may be negative, so this histogram has buckets but, by the rules of the format, no sum and no count.
        self._outlier_score = _RowHistogram("softkin_outlier_score", "Outlier scores of scored rows.", OUTLIER_SCORES)
        registry.register(self._p_value)
        registry.register(self._outlier_score)
        self._stage = Histogram(
            "softkin_stage_seconds", "Seconds per request and stage.", ("stage",), buckets=SECONDS, registry=registry
        )
        self._batch_rows = Histogram("softkin_batch_rows", "Rows per request.", buckets=ROWS, registry=registry)
        self.pending_rows = Gauge("softkin_pending_rows", "Rows waiting or being scored.", registry=registry)
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
        self._drift = _DriftCollector()
        registry.register(self._drift)
        self.device_fallback = Gauge(
            "softkin_device_fallback",
            "1 when device auto took the CPU though the build offers CUDA.",
            registry=registry,
        )
        build = Gauge(
            "softkin_build_info", "1; the label says which software this is.", ("version",), registry=registry
        )
        build.labels(version).set(1)

    def call_started(self, service: str, method: str) -> None:
        """Count a unary RPC that reached its handler."""
        self._started.labels("UNARY", service, method).inc()

    def call_handled(self, service: str, method: str, code: str, seconds: float) -> None:
        """Count its end, whatever the status."""
        self._handled.labels("UNARY", service, method, code).inc()
        self._handling.labels("UNARY", service, method).observe(seconds)

    def rejected(self, reason: str) -> None:
        """Count a request that was not scored; `reason` is one of `REJECTED`."""
        self._rejected.labels(reason).inc()

    def scored(self, scores: Scores, stage_seconds: Mapping[str, float]) -> None:
        """Count one answered request and its rows."""
        labels = (scores.budget.detector, scores.budget.version)
        outliers = int(scores.is_outlier.sum())
        self._rows.labels(*labels, "outlier").inc(outliers)
        self._rows.labels(*labels, "inlier").inc(len(scores) - outliers)
        self._batch_rows.observe(len(scores))
        self._p_value.observe(labels, scores.p_value)
        self._outlier_score.observe(labels, scores.outlier_score)
        for stage, seconds in stage_seconds.items():
            self._stage.labels(stage).observe(seconds)

    def detector_ready(
        self, name: str, version: str, *, digest: str, device: str, alpha: float, calibration_rows: int, bank_rows: int
    ) -> None:
        """Describe a detector that begins to serve, and start its counters at 0."""
        self._detector_info.labels(name, version, digest, device).set(1)
        self._alpha.labels(name, version).set(alpha)
        self._calibration_rows.labels(name, version).set(calibration_rows)
        self._bank_rows.labels(name, version).set(bank_rows)
        for verdict in ("inlier", "outlier"):
            self._rows.labels(name, version, verdict)

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

    def describe(self) -> list[GaugeMetricFamily]:
        return [GaugeMetricFamily(f"softkin_drift_{k}", text, labels=DETECTOR) for k, (text, _) in self.GAUGES.items()]

    def collect(self) -> Iterator[GaugeMetricFamily]:
        reports = {labels: report() for labels, report in self._reports.items()}
        for family, (_, value) in zip(self.describe(), self.GAUGES.values(), strict=True):
            for labels, report in reports.items():
                family.add_metric(labels, float(value(report)))
            yield family


class _RowHistogram(Collector):
    """A histogram that takes a whole batch at once: prometheus_client's own takes over a microsecond per value."""

    def __init__(self, name: str, documentation: str, bounds: Sequence[float]) -> None:
        self._name, self._documentation = name, documentation
        self._bounds = np.asarray(bounds, np.float64)
        self._edges = [*map(floatToGoString, bounds), "+Inf"]
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, str], NDArray[np.int64]] = {}
        self._sums: dict[tuple[str, str], float] = {}

    def observe(self, labels: tuple[str, str], values: NDArray[np.float64]) -> None:
        bucket = np.searchsorted(self._bounds, values, side="left")  # a value on a bound belongs below it: le
        counts = np.bincount(bucket, minlength=len(self._edges)).astype(np.int64)
        total = float(values.sum())
        with self._lock:
            self._counts[labels] = self._counts.get(labels, 0) + counts
            self._sums[labels] = self._sums.get(labels, 0.0) + total

    def describe(self) -> list[HistogramMetricFamily]:
        return [HistogramMetricFamily(self._name, self._documentation, labels=DETECTOR)]

    def collect(self) -> Iterator[HistogramMetricFamily]:
        family = HistogramMetricFamily(self._name, self._documentation, labels=DETECTOR)
        with self._lock:
            for labels, counts in self._counts.items():
                cumulative = map(float, np.cumsum(counts))
                family.add_metric(labels, list(zip(self._edges, cumulative, strict=True)), self._sums[labels])
        yield family

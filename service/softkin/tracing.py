"""OpenTelemetry traces: one span per call, with the time of each stage. Needs the extra `tracing`."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

import grpc

from softkin.errors import InvalidInputError
from softkin.scores import Scores

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter


class Tracing:
    """Spans of the calls of some services, sent where OpenTelemetry's own `OTEL_*` variables say.

    Args:
        services: full names; calls of others have no span.
        exporter: where spans go; by OTLP over gRPC when None.

    Raises:
        InvalidInputError: the extra is not installed.

    Attributes:
        interceptor: to stand before all others.
    """

    def __init__(self, services: Collection[str], exporter: SpanExporter | None = None) -> None:
        try:
            from opentelemetry import trace
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
            from opentelemetry.instrumentation.grpc import server_interceptor
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as e:
            raise InvalidInputError(
                "tracing", f"got true, but {e.name} is not installed; pip install 'softkin[tracing]'"
            ) from None
        wanted = tuple(f"/{service}/" for service in services)
        name = os.environ.get("OTEL_SERVICE_NAME", "softkin")
        self._provider = TracerProvider(resource=Resource.create({"service.name": name}))
        self._provider.add_span_processor(BatchSpanProcessor(exporter or OTLPSpanExporter()))
        self._current_span: Callable[[], Any] = trace.get_current_span
        self.interceptor: grpc.ServerInterceptor = server_interceptor(  # type: ignore[no-untyped-call]
            tracer_provider=self._provider, filter_=lambda call: call.method.startswith(wanted)
        )

    def describe(self, scores: Scores) -> None:
        """Tell the span of the call at hand what was scored, by which detector, and how long each stage took."""
        b = scores.budget
        self._current_span().set_attributes(
            {
                "softkin.detector": b.detector,
                "softkin.version": b.version,
                "softkin.rows": len(scores),
                "softkin.flagged": int(scores.is_outlier.sum()),
                **{f"softkin.{stage}_seconds": seconds for stage, seconds in scores.stage_seconds.items()},
            }
        )

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()

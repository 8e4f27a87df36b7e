"""Spans: one for each call of softkin's services, in the caller's trace, with what was scored and how long it took."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from softkin import tracing
from softkin.converters import array_to_tensor
from softkin.errors import InvalidInputError
from softkin.v1 import outlier_pb2 as pb
from standin import StandIn

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def exporter(monkeypatch):
    """Keeps the spans of the server that the test starts."""
    kept = InMemorySpanExporter()

    class Kept(tracing.Tracing):
        """Sends nothing anywhere."""

        def __init__(self, services):
            super().__init__(services, kept)

    monkeypatch.setattr("softkin.server.Tracing", Kept)
    return kept


def test_a_call_leaves_one_span_in_its_callers_trace(start, rows, exporter):
    """With detector, rows and stages; calls of health leave none."""
    running = start(StandIn(), tracing=True)
    request = pb.ScoreRequest(inputs=array_to_tensor(rows(3)))
    running.stub.Score(request, metadata=(("traceparent", PARENT),), timeout=20)
    request.alpha = 7.0
    with pytest.raises(grpc.RpcError):
        running.stub.Score(request, timeout=20)
    messages = [pb.ScoreStreamRequest(request=pb.ScoreRequest(inputs=array_to_tensor(rows(1))))]
    assert len(list(running.stub.ScoreStream(iter(messages), timeout=20))) == 1
    with running.client() as client:
        assert client.healthy()

    running.server.stop_now()

    spans = exporter.get_finished_spans()
    assert [s.name.rpartition("/")[2] for s in spans] == ["Score", "Score", "ScoreStream"]
    scored, refused, _ = spans
    assert f"{scored.context.trace_id:032x}" == PARENT.split("-")[1]
    assert f"{scored.parent.span_id:016x}" == PARENT.split("-")[2]
    found = dict(scored.attributes)
    assert (found["softkin.detector"], found["softkin.version"], found["softkin.rows"]) == ("standin", "1", 3)
    assert found["softkin.flagged"] == 2
    assert found["softkin.infer_seconds"] == 0.25
    assert {f"softkin.{stage}_seconds" for stage in ("queue", "infer", "calibrate")} <= set(found)
    assert refused.attributes["rpc.grpc.status_code"] == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert scored.resource.attributes["service.name"] == "softkin"
    # The accounts are the same with spans and without.
    labels = {"grpc_type": "UNARY", "grpc_service": "softkin.v1.OutlierService", "grpc_method": "Score"}
    assert running.sample("grpc_server_handled_total", grpc_code="OK", **labels) == 1


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps what OTLP brings it."""

    def __init__(self):
        self.requests = []

    def Export(self, request, context):  # noqa: N802
        """Take some spans."""
        self.requests.append(request)
        return trace_service_pb2.ExportTraceServiceResponse()


def test_spans_go_by_otlp_where_the_variables_say(start, rows, monkeypatch):
    """Under the name that they give the service; what is left is sent before the server ends."""
    collector, server = Collector(), grpc.server(ThreadPoolExecutor(1))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "digits")
    server.start()
    try:
        running = start(StandIn(), tracing=True)
        running.score(rows(3))

        running.server.stop_now()
    finally:
        server.stop(None).wait()

    [resource] = [r for request in collector.requests for r in request.resource_spans]
    assert ("service.name", "digits") in [(a.key, a.value.string_value) for a in resource.resource.attributes]
    assert [span.name for scope in resource.scope_spans for span in scope.spans] == ["/softkin.v1.OutlierService/Score"]


def test_tracing_without_its_extra_says_what_to_install(start, monkeypatch):
    """At the start, not at the first call."""
    monkeypatch.setitem(sys.modules, "opentelemetry.instrumentation.grpc", None)

    with pytest.raises(InvalidInputError, match=r"tracing: .*opentelemetry.*pip install 'softkin\[tracing\]'"):
        start(StandIn(), tracing=True)

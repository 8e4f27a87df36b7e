"""The Open Inference Protocol as a service: the same way to scores as softkin's own, and what is counted."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import threading

import grpc
import pytest
from google.rpc.error_details_pb2 import RetryInfo
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from inference_requests import detail, request, stub
from softkin.converters import array_to_tensor
from softkin.inference import grpc_service_pb2 as oip
from softkin.server import INFERENCE_SERVICE
from softkin.v1 import outlier_pb2 as pb
from standin import StandIn
from wire import until_the_server_ends_it

Code = grpc.StatusCode
INFER = {"grpc_type": "UNARY", "grpc_service": INFERENCE_SERVICE, "grpc_method": "ModelInfer"}
VERDICTS = ("inlier", "outlier")


def test_requests_of_both_protocols_share_a_batch(start, rows, gate):
    """There is one gate and one queue; what was scored is counted once, whoever asked."""
    detector = StandIn(gate=gate)
    running = start(detector, workers=1)
    first = stub(running).ModelInfer.future(request(), timeout=60)
    assert detector.entered.acquire(timeout=20)
    ours = running.stub.Score.future(pb.ScoreRequest(inputs=array_to_tensor(rows(2))), timeout=60)
    theirs = stub(running).ModelInfer.future(request(rows(3)), timeout=60)
    running.until(lambda: running.sample("softkin_queued_rows") == 5)

    gate.set()

    assert [r.result(timeout=20).IsInitialized() for r in (first, ours, theirs)] == [True] * 3
    assert detector.batches == [1, 5]
    running.until(lambda: running.sample("grpc_server_handled_total", grpc_code="OK", **INFER) == 2)
    # Rows are counted behind their answers' backs.
    labels = {"detector": "standin", "version": "1"}
    running.until(lambda: sum(running.sample("softkin_rows_total", verdict=v, **labels) for v in VERDICTS) == 6)
    running.until(lambda: running.sample("softkin_drift_rows", **labels) == 6)
    assert running.sample("softkin_request_rows_count") == 3
    assert running.sample("softkin_stage_seconds_count", stage="encode") == 3
    assert all(0 < running.sample("softkin_stage_seconds_sum", stage=stage) < 60 for stage in ("decode", "encode"))


def test_an_answer_is_traced_as_one_of_our_own(server, rows):
    """The span of the call hears of the scores."""
    seen = []
    server.server._path.describe = seen.append

    stub(server).ModelInfer(request(rows(3)), timeout=20)

    assert [(len(scores), scores.budget.detector) for scores in seen] == [(3, "standin")]


def test_too_much_is_refused_with_the_time_to_wait(start, gate):
    """RESOURCE_EXHAUSTED with RetryInfo, counted; the request that was let in is answered."""
    detector = StandIn(gate=gate)
    running = start(detector, max_rows=1, max_pending_rows=1)
    pending = stub(running).ModelInfer.future(request(), timeout=60)
    assert detector.entered.acquire(timeout=20)

    with pytest.raises(grpc.RpcError) as e:
        stub(running).ModelInfer(request(), timeout=20)
    gate.set()

    assert e.value.code() is Code.RESOURCE_EXHAUSTED
    assert detail(e.value, RetryInfo).retry_delay.ToTimedelta().total_seconds() == 0.5
    assert pending.result(timeout=20).model_version == "1"
    for code in ("OK", "RESOURCE_EXHAUSTED"):
        running.until(lambda code=code: running.sample("grpc_server_handled_total", grpc_code=code, **INFER) == 1)
    assert running.sample("softkin_rejected_total", reason="queue_full") == 1


def test_a_deadline_that_passes_and_a_caller_who_leaves_free_the_device(start, gate):
    """DEADLINE_EXCEEDED and CANCELLED, each counted as what it was; nothing is scored for them."""
    detector = StandIn(gate=gate)
    running = start(detector, workers=2)
    with pytest.raises(grpc.RpcError) as e:
        stub(running).ModelInfer(request(), **until_the_server_ends_it(1))
    leaving = stub(running).ModelInfer.future(request(), timeout=60)
    running.until(lambda: running.server.pending_requests == 1)

    leaving.cancel()

    assert e.value.code() is Code.DEADLINE_EXCEEDED
    for code in ("DEADLINE_EXCEEDED", "CANCELLED"):
        running.until(lambda code=code: running.sample("grpc_server_handled_total", grpc_code=code, **INFER) == 1)
    running.until(lambda: running.server.pending_requests == 0)
    assert detector.rows_scored == 0


def readiness(running):
    """Live, server ready, model ready."""
    s = stub(running)
    return (
        s.ServerLive(oip.ServerLiveRequest(), timeout=20).live,
        s.ServerReady(oip.ServerReadyRequest(), timeout=20).ready,
        s.ModelReady(oip.ModelReadyRequest(name="standin"), timeout=20).ready,
    )


def test_readiness_is_what_the_health_service_says(start):
    """Starting, serving, draining; while it drains, requests are still answered."""
    running = start(StandIn(), ready=False, drain_delay_seconds=600)
    seen = [readiness(running)]
    with pytest.raises(grpc.RpcError) as e:
        stub(running).ModelInfer(request(), timeout=20)
    running.server.make_ready()
    seen.append(readiness(running))
    stopping = threading.Thread(target=running.server.stop)
    stopping.start()
    running.until(lambda: not readiness(running)[1])

    seen.append(readiness(running))
    answered = stub(running).ModelInfer(request(), timeout=20)
    running.server.stop_now()
    stopping.join(timeout=20)

    assert e.value.code() is Code.UNAVAILABLE
    assert seen == [(True, False, False), (True, True, True), (True, False, False)]
    assert answered.model_name == "standin"


@pytest.mark.parametrize("version", ["2", "canary"])
@pytest.mark.parametrize("method", ["ModelInfer", "ModelMetadata", "ModelConfig"])
def test_an_unknown_version_or_label_is_not_found(shared_server, method, version):
    """NOT_FOUND, with what is there."""
    asked = request(model_version=version)
    if method != "ModelInfer":
        asked = getattr(oip, f"{method}Request")(name="standin", version=version)

    with pytest.raises(grpc.RpcError) as e:
        getattr(stub(shared_server), method)(asked, timeout=20)

    assert e.value.code() is Code.NOT_FOUND
    assert e.value.details() == f"no version {version!r} of that detector; loaded: standin version 1"


def test_metadata_says_what_the_protocol_has_no_field_for(start):
    """Versions of that name alone; the properties of the one that serves; the delay of the batcher."""
    running = start(StandIn("a"), StandIn(version="1"), StandIn(version="2"), alpha=0.2, batch_delay_seconds=0.001)
    running.server._registry.set_label("standin", "1", "stable")

    metadata = stub(running).ModelMetadata(oip.ModelMetadataRequest(name="standin"), timeout=20)
    config = stub(running).ModelConfig(oip.ModelConfigRequest(name="standin"), timeout=20).config

    assert list(metadata.versions) == ["1", "2"]
    assert dict(metadata.properties) == {
        "version": "1",
        "digest": StandIn(version="1").digest,
        "device": "cpu",
        "labels": '["stable"]',
        "classes": '["ankle boot", "sandal", "sneaker [new]"]',
        "layers": '["conv", "dense"]',
        "parts": "[]",
        "default_alpha": "0.2",
        "default_guarantee": "marginal",
        "evidence_outputs": json.dumps(
            ["neighbors_ids", "neighbors_labels", "neighbors_distances", "neighbors_shares", "parts_values"]
        ),
    }
    assert config.dynamic_batching.max_queue_delay_microseconds == 1000


def test_metadata_names_the_parts_of_a_joint_detector(start):
    """In the order of the response's `parts_names`."""
    joint = StandIn()
    joint.manifest = dataclasses.replace(joint.manifest, nonconformity="joint", parts=("posterior", "density"))

    metadata = stub(start(joint)).ModelMetadata(oip.ModelMetadataRequest(name="standin"), timeout=20)

    assert json.loads(metadata.properties["parts"]) == ["posterior", "density"]


def test_tokens_guard_it_too(start, tmp_path):
    """UNAUTHENTICATED without one."""
    file = tmp_path / "tokens"
    file.write_text("a-token-0123456789")
    running = start(StandIn(), token_file=file)

    with pytest.raises(grpc.RpcError) as e:
        stub(running).ModelInfer(request(), timeout=20)
    answer = stub(running).ModelInfer(request(), timeout=20, metadata=[("authorization", "Bearer a-token-0123456789")])

    assert e.value.code() is Code.UNAUTHENTICATED
    assert answer.model_name == "standin"


def test_it_can_be_switched_off(start):
    """UNIMPLEMENTED, as any service that is not there; reflection does not list it."""
    running = start(StandIn(), inference_protocol=False)

    with pytest.raises(grpc.RpcError) as e:
        stub(running).ServerLive(oip.ServerLiveRequest(), timeout=20)

    assert e.value.code() is Code.UNIMPLEMENTED
    assert INFERENCE_SERVICE not in ProtoReflectionDescriptorDatabase(running.channel).get_services()


@pytest.mark.parametrize("module", ["softkin.client", "softkin.server", "softkin.cli"])
def test_importing_softkin_does_not_bring_the_protocols_messages(module):
    """A process that has them could not import tritonclient, which defines the same ones."""
    code = f"import {module}, sys; print([m for m in sys.modules if m.startswith('softkin.inference')])"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)

    assert done.stdout.strip() == "[]"

"""More callers than the server takes, who never pause: nobody is left without an answer or a reason."""

from __future__ import annotations

import re
import signal
import threading
from collections import Counter

import grpc
import pytest
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from grpc_health.v1 import health_pb2, health_pb2_grpc

from softkin.statuses import RETRY_AFTER, STATUS_DETAILS
from softkin.v1 import outlier_pb2 as pb

SCORE = "/softkin.v1.OutlierService/Score"
PLACES = 16
DEADLINE_SECONDS = 30.0


@pytest.mark.parametrize("calls", [100, pytest.param(1000, marks=pytest.mark.long)])
def test_callers_for_three_servers_are_answered_or_told_when_to_come_back(serve, request_of, answers_well, calls):
    """No deadline passes and health stays SERVING: what is accepted is what can be done."""
    process = serve("--batch-seconds", "0.01", "--max-pending-requests", str(PLACES))
    codes: Counter[str] = Counter()
    unexplained, wrong, health = [], [], Counter()
    lock, over = threading.Lock(), threading.Event()

    def caller(i):
        message = request_of(2, float(i)).SerializeToString()
        with grpc.insecure_channel(process.target, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            call = channel.unary_unary(SCORE, response_deserializer=pb.ScoreResponse.FromString)
            for _ in range(calls):
                code = "OK"
                try:
                    found = call(message, timeout=DEADLINE_SECONDS)
                except grpc.RpcError as e:
                    code = e.code().name
                    if not explained(e):
                        unexplained.append(e)
                else:
                    if list(found.outlier_score) != [6.0 * i, 6.0 * i + 6.0]:
                        wrong.append((i, list(found.outlier_score)))
                with lock:
                    codes[code] += 1

    def ask():
        check = health_pb2_grpc.HealthStub(process.channel).Check
        while not over.wait(0.02):
            for name in ("", "softkin.v1.OutlierService"):
                status = check(health_pb2.HealthCheckRequest(service=name), timeout=DEADLINE_SECONDS).status
                health[health_pb2.HealthCheckResponse.ServingStatus.Name(status)] += 1

    watching = threading.Thread(target=ask)
    callers = [threading.Thread(target=caller, args=(i,)) for i in range(3 * PLACES)]
    for thread in (watching, *callers):
        thread.start()
    for thread in callers:
        thread.join()
    over.set()
    watching.join()

    assert sum(codes.values()) == 3 * PLACES * calls
    assert codes.keys() == {"OK", "RESOURCE_EXHAUSTED"}, codes
    assert (unexplained, wrong, health.keys()) == ([], [], {"SERVING"})
    answers_well(process)
    process.popen.send_signal(signal.SIGTERM)
    status, log = process.finish()
    assert (status, int(re.search(r"event=rows_scored rows=(\d+)", log)[1])) == (0, 2 * codes["OK"] + 3)


def explained(e):
    """Whether a refusal says which limit it met, and when to come back, to people, libraries and gRPC itself."""
    trailers, retry = dict(e.trailing_metadata()), RetryInfo()
    details = Status.FromString(trailers[STATUS_DETAILS]).details
    return "max_pending_requests = 16" in e.details() and RETRY_AFTER in trailers and details[0].Unpack(retry)

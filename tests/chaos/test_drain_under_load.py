"""SIGTERM while many callers send as fast as they can: whoever was accepted is answered, and the exit status is 0."""

from __future__ import annotations

import re
import signal
import threading
from collections import Counter

import grpc
import pytest

from softkin.v1 import outlier_pb2 as pb

CALLERS = 24
SCORE, STREAM = "/softkin.v1.OutlierService/Score", "/softkin.v1.OutlierService/ScoreStream"


@pytest.mark.parametrize("times", [3, pytest.param(50, marks=pytest.mark.long)])
def test_no_accepted_request_is_lost(serve, request_of, times):
    """The rows that the server scored are those that its callers got, whatever they were told about the rest."""
    for _ in range(times):
        process = serve("--batch-seconds", "0.002", "--max-pending-requests", "16")
        codes: Counter[str] = Counter()
        answered = threading.Event()
        message = request_of(2).SerializeToString()

        def caller(process=process, codes=codes, answered=answered, message=message):
            with grpc.insecure_channel(process.target, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
                call = channel.unary_unary(SCORE)
                while True:
                    try:
                        call(message, timeout=60)
                    except grpc.RpcError as e:
                        codes[e.code().name] += 1
                        if e.code() is grpc.StatusCode.UNAVAILABLE:
                            return
                    else:
                        codes["OK"] += 1
                        if codes["OK"] > 100:
                            answered.set()

        callers = [threading.Thread(target=caller) for _ in range(CALLERS)]
        for thread in callers:
            thread.start()
        assert answered.wait(60)

        process.popen.send_signal(signal.SIGTERM)
        for thread in callers:
            thread.join(60)
        status, log = process.finish()

        assert (status, "abandoned_requests=0" in log) == (0, True), log
        assert set(codes) <= {"OK", "UNAVAILABLE", "RESOURCE_EXHAUSTED"}
        assert int(re.search(r"event=rows_scored rows=(\d+)", log)[1]) == 2 * codes["OK"]


def test_streams_in_full_flow_get_every_answer_before_the_end(serve, request_of):
    """A stream that ends by itself while the server drains is answered to its last request."""
    process = serve("--batch-seconds", "0.01")
    message = pb.ScoreStreamRequest(request=request_of(1)).SerializeToString()
    streams = [process.channel.stream_stream(STREAM)(iter([message] * 200)) for _ in range(4)]
    first = [next(s) for s in streams]

    process.popen.send_signal(signal.SIGTERM)
    rest = [r for s in streams for r in s]
    status, log = process.finish()

    assert sum(len(pb.ScoreStreamResponse.FromString(r).answers) for r in [*first, *rest]) == 4 * 200
    assert (status, "abandoned_requests=0" in log) == (0, True)

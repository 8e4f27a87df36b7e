"""Typed elements of the Open Inference Protocol, which take fewer bytes in a message than in memory."""

from __future__ import annotations

import dataclasses

import grpc
import numpy as np
import pytest

from inference_requests import request, stub, tensor
from softkin.inference import grpc_service_pb2 as oip
from standin import StandIn


class Whole(StandIn):
    """Takes int64."""

    def __init__(self):
        super().__init__()
        self.manifest = dataclasses.replace(self.manifest, input_dtype="int64")

    def check(self, x):
        """As they come."""
        return x


def test_a_request_that_could_never_be_admitted_is_not_told_to_retry(start):
    """Eight bytes for each element, and one on the way: the gate has no room for it even when it is empty."""
    running = start(Whole(), max_message_bytes=2048, max_pending_bytes=4096)
    elements = np.ones(6 * 100, np.int64)
    contents = oip.InferTensorContents(int64_contents=elements)
    asked = request(inputs=[tensor(datatype="INT64", shape=[100, 2, 3], contents=contents)], raw_input_contents=[])

    with pytest.raises(grpc.RpcError) as e:
        stub(running).ModelInfer(asked, timeout=20)

    assert asked.ByteSize() < 2048
    assert e.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert e.value.details() == (
        "inputs: they have 4800 bytes in memory, and those of all requests together may have max_pending_bytes = 4096; "
        "send several smaller requests"
    )
    assert running.server.pending_requests == 0

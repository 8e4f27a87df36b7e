"""Requests of the Open Inference Protocol to the stand-in, for tests that send them as they travel."""

from __future__ import annotations

from typing import Any

import numpy as np
from google.protobuf.message import Message
from google.rpc.status_pb2 import Status

from softkin.inference import grpc_service_pb2 as oip
from softkin.inference import grpc_service_pb2_grpc as oip_grpc
from softkin.statuses import STATUS_DETAILS

ONE = np.arange(6, dtype=np.float32).reshape(1, 2, 3)


def stub(running: Any) -> Any:
    """The protocol's own stub, of a server of the tests."""
    return oip_grpc.GRPCInferenceServiceStub(running.channel)


def tensor(**fields: Any) -> oip.ModelInferRequest.InferInputTensor:
    """A right input but for `fields`."""
    return oip.ModelInferRequest.InferInputTensor(**{"name": "input", "datatype": "FP32", "shape": [1, 2, 3], **fields})


def request(x: np.ndarray = ONE, **fields: Any) -> oip.ModelInferRequest:
    """A right request but for `fields`."""
    given = {"inputs": [tensor(shape=x.shape)], "raw_input_contents": [x.tobytes()]}
    return oip.ModelInferRequest(**{"model_name": "standin", **given, **fields})


def detail(error: Any, kind: type[Message]) -> Any:
    """The one google.rpc detail of a status."""
    status = Status.FromString(dict(error.trailing_metadata())[STATUS_DETAILS])
    found = kind()
    [packed] = status.details
    assert packed.Unpack(found)
    return found

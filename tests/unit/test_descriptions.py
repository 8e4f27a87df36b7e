"""Descriptions from servers that are newer than the client."""

from __future__ import annotations

from softkin import descriptions
from softkin.v1 import outlier_pb2 as pb


def test_what_a_newer_server_adds_is_unknown():
    """A dtype or guarantee that this client's contract lacks; the rest can still be read."""
    message = pb.DetectorInfo(name="n", input_shape=[3])
    message.ParseFromString(
        message.SerializeToString() + pb_field("input_dtype", 99) + pb_field("default_guarantee", 99)
    )

    info = descriptions.proto_to_detector_info(message)

    assert (info.name, info.input_shape, info.input_dtype, info.default_guarantee) == ("n", (3,), "unknown", "unknown")


def pb_field(name, value):
    """A field of small numbers as it travels."""
    return bytes([pb.DetectorInfo.DESCRIPTOR.fields_by_name[name].number << 3, value])

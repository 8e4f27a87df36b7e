"""Descriptions of detectors on the wire, also from servers that are newer than the client."""

from __future__ import annotations

import dataclasses

from softkin import descriptions
from softkin.certificate import certify
from softkin.v1 import outlier_pb2 as pb
from standin import StandIn


def test_descriptions_decode_field_by_field():
    """Each field of the message lands in the field of the same name."""
    message = pb.DetectorInfo(
        name="n",
        version="v",
        digest="d",
        device="cuda",
        input_dtype=pb.DATA_TYPE_UINT8,
        input_shape=[28, 28],
        classes=["a", "b"],
        layers=[pb.LayerInfo(name="l", dim=3, metric="cosine", temperature=0.5)],
        nonconformity="joint",
        default_alpha=0.01,
        calibration_size=999,
        smallest_p_value=0.001,
        bank_size=12,
        default_guarantee=pb.GUARANTEE_CERTIFIED,
        certificate=pb.Certificate(alpha=0.02, confidence=0.9, false_alarm_bound=0.03, smallest_certified=0.004),
        predicted_class_rows=[3, 996],
        bank_precision="int8",
        condensed_from=77,
        labels=["canary", "stable"],
        parts=["energy", "density"],
    )

    found = descriptions.proto_to_detector_info(message)

    assert dataclasses.asdict(found) == {
        "name": "n",
        "version": "v",
        "digest": "d",
        "device": "cuda",
        "input_dtype": "uint8",
        "input_shape": (28, 28),
        "classes": ("a", "b"),
        "layers": ({"name": "l", "dim": 3, "metric": "cosine", "temperature": 0.5},),
        "nonconformity": "joint",
        "default_alpha": 0.01,
        "default_guarantee": "certified",
        "calibration_size": 999,
        "smallest_p_value": 0.001,
        "predicted_class_rows": (3, 996),
        "certificate": {"alpha": 0.02, "confidence": 0.9, "false_alarm_bound": 0.03, "smallest_certified": 0.004},
        "bank_size": 12,
        "bank_precision": "int8",
        "condensed_from": 77,
        "labels": ("canary", "stable"),
        "parts": ("energy", "density"),
    }
    assert set(pb.DetectorInfo.DESCRIPTOR.fields_by_name) == set(dataclasses.asdict(found))


def test_a_description_says_what_the_server_promises_by_default():
    """Alpha, guarantee and confidence are the server's own; the certificate follows from them and n."""
    detector = StandIn()

    info = descriptions.proto_to_detector_info(descriptions.detector_to_proto(detector, 0.2, "class_conditional", 0.9))

    assert (info.default_alpha, info.default_guarantee) == (0.2, "class_conditional")
    assert info.certificate == certify(0.2, 99, 0.9)


def test_a_description_says_of_a_detector_what_its_manifest_says():
    """Field by field; none of them at what a message has where nothing is set."""
    detector, bank = StandIn(), {"bank_precision": "int8", "condensed_from": 70}
    m = detector.manifest = dataclasses.replace(detector.manifest, nonconformity="posterior", **bank)

    info = descriptions.proto_to_detector_info(descriptions.detector_to_proto(detector, 0.2, "marginal", 0.9))

    same = {f.name for f in dataclasses.fields(info)} & {f.name for f in dataclasses.fields(m)}
    same -= {"layers", "certificate", "default_alpha"}  # of which a client sees less, or what the server was told
    assert {name: getattr(info, name) for name in same} == {name: getattr(m, name) for name in same}
    assert [vars(x).items() <= vars(y).items() for x, y in zip(info.layers, m.layers, strict=True)] == [True, True]
    assert (info.digest, info.device, info.smallest_p_value) == (detector.digest, "cpu", 0.01)


def test_a_joint_detector_names_its_parts():
    """By which its answers explain; any other has none, and explains by its layers."""
    plain, joint = StandIn(), StandIn()
    joint.manifest = dataclasses.replace(joint.manifest, nonconformity="joint", parts=("posterior", "density"))

    found = [
        descriptions.proto_to_detector_info(descriptions.detector_to_proto(d, 0.05, "marginal", 0.95)).parts
        for d in (plain, joint)
    ]

    assert found == [(), ("posterior", "density")]


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

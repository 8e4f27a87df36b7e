from __future__ import annotations

import contextlib
import dataclasses
import struct

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from softkin import converters, descriptions
from softkin.converters import (
    DTYPES,
    GUARANTEE_NUMBERS,
    Limits,
    array_to_tensor,
    decode_score_request,
    tensor_to_array,
)
from softkin.drift import DriftReport
from softkin.errors import InvalidInputError
from softkin.scores import ErrorBudget, Neighbors, Parts, Scores, Share
from softkin.v1 import outlier_pb2 as pb
from softkin.verdicts import GUARANTEES
from standin import StandIn
from wire import scores_to_proto

LIMITS = Limits(
    max_rows=4, max_message_bytes=1000, max_neighbors=3, max_pending_rows=8, max_pending_bytes=9, stream_window=2
)
NAMES = ("float32", "float64", "uint8", "int32", "int64")
BUDGET = ErrorBudget(
    detector="d",
    version="v",
    digest="ab" * 32,
    device="cuda",
    guarantee="certified",
    alpha=1 / 3,
    confidence=1 / 7,
    p_value_threshold=np.nextafter(0.25, 1),
    false_alarm_bound=np.nextafter(0.125, 1),
    fewest_selectable=2**41,
    calibration_size=2**40,
    smallest_p_value=1e-300,
    smoothed=True,
)


def scores(rng, b=5, c=3, k=2, neighbors=True, **budget):
    """An answer with unlike values everywhere; `budget`: fields of the error budget to change."""

    def f64(*shape):
        return rng.normal(size=shape)

    return Scores(
        outlier_score=np.append(f64(b - 1), np.inf),
        p_value=f64(b),
        is_outlier=rng.random(b) < 0.5,
        predicted_class=rng.integers(0, c, b).astype(np.int32),
        credibility=f64(b),
        confidence=np.nextafter(f64(b), 9),
        class_p_values=f64(b, c),
        budget=dataclasses.replace(BUDGET, **budget),
        neighbors=Neighbors(
            layers=("conv", "dense"),
            ids=rng.integers(-(2**60), 2**60, (b, 2, k)),
            labels=rng.integers(0, c, (b, 2, k)).astype(np.int32),
            distances=rng.random((b, 2, k)).astype(np.float32),
            shares=rng.random((b, 2, k)).astype(np.float32),
        )
        if neighbors
        else None,
        parts=Parts(names=("p", "q", "r"), values=f64(b, 3)) if neighbors else None,
        stage_seconds={"infer": 0.1, "calibrate": 1e-9},
    )


def flat(obj, prefix=""):
    """Every leaf of nested dataclasses, arrays as (dtype, shape, bytes)."""
    out = {}
    for f in dataclasses.fields(obj):
        v = getattr(obj, f.name)
        if dataclasses.is_dataclass(v):
            out.update(flat(v, f"{prefix}{f.name}."))
        else:
            out[prefix + f.name] = (v.dtype, v.shape, v.tobytes()) if isinstance(v, np.ndarray) else v
    return out


@pytest.mark.parametrize("neighbors", [True, False], ids=["neighbours", "none"])
def test_scores_survive_the_wire_bit_by_bit(neighbors):
    """Every field, serialised and parsed again."""
    before = scores(np.random.default_rng(0), neighbors=neighbors)

    wire = scores_to_proto(before).SerializeToString()
    after = converters.proto_to_scores(pb.ScoreResponse.FromString(wire))

    assert flat(after) == flat(before)


@pytest.mark.parametrize("guarantee", GUARANTEES)
@pytest.mark.parametrize("absent", ["false_alarm_bound", "fewest_selectable"])
def test_every_guarantee_and_an_absent_bound_survive_the_wire(guarantee, absent):
    """Absent is None again, never 0: a bound of 0 would be a promise."""
    rng = np.random.default_rng(0)
    for value in (None, 0):
        before = scores(rng, guarantee=guarantee, smoothed=False, **{absent: value})

        wire = scores_to_proto(before).SerializeToString()

        assert converters.proto_to_scores(pb.ScoreResponse.FromString(wire)).budget == before.budget


def test_every_guarantee_of_the_contract_has_a_name():
    """A new enum value must be given one; the wire's names are those in capitals."""
    assert set(GUARANTEE_NUMBERS) == set(GUARANTEES)
    assert set(GUARANTEE_NUMBERS.values()) == set(pb.Guarantee.values()) - {pb.GUARANTEE_UNSPECIFIED}
    for name, number in GUARANTEE_NUMBERS.items():
        assert pb.Guarantee.Name(number) == f"GUARANTEE_{name.upper()}"
        assert descriptions.guarantee_number(name) == number


def test_a_guarantee_without_a_number_is_refused():
    """By the client, before anything is sent; a number of a newer server decodes as unknown instead."""
    with pytest.raises(InvalidInputError) as e:
        descriptions.guarantee_number("most")
    assert str(e.value) == (
        "guarantee: got 'most'; allowed: marginal, certified, class_conditional, false_discovery_rate"
    )

    newer = scores_to_proto(scores(np.random.default_rng(0)))
    newer.budget.guarantee = 77
    assert converters.proto_to_scores(newer).budget.guarantee == "unknown"


def test_a_request_says_what_alpha_promises():
    """Each option arrives; absent is told apart from 0, which is wrong for a confidence and right for a seed."""
    inputs = array_to_tensor(np.zeros((1, 1)))

    def decoded(**fields):
        call = decode_score_request(pb.ScoreRequest(inputs=inputs, **fields), LIMITS)
        return call.guarantee, call.confidence, call.smoothing_seed

    assert decoded() == (None, None, None)
    assert decoded(guarantee=0, confidence=0.0, smoothing_seed=0) == (None, 0.0, 0)
    assert decoded(guarantee=4, confidence=0.5, smoothing_seed=2**64 - 1) == ("false_discovery_rate", 0.5, 2**64 - 1)


@pytest.mark.parametrize("number", [-1, 5, 77])
def test_an_unknown_guarantee_is_refused_with_the_allowed_names(number):
    """As they stand in the contract."""
    request = pb.ScoreRequest(inputs=array_to_tensor(np.zeros((1, 1))), guarantee=number)

    with pytest.raises(InvalidInputError) as e:
        decode_score_request(request, LIMITS)

    assert str(e.value) == (
        f"guarantee: got {number}; allowed: GUARANTEE_MARGINAL, GUARANTEE_CERTIFIED, GUARANTEE_CLASS_CONDITIONAL, "
        "GUARANTEE_FALSE_DISCOVERY_RATE"
    )


@pytest.mark.parametrize("alarm_row", [0, 2**40])
def test_a_drift_report_survives_the_wire_bit_by_bit(alarm_row):
    """Every field, and whose watch it is; the alarm is that of the report."""
    report = DriftReport(
        rows=2**41,
        level=np.nextafter(0.01, 1),
        log10_martingale=-1 / 3,
        max_log10_martingale=1e5 / 3,
        alarm_row=alarm_row,
        cusum=1 / 7,
        window_rows=10_000,
        flag_rate=1 / 11,
        alpha=1 / 13,
        histogram=np.arange(20) * 2**33,
    )
    detector = StandIn("d", "v")

    message = pb.GetDriftResponse.FromString(descriptions.drift_to_proto(report, detector).SerializeToString())
    after = descriptions.proto_to_drift(message)

    assert flat(after.report) == flat(report)
    assert (after.detector, after.version, after.digest) == ("d", "v", detector.digest)
    assert message.alarm == report.alarm == (alarm_row > 0)


def test_received_scores_can_be_written_to_as_those_made_in_process():
    """No caller meets a read-only array only because the detector is remote."""
    after = converters.proto_to_scores(scores_to_proto(scores(np.random.default_rng(0))))

    arrays = [v for o in (after, after.neighbors, after.parts) for v in vars(o).values() if isinstance(v, np.ndarray)]

    assert len(arrays) == 12
    assert all(a.flags.writeable for a in arrays)


@given(
    hnp.arrays(
        st.sampled_from([np.dtype(n) for n in NAMES]),
        hnp.array_shapes(min_dims=0, max_dims=8, min_side=0, max_side=3),
    )
)
def test_arrays_survive_the_wire(array):
    """Any dtype that travels, any rank up to 8, empty axes too; NaN patterns included."""
    after = tensor_to_array(pb.Tensor.FromString(array_to_tensor(array).SerializeToString()), "x")

    assert (after.dtype, after.shape, after.tobytes()) == (array.dtype, array.shape, array.tobytes())


def test_the_wire_is_little_endian_and_in_c_order():
    """Whatever the memory layout of the sender's array."""
    rows = np.arange(6, dtype=np.float32).reshape(2, 3)
    expected = struct.pack("<6f", *range(6))

    layouts = [rows, np.asfortranarray(rows), rows.astype(">f4"), np.ascontiguousarray(rows[::-1])[::-1]]

    assert [array_to_tensor(a).data for a in layouts] == [expected] * 4
    assert [array_to_tensor(a).dtype for a in layouts] == [pb.DATA_TYPE_FLOAT32] * 4


def test_a_received_array_is_a_read_only_view_of_the_message():
    """No copy of 64 MiB, and no way to change a request."""
    array = tensor_to_array(array_to_tensor(np.arange(6, dtype=np.int32)), "x")

    assert not array.flags.writeable
    assert not array.flags.owndata
    assert array.dtype.isnative


def test_every_data_type_of_the_contract_has_a_dtype():
    """A new enum value must be given one."""
    assert set(DTYPES) == set(pb.DataType.values()) - {pb.DATA_TYPE_UNSPECIFIED}
    assert {d.name for d in DTYPES.values()} == set(NAMES)


@pytest.mark.parametrize(
    ("fields", "field", "message"),
    [
        ({"dtype": 0}, "x.dtype", "got 0 (DATA_TYPE_UNSPECIFIED); allowed: DATA_TYPE_FLOAT32"),
        ({"dtype": 99}, "x.dtype", "got 99 (unknown); allowed"),
        ({"shape": [1] * 9}, "x.shape", "got 9 axes; at most 8"),
        ({"shape": [-1, -6]}, "x.shape", "got [-1, -6]; no axis may be negative"),
        ({"shape": [6, -1]}, "x.shape", "got [6, -1]; no axis may be negative"),
        ({"shape": [7]}, "x.data", "has 24 bytes, but shape [7] of float32 takes 28"),
        ({"shape": []}, "x.data", "has 24 bytes, but shape [] of float32 takes 4"),
        ({"shape": [6 + 2**62]}, "x.data", "takes 18446744073709551640"),
        ({"shape": [2**63 - 1] * 8}, "x.data", "has 24 bytes"),
        ({"shape": [0, 2**62, 2**62], "data": b""}, "x.shape", "too long"),
    ],
)
def test_a_malformed_tensor_is_refused(fields, field, message):
    """Products of axes are exact: 6 + 2**62 elements of 4 bytes would wrap around to the 24 that are there."""
    tensor = pb.Tensor(**{"dtype": pb.DATA_TYPE_FLOAT32, "shape": [6], "data": bytes(24), **fields})

    with pytest.raises(InvalidInputError) as e:
        tensor_to_array(tensor, "x")

    assert e.value.field == field
    assert message in e.value.message


@given(st.binary(max_size=200))
def test_random_bytes_make_a_request_an_error_or_nothing(data):
    """Whatever parses is either decoded or refused with InvalidInputError; nothing else escapes."""
    try:
        request = pb.ScoreRequest.FromString(data)
    except DecodeError:  # gRPC refuses it before any code of ours
        return

    with contextlib.suppress(InvalidInputError):
        call = decode_score_request(request, LIMITS)
        assert call.inputs.nbytes == len(request.inputs.data)


@given(st.integers(-1, 7), st.lists(st.integers(-2, 4) | st.integers(-(2**63), 2**63 - 1), max_size=9), st.binary())
def test_a_tensor_of_any_fields_is_decoded_whole_or_refused(dtype, shape, data):
    """Shape and bytes agree in whatever is decoded; nothing but InvalidInputError escapes."""
    with contextlib.suppress(InvalidInputError):
        array = tensor_to_array(pb.Tensor(dtype=dtype, shape=shape, data=data), "x")
        assert (array.shape, array.tobytes()) == (tuple(shape), data)


@pytest.mark.parametrize("dtype", ["float16", "bool", "uint16", "complex64", "object", "U1", "datetime64[s]"])
def test_a_dtype_that_cannot_travel_is_refused(dtype):
    """The message lists those that can; nothing is converted silently."""
    with pytest.raises(
        InvalidInputError, match=r"cannot travel; convert to one of: float32, float64, uint8, int32, int64"
    ):
        array_to_tensor(np.zeros(2, dtype))


def test_nine_axes_cannot_travel():
    """The receiver would refuse them."""
    with pytest.raises(InvalidInputError, match="got 9 axes; at most 8"):
        array_to_tensor(np.zeros([1] * 9))


@pytest.mark.parametrize(
    ("fields", "field"), [({}, None), ({"num_neighbors": 3}, None), ({"num_neighbors": 4}, "num_neighbors")]
)
def test_the_number_of_neighbours_is_bounded(fields, field):
    """Up to and including max_neighbors."""
    request = pb.ScoreRequest(inputs=array_to_tensor(np.zeros((4, 1))), **fields)

    if field is None:
        assert decode_score_request(request, LIMITS).num_neighbors == fields.get("num_neighbors", 0)
    else:
        with pytest.raises(InvalidInputError, match=r"num_neighbors: got 4; .* max_neighbors = 3"):
            decode_score_request(request, LIMITS)


@pytest.mark.parametrize(("shape", "fits"), [((4, 1), True), ((5, 1), False), ((5,), False), ((), True)])
def test_the_number_of_rows_is_bounded(shape, fits):
    """Up to and including max_rows; that a number is no array of rows, the detector says."""
    request = pb.ScoreRequest(inputs=array_to_tensor(np.zeros(shape)))

    if fits:
        assert decode_score_request(request, LIMITS).inputs.shape == shape
    else:
        with pytest.raises(InvalidInputError, match=r"inputs.shape: got 5 rows; .* max_rows = 4"):
            decode_score_request(request, LIMITS)


def test_an_absent_alpha_is_told_apart_from_zero():
    """0 is wrong, absent means the default."""
    inputs = array_to_tensor(np.zeros((1, 1)))

    found = [decode_score_request(pb.ScoreRequest(inputs=inputs, **kw), LIMITS).alpha for kw in ({}, {"alpha": 0.0})]

    assert found == [None, 0.0]


def test_limits_survive_the_wire():
    """Both ways."""
    assert converters.proto_to_limits(converters.limits_to_proto(LIMITS)) == LIMITS


@pytest.mark.parametrize("neighbors", [False, True])
def test_a_share_travels_as_an_answer_of_its_own_rows(neighbors):
    """What was judged together with others loses nothing, and brings nothing of theirs."""
    whole = scores(np.random.default_rng(0), b=6, neighbors=neighbors)

    for rows in (slice(0, 2), slice(2, 6)):
        found = converters.share_to_proto(Share(whole, rows, {}))
        assert found.HasField("neighbors") == found.HasField("parts") == neighbors
        assert found == scores_to_proto(whole.take(rows))

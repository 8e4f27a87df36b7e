"""The Open Inference Protocol: every way to say a right request, and how a wrong one is refused."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import grpc
import numpy as np
import pytest
from google.rpc.error_details_pb2 import BadRequest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference_requests import ONE, detail, request, stub, tensor
from softkin import oip_converters, oip_parameters
from softkin.converters import Limits
from softkin.errors import InvalidInputError
from softkin.inference import grpc_service_pb2 as oip
from standin import StandIn, manifest

Code = grpc.StatusCode
LIMITS = Limits(
    max_rows=8,
    max_message_bytes=4096,
    max_neighbors=5,
    max_pending_rows=8,
    max_pending_bytes=4096,
    stream_window=1,
)


def with_parameters(**values):
    """A request with parameters: floats, integers, text and truth values as their own kinds."""
    kinds = {float: "double_param", int: "int64_param", str: "string_param", bool: "bool_param"}
    return request(parameters={k: oip.InferParameter(**{kinds[type(v)]: v}) for k, v in values.items()})


def outputs(*names):
    """A request for these outputs."""
    return request(outputs=[oip.ModelInferRequest.InferRequestedOutputTensor(name=name) for name in names])


def typed(count=6, **fields):
    """A request whose elements are in their own field."""
    contents = oip.InferTensorContents(fp32_contents=range(count))
    return request(inputs=[tensor(**{"contents": contents, **fields})], raw_input_contents=[])


def with_value(value):
    """A request whose second row has this value."""
    x = np.ones((3, 2, 3), np.float32)
    x[1, 0, 2] = value
    return request(x)


ONE_OF_EACH = oip.InferTensorContents(fp32_contents=range(6), int_contents=[1])
NUMBER = "allowed: double_param, int64_param, uint64_param, string_param"
BAD = {
    "no model name": (request(model_name=""), "model_name: empty; name a detector: standin"),
    "no inputs": (request(inputs=[]), "inputs: got 0 tensors; send one, named 'input'"),
    "two inputs": (request(inputs=[tensor(), tensor()]), "inputs: got 2 tensors; send one, named 'input'"),
    "wrong name": (request(inputs=[tensor(name="INPUT__0")]), "inputs[0].name: got 'INPUT__0'; allowed: 'input'"),
    "wrong datatype": (
        request(inputs=[tensor(datatype="FP64")]),
        "inputs[0].datatype: got 'FP64', this detector takes 'FP32'; give rows of the type and scale that it was built "
        "with",
    ),
    "no such datatype": (request(inputs=[tensor(datatype="x" * 999)]), "inputs[0].datatype: got 'xxxxxxxxxxxx...xxx"),
    "parameter of the input": (
        request(inputs=[tensor(parameters={"shared_memory_region": oip.InferParameter(string_param="r")})]),
        "inputs[0].parameters: got 'shared_memory_region'; allowed: none; send elements in raw_input_contents",
    ),
    "wrong shape": (request(np.ones((1, 3, 2), np.float32)), "inputs: shape is [1, 3, 2], this detector takes [rows,"),
    "no axes": (
        request(inputs=[tensor(shape=[])], raw_input_contents=[bytes(4)]),
        "inputs: shape is [], this detector takes [rows, 2, 3]",
    ),
    "nine axes": (request(inputs=[tensor(shape=[1] * 9)]), "inputs[0].shape: got 9 axes; at most 8"),
    "negative axis": (request(inputs=[tensor(shape=[1, -2, -3])]), "inputs[0].shape: got [1, -2, -3]; no axis may be"),
    "negative axis of typed elements": (typed(shape=[1, -2, -3]), "inputs[0].shape: got [1, -2, -3]; no axis may be"),
    "too few bytes": (
        request(raw_input_contents=[bytes(23)]),
        "raw_input_contents[0]: has 23 bytes, but shape [1, 2, 3] of float32 takes 24",
    ),
    "too many bytes": (request(raw_input_contents=[bytes(25)]), "raw_input_contents[0]: has 25 bytes, but"),
    "product of axes wraps around to 0": (
        request(inputs=[tensor(shape=[2, 2**31, 2**32])], raw_input_contents=[b""]),
        "raw_input_contents[0]: has 0 bytes, but shape [2, 2147483648, 4294967296] of float32 takes 737869762948382",
    ),
    "product of axes of typed elements wraps around to 6": (
        typed(shape=[2, 1308659, 7047956753329]),  # 2**64 + 6 elements
        "inputs[0].contents.fp32_contents: has 6 elements, but shape [2, 1308659, 7047956753329] takes 18446744073",
    ),
    "no elements but unindexable axes": (
        typed(0, shape=[0, 2**62, 2**62]),
        "inputs[0].shape: got [0, 4611686018427387904, 4611686018427387904]; these axes are too long",
    ),
    "no rows": (request(np.ones((0, 2, 3), np.float32)), "inputs: there are no rows; send at least 1"),
    "too many rows": (
        request(np.ones((9, 2, 3), np.float32)),
        "inputs[0].shape: got 9 rows; this server takes at most max_rows = 8",
    ),
    "raw and typed": (
        request(inputs=[tensor(contents=ONE_OF_EACH)]),
        "raw_input_contents: set beside inputs[0].contents; send the rows in one of them",
    ),
    "neither raw nor typed": (
        request(raw_input_contents=[]),
        "raw_input_contents: not set, nor is inputs[0].contents; send the rows in one of them",
    ),
    "two raw entries": (
        request(raw_input_contents=[bytes(24), bytes(24)]),
        "raw_input_contents: got 2 entries for one input",
    ),
    "typed elements in the wrong field": (
        typed(contents=ONE_OF_EACH),
        "inputs[0].contents.int_contents: set, but rows of FP32 belong in fp32_contents",
    ),
    "too few typed elements": (
        typed(5),
        "inputs[0].contents.fp32_contents: has 5 elements, but shape [1, 2, 3] takes 6",
    ),
    "NaN": (with_value(np.nan), "inputs: row 1 has NaN or infinity"),
    "infinity": (with_value(-np.inf), "inputs: row 1 has NaN or infinity"),
    "unknown output": (
        outputs("p_value", "p_values"),
        "outputs[1].name: got 'p_values'; allowed: outlier_score, p_value, is_outlier, predicted_class, credibility, "
        "confidence, class_p_values, neighbors_ids, neighbors_labels, neighbors_distances, neighbors_shares",
    ),
    "neighbours without their number": (
        outputs("neighbors_ids"),
        "outputs[0].name: got 'neighbors_ids', but no neighbours; set the parameter num_neighbors",
    ),
    "unknown parameter": (
        with_parameters(Alpha=0.1),
        "parameters: got 'Alpha'; allowed: alpha, guarantee, confidence, smoothing_seed, num_neighbors",
    ),
    "parameter without a value": (
        request(parameters={"alpha": oip.InferParameter()}),
        f"alpha: has no value; {NUMBER}",
    ),
    "alpha of the wrong kind": (with_parameters(alpha=True), f"alpha: has bool_param; {NUMBER}"),
    "alpha as a word": (with_parameters(alpha="small"), "alpha: got 'small', which is no number"),
    "alpha 0": (with_parameters(alpha=0.0), "alpha: got 0; it is a false-alarm rate and must lie strictly in (0, 1)"),
    "alpha 1": (with_parameters(alpha=1), "alpha: got 1; it is a false-alarm rate and must lie strictly in (0, 1)"),
    "alpha NaN": (with_parameters(alpha="nan"), "alpha: got nan;"),
    "alpha below the smallest p-value": (with_parameters(alpha="0.009"), "alpha: got 0.009, but 99 calibration rows"),
    "unknown guarantee": (
        with_parameters(guarantee="Marginal"),
        "guarantee: got 'Marginal'; allowed: marginal, certified, class_conditional, false_discovery_rate",
    ),
    "guarantee of the wrong kind": (with_parameters(guarantee=1), "guarantee: has int64_param; allowed: string_param"),
    "confidence 1": (with_parameters(confidence=1.0), "confidence: got 1; it must lie strictly in (0, 1)"),
    "negative seed": (
        with_parameters(smoothing_seed=-1),
        "smoothing_seed: got -1; it must lie between 0 and 18446744073709551615",
    ),
    "seed too large": (with_parameters(smoothing_seed="18446744073709551616"), "smoothing_seed: got 1844674407370955"),
    "seed with a fraction": (with_parameters(smoothing_seed=1.5), "smoothing_seed: has double_param; allowed: int64_"),
    "neighbours as a word": (with_parameters(num_neighbors="1.0"), "num_neighbors: got '1.0', which is no integer"),
    "negative neighbours": (with_parameters(num_neighbors=-1), "num_neighbors: got -1; this server gives 0 to max_n"),
    "too many neighbours": (with_parameters(num_neighbors=6), "num_neighbors: got 6; this server gives 0 to max_n"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_wrong_request_is_refused_with_a_message_that_helps(shared_server, name):
    """INVALID_ARGUMENT; message and details start with the field of this protocol."""
    bad, message = BAD[name]

    with pytest.raises(grpc.RpcError) as e:
        stub(shared_server).ModelInfer(bad, timeout=20)

    assert e.value.code() is Code.INVALID_ARGUMENT
    assert message in e.value.details()
    [violation] = detail(e.value, BadRequest).field_violations
    assert violation.field == message.partition(":")[0]


def test_typed_elements_score_as_raw_ones_do(shared_server):
    """The same response, but for nothing."""
    raw, own = (stub(shared_server).ModelInfer(r, timeout=20) for r in (request(), typed()))

    assert own == raw
    assert own.raw_output_contents


@pytest.mark.parametrize("dtype", ["uint8", "int32", "int64", "float32", "float64"])
def test_every_type_that_a_detector_can_take_travels_both_ways(dtype):
    """Raw and typed give the array that was sent, extremes included."""
    limits = np.finfo(dtype) if dtype.startswith("float") else np.iinfo(dtype)
    x = np.array([[limits.min, 0, 1], [2, 3, limits.max]], dtype)
    datatype = oip_converters.WORDS[dtype]
    contents = oip.InferTensorContents(**{oip_converters.CONTENTS[datatype]: x.ravel().tolist()})
    right = {"datatype": datatype, "shape": x.shape}
    sent = [request(x, inputs=[tensor(**right)]), request(inputs=[tensor(**right, contents=contents)])]
    del sent[1].raw_input_contents[:]
    taker = replace(manifest(), input_dtype=dtype)

    found = [oip_converters.decode_infer_request(r, taker, LIMITS).inputs for r in sent]

    assert all(a.dtype == x.dtype and np.array_equal(a, x) for a in found)


def test_bytes_that_are_none_are_refused():
    """The protocol sends UINT8 as wider integers."""
    contents = oip.InferTensorContents(uint_contents=[0, 255, 256])
    bad = request(inputs=[tensor(datatype="UINT8", shape=[1, 3], contents=contents)])
    del bad.raw_input_contents[:]

    with pytest.raises(InvalidInputError, match="uint_contents: got 256; elements of UINT8 are at most 255"):
        oip_converters.decode_infer_request(bad, replace(manifest(), input_dtype="uint8"), LIMITS)


def test_no_bytes_at_all_are_no_fault_of_the_server():
    """An array without elements has no largest one; the detector refuses it in its own words."""
    contents = oip.InferTensorContents()
    empty = request(inputs=[tensor(datatype="UINT8", shape=[0, 3], contents=contents)])
    del empty.raw_input_contents[:]

    call = oip_converters.decode_infer_request(empty, replace(manifest(), input_dtype="uint8"), LIMITS)

    assert (call.inputs.shape, call.inputs.dtype) == ((0, 3), np.uint8)


@pytest.mark.parametrize("smoothing_seed", [0, 2**64 - 1])
def test_every_kind_of_number_is_taken(shared_server, smoothing_seed):
    """Integers as numbers, text as either; a seed of 0 is one."""
    kinds = {
        "alpha": oip.InferParameter(string_param="0.25"),
        "smoothing_seed": oip.InferParameter(uint64_param=smoothing_seed),
        "num_neighbors": oip.InferParameter(string_param="2"),
    }

    response = stub(shared_server).ModelInfer(request(parameters=kinds), timeout=20)

    seed = dict(zip([o.name for o in response.outputs], response.raw_output_contents, strict=True))
    expected = StandIn().score(ONE, alpha=0.25, smoothing_seed=smoothing_seed, num_neighbors=2)
    assert seed["p_value"] == expected.p_value.tobytes()
    assert seed["neighbors_shares"] == expected.neighbors.shares.tobytes()
    assert seed["parts_values"] == expected.parts.values.tobytes()
    assert response.parameters["smoothed"].bool_param


def test_what_clients_add_unasked_changes_nothing(shared_server):
    """perf_analyzer to every request, KServe's client to every raw input."""
    yes, size = oip.InferParameter(bool_param=True), oip.InferParameter(int64_param=24)
    asked = outputs("p_value")
    asked.parameters["triton_enable_empty_final_response"].CopyFrom(yes)
    asked.parameters["binary_data_output"].CopyFrom(yes)
    asked.inputs[0].parameters["binary_data_size"].CopyFrom(size)
    asked.outputs[0].parameters["binary_data"].CopyFrom(yes)

    plain, adorned = (stub(shared_server).ModelInfer(r, timeout=20) for r in (outputs("p_value"), asked))

    assert adorned == plain


INTEGERS = st.integers(-(2**63), 2**63 - 1)
PARAMETER = st.one_of(
    st.builds(oip.InferParameter, string_param=st.text(max_size=6) | st.sampled_from(["1", "0.1", "nan", "1e999"])),
    st.builds(oip.InferParameter, int64_param=INTEGERS),
    st.builds(oip.InferParameter, uint64_param=st.integers(0, 2**64 - 1)),
    st.builds(oip.InferParameter, double_param=st.floats()),
    st.builds(oip.InferParameter, bool_param=st.booleans()),
    st.builds(oip.InferParameter),
)
CONTENTS = st.builds(
    oip.InferTensorContents,
    fp32_contents=st.lists(st.floats(width=32), max_size=7),
    uint_contents=st.lists(st.integers(0, 2**32 - 1), max_size=7),
    bytes_contents=st.lists(st.binary(max_size=2), max_size=1),
)
TENSOR = st.builds(
    oip.ModelInferRequest.InferInputTensor,
    name=st.sampled_from(["input", "input", "x"]),
    datatype=st.sampled_from(["FP32", "FP32", "UINT8", "BYTES", ""]),
    shape=st.lists(st.integers(0, 3) | INTEGERS, max_size=9) | st.just([1, 2, 3]),
    contents=st.none() | CONTENTS,
)
OUTPUT = st.builds(
    oip.ModelInferRequest.InferRequestedOutputTensor, name=st.sampled_from(["p_value", "neighbors_ids", ""])
)
CHANGES = st.fixed_dictionaries(
    {},
    optional={
        "parameters": st.dictionaries(st.sampled_from([*oip_parameters.OPTIONS, "timeout"]), PARAMETER, max_size=2),
        "inputs": st.lists(TENSOR, max_size=2),
        "outputs": st.lists(OUTPUT, max_size=2),
        "raw_input_contents": st.lists(st.binary(max_size=24), max_size=2),
    },
)


@given(CHANGES, st.sampled_from(["float32", "uint8"]))
@settings(max_examples=200, deadline=None)
def test_a_request_is_understood_or_refused_and_nothing_else_happens(changes, dtype):
    """Whatever it holds: rows of the shape that it states, or a refusal."""
    sent = request(**changes)
    with suppress(InvalidInputError):
        x = oip_converters.decode_infer_request(sent, replace(manifest(), input_dtype=dtype), LIMITS).inputs
        assert (x.dtype, x.shape) == (dtype, tuple(sent.inputs[0].shape))

"""Between the messages of the Open Inference Protocol and the domain, both ways."""

from __future__ import annotations

import json
import math
import reprlib
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from softkin.converters import Limits, ScoreCall, bytes_to_array, check_axes, check_rows, shaped
from softkin.errors import InvalidInputError
from softkin.inference import grpc_service_pb2 as pb
from softkin.manifest import Manifest
from softkin.oip_parameters import decode_options, refuse_unknown
from softkin.scores import ErrorBudget, Scores

DATATYPES: dict[str, np.dtype[np.generic]] = {
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "UINT8": np.dtype("u1"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "BOOL": np.dtype("?"),
}
"""The protocol's words for the types of elements that travel."""
WORDS = {dtype.name: word for word, dtype in DATATYPES.items()}
"""Likewise by the names that manifests give the types."""
CONTENTS = {
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "UINT8": "uint_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
}
"""Where a request has the elements of a type, unless they are raw."""
OUTPUTS = {
    "outlier_score": "FP64",
    "p_value": "FP64",
    "is_outlier": "BOOL",
    "predicted_class": "INT32",
    "credibility": "FP64",
    "confidence": "FP64",
    "class_p_values": "FP64",
}
"""Names and types of what every row gets: the arrays of `Scores`."""
EVIDENCE_OUTPUTS = {
    "neighbors_ids": "INT64",
    "neighbors_labels": "INT32",
    "neighbors_distances": "FP32",
    "neighbors_shares": "FP32",
    "parts_values": "FP64",
}
"""Likewise what it gets where neighbours are asked for: the arrays of `Neighbors` and `Parts`."""
_ALL = {**OUTPUTS, **EVIDENCE_OUTPUTS}


def decode_infer_request(request: pb.ModelInferRequest, manifest: Manifest, limits: Limits) -> ScoreCall:
    """Check a request against what the detector's manifest and the server's limits say.

    Raises:
        InvalidInputError: names the field, the value and what is allowed.
    """
    options = decode_options(request.parameters, limits)
    for i, output in enumerate(request.outputs):
        refuse_unknown(f"outputs[{i}].parameters", output.parameters)
        if output.name not in _ALL:
            raise InvalidInputError(
                f"outputs[{i}].name", f"got {reprlib.repr(output.name)}; allowed: {', '.join(_ALL)}"
            )
        if output.name in EVIDENCE_OUTPUTS and not options.num_neighbors:
            raise InvalidInputError(
                f"outputs[{i}].name", f"got {output.name!r}, but no neighbours; set the parameter num_neighbors"
            )
    return ScoreCall(inputs=_inputs(request, manifest, limits), **vars(options))


def _inputs(request: pb.ModelInferRequest, manifest: Manifest, limits: Limits) -> NDArray[np.generic]:
    if len(request.inputs) != 1:
        raise InvalidInputError("inputs", f"got {len(request.inputs)} tensors; send one, named {manifest.input_name!r}")
    [tensor] = request.inputs
    if tensor.name != manifest.input_name:
        raise InvalidInputError("inputs[0].name", f"got {reprlib.repr(tensor.name)}; allowed: {manifest.input_name!r}")
    datatype = WORDS[manifest.input_dtype]
    if tensor.datatype != datatype:
        raise InvalidInputError(
            "inputs[0].datatype",
            f"got {reprlib.repr(tensor.datatype)}, this detector takes {datatype!r}; give rows of the type and scale "
            "that it was built with",
        )
    refuse_unknown("inputs[0].parameters", tensor.parameters)
    check_rows(tensor.shape, limits, "inputs[0].shape")
    if not request.raw_input_contents:
        return _typed(tensor)
    if tensor.HasField("contents"):
        raise InvalidInputError("raw_input_contents", "set beside inputs[0].contents; send the rows in one of them")
    if len(request.raw_input_contents) != 1:
        raise InvalidInputError("raw_input_contents", f"got {len(request.raw_input_contents)} entries for one input")
    return bytes_to_array(
        request.raw_input_contents[0],
        DATATYPES[datatype],
        tensor.shape,
        shape_field="inputs[0].shape",
        data_field="raw_input_contents[0]",
    )


def _typed(tensor: pb.ModelInferRequest.InferInputTensor) -> NDArray[np.generic]:
    if not tensor.HasField("contents"):
        raise InvalidInputError(
            "raw_input_contents", "not set, nor is inputs[0].contents; send the rows in one of them"
        )
    name = CONTENTS[tensor.datatype]
    for descriptor, _ in tensor.contents.ListFields():
        if descriptor.name != name:
            raise InvalidInputError(
                f"inputs[0].contents.{descriptor.name}", f"set, but rows of {tensor.datatype} belong in {name}"
            )
    axes = check_axes(tensor.shape, "inputs[0].shape")
    elements = getattr(tensor.contents, name)
    if len(elements) != math.prod(axes):
        raise InvalidInputError(
            f"inputs[0].contents.{name}",
            f"has {len(elements)} elements, but shape {list(axes)} takes {math.prod(axes)}; send all, in C order",
        )
    dtype = DATATYPES[tensor.datatype].newbyteorder("=")
    array: NDArray[np.generic] = np.array(elements, np.uint32 if dtype == np.uint8 else dtype)
    if dtype == np.uint8 and array.size and (largest := array.max()) > 255:
        raise InvalidInputError(f"inputs[0].contents.{name}", f"got {largest}; elements of UINT8 are at most 255")
    return shaped(array.astype(dtype, copy=False), axes, "inputs[0].shape")


def scores_to_response(scores: Scores, request: pb.ModelInferRequest) -> pb.ModelInferResponse:
    """The answer to a request: the outputs that it names, in its order, or all; the same numbers bit by bit."""
    response = pb.ModelInferResponse()
    response.CopyFrom(_budget_to_response(scores.budget))
    response.id = request.id
    arrays, n, parts = vars(scores), scores.neighbors, scores.parts
    if n is not None:
        response.parameters["neighbors_layers"].string_param = json.dumps(n.layers)
        if n.names:
            response.parameters["neighbors_names"].string_param = json.dumps(n.names)
        arrays = {**arrays, **{f"neighbors_{name}": array for name, array in vars(n).items()}}
    if parts is not None:
        response.parameters["parts_names"].string_param = json.dumps(parts.names)
        arrays = {**arrays, "parts_values": parts.values}
    for name in dict.fromkeys(output.name for output in request.outputs) or _ALL:
        if name in arrays:
            array, datatype = arrays[name], _ALL[name]
            response.outputs.add(name=name, datatype=datatype, shape=array.shape)
            response.raw_output_contents.append(array.astype(DATATYPES[datatype], copy=False).tobytes())
    return response


@lru_cache(maxsize=64)
def _budget_to_response(budget: ErrorBudget) -> pb.ModelInferResponse:
    """Made once, as most answers of a detector share it, and copied into each."""
    response = pb.ModelInferResponse(model_name=budget.detector, model_version=budget.version)
    for name, value in vars(budget).items():
        match value:
            case bool():
                response.parameters[name].bool_param = value
            case int():
                response.parameters[name].int64_param = value
            case float():
                response.parameters[name].double_param = value
            case str():
                response.parameters[name].string_param = value
    return response

"""A model made by another tool: read, and brought to what the scorer needs without a change of its values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, inliner, numpy_helper, version_converter

from softkin.errors import InvalidInputError
from softkin.manifest import INPUT_DTYPES
from softkin.scorer_graph import IR_VERSION, OLDEST_OPSET
from softkin_training.fit_rows import axes_of
from softkin_training.onnx_graphs import constants, downstream, real_inputs, rename, set_outputs
from softkin_training.representation_graph import refuse_too_large
from softkin_training.row_by_row import row_by_row
from softkin_training.trial import (
    BATCH,
    TensorError,
    Trial,
    TrialError,
    batches_of,
    difference_of,
    first_line,
    fixed_batch,
    refuse_mixing,
    refuse_other_axes,
    rows_of,
    try_once,
)

Array = NDArray[Any]

_REMEDY = (
    f"export it again in evaluation mode, with opset {OLDEST_OPSET} or newer and a free batch axis (torch.onnx.export: "
    "model.eval() and dynamic_shapes; tf2onnx and skl2onnx: None as the first axis)"
)


@dataclass(frozen=True, kw_only=True)
class Adapted:
    """A model that takes batches of any size."""

    proto: onnx.ModelProto
    values: dict[str, Array]
    """Tensors on the probe rows, by name."""
    changes: tuple[str, ...]
    """What had to be changed, in words."""


def read_model(path: str | Path) -> onnx.ModelProto:
    """Read an ONNX file with its external data.

    Raises:
        InvalidInputError: not a readable ONNX model, its external data are missing or cut short, or it is too large.
    """
    try:
        proto = onnx.load(path, load_external_data=False)
        refuse_too_large(proto.graph)  # protobuf could read more, but neither copy nor write it
        onnx.load_external_data_for_model(proto, str(Path(path).parent))
    except InvalidInputError:
        raise
    except Exception as e:  # protobuf's, onnx's and Python's own errors share no base
        raise InvalidInputError(
            "onnx",
            f"{path} cannot be read ({first_line(e)}); give an ONNX model, with its external data beside it where "
            "it has any",
        ) from None
    if not proto.graph.node:
        raise InvalidInputError("onnx", f"{path} holds no graph; give an ONNX model")
    return proto


def with_wide_input(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """A model that takes float32 where it took float16, which no detector does; and that change, in words."""
    inputs = real_inputs(proto.graph)
    if len(inputs) != 1 or inputs[0].type.tensor_type.elem_type != TensorProto.FLOAT16:
        return proto, ()
    wide, name = onnx.ModelProto(), inputs[0].name
    wide.CopyFrom(proto)
    half = f"softkin/{name}"
    rename(wide.graph, {name: half})
    value = next(i for i in wide.graph.input if i.name == half)
    value.name, value.type.tensor_type.elem_type = name, TensorProto.FLOAT
    wide.graph.node.insert(0, helper.make_node("Cast", [name], [half], to=TensorProto.FLOAT16))
    return wide, ("taking float32 rows where it took float16",)


def refuse_training(proto: onnx.ModelProto) -> None:
    """Refuse a model exported while it trained: its batch normalisation takes the statistics of the rows at hand.

    Of a batch of 1 rows would not influence each other, but it is not what the classifier was trained for either; and
    onnxruntime may give other answers from run to run, or end the process.

    Raises:
        InvalidInputError: names the first such node.
    """
    for node in proto.graph.node:
        modes = [a.i for a in node.attribute if a.name == "training_mode"]
        if node.op_type == "BatchNormalization" and (any(modes) or any(node.output[1:])):
            raise InvalidInputError(
                "onnx",
                f"BatchNormalization {node.name or node.output[0]!r} takes the statistics of the batch, as while "
                "training, so that rows influence each other; export the model again in evaluation mode "
                "(torch.onnx.export: model.eval() before it)",
            )


def the_input(proto: onnx.ModelProto, probe: Array) -> onnx.ValueInfoProto:
    """The model's only input, which takes rows like those of `probe`.

    Raises:
        InvalidInputError: none or several inputs, a type that no detector takes, or rows of another dtype or shape.
    """
    inputs = real_inputs(proto.graph)
    if not inputs:
        raise InvalidInputError(
            "onnx", "the model has no input; a detector takes one array: export it with its rows free"
        )
    if len(inputs) != 1:
        remedy = (
            "fix the others as constants of the model, have it compute them (a mask of padding from the ids), or give "
            "the vectors that it makes to fit --embeddings"
        )
        if all(_is_column(i) for i in inputs):
            remedy = "convert the pipeline with one input of all columns, categories as numbers"
        raise InvalidInputError(
            "onnx",
            f"the model has {len(inputs)} inputs, {[i.name for i in inputs]}; a detector takes one array: {remedy}",
        )
    (value,) = inputs
    tensor = value.type.tensor_type
    name = TensorProto.DataType.Name(tensor.elem_type).lower()
    dtype = {"float": "float32", "double": "float64", "undefined": "no tensor"}.get(name, name)
    if dtype not in INPUT_DTYPES:
        raise InvalidInputError(
            "onnx",
            f"input {value.name!r} is {dtype}; a detector takes one of {', '.join(INPUT_DTYPES)}: export the model "
            "with such an input",
        )
    axes = [d.dim_value for d in tensor.shape.dim] if tensor.HasField("shape") else None  # 0: any
    fits = axes is None or (
        len(axes) == probe.ndim and all(a in (0, n) for a, n in zip(axes[1:], probe.shape[1:], strict=True))
    )
    if axes == list(probe.shape[1:]):
        raise InvalidInputError(
            "onnx",
            f"input {value.name!r} takes a single row {axes}, without an axis for several; export the model with such "
            "an axis, the first one and free",
        )
    if probe.dtype.name != dtype or not fits:
        takes = "" if axes is None else " [" + ", ".join(["rows", *(str(a or "any") for a in axes[1:])]) + "]"
        raise InvalidInputError(
            "data",
            f"x_train is {probe.dtype} {axes_of(probe)}, input {value.name!r} of the model takes {dtype}{takes}; store "
            "the rows as the model takes them, scaled as it was trained",
        )
    return value


def adapt(proto: onnx.ModelProto, tensors: Sequence[str], probe: Array) -> Adapted:
    """A model with operators that the scorer takes and a free batch axis, which gives the same values as before.

    Where the batch size is baked into shapes too, these are freed as well; where a batch of 1 cannot be freed, rows run
    one by one.

    Args:
        proto: the model as read; it is left as it is.
        tensors: names of the tensors that matter; each has the batch as its first axis.
        probe: `[n >= 1, ...]` raw inputs on which this is proven.

    Raises:
        InvalidInputError: the operators are too old and cannot be converted, the batch axis cannot be freed, rows of a
            batch influence each other, or two runs differ.
        TensorError: a tensor does not hold numbers, or its first axis is not the batch.
    """
    expected = try_once(proto, tensors, probe)
    for values in expected:
        refuse_other_axes(values, fixed_batch(proto) or 1)
    modern, changes = _modern(proto, tensors)
    own = fixed_batch(proto)
    if own:
        changes += (f"freeing the batch axis from {own}",)
    reasons = []
    for candidate, more in _candidates(modern, own, tensors):
        try:
            trial = Trial(candidate, tensors)
            for x, before in zip(batches_of(proto, probe), expected, strict=True):
                if reason := difference_of(trial.run(x), before, trial.tolerance):
                    raise TrialError(f"as it came and as it was adapted, {reason}")
            refuse_mixing(trial, rows_of(probe, BATCH))
            return Adapted(proto=candidate, values=trial.run(probe), changes=(*changes, *more))
        except TrialError as e:
            if isinstance(e, TensorError) and not own:
                raise  # of one row the batch only seemed to come first
            reasons.append(str(e))
    done = f"after {' and '.join(changes)} " if changes else ""
    quantised = any(n.op_type.startswith("DynamicQuantize") for n in proto.graph.node)
    remedy = (
        "it is quantised dynamically: quantise it statically, or give it as it was before" if quantised else _REMEDY
    )
    raise InvalidInputError("onnx", f"{done}the model cannot take batches of any size: {reasons[0]}; {remedy}")


def _is_column(value: onnx.ValueInfoProto) -> bool:
    """Whether an input takes one number or word a row, as pipelines of scikit-learn have one for each column."""
    axes = value.type.tensor_type.shape.dim
    return len(axes) == 2 and axes[1].dim_value == 1


def _modern(proto: onnx.ModelProto, tensors: Sequence[str]) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """What `tensors` need of the model, with an opset that the scorer takes, and what that changed."""
    opset = max((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), default=0)
    modern = onnx.ModelProto()
    changes: tuple[str, ...] = ()
    modern.CopyFrom(proto)
    set_outputs(modern, tensors)
    modern.ir_version = max(modern.ir_version, IR_VERSION)  # of which constants need not be inputs
    if 0 < opset < OLDEST_OPSET:
        try:
            # The converter drops functions, and writes down shapes for the batch size that there was.
            modern = version_converter.convert_version(inliner.inline_local_functions(modern), OLDEST_OPSET)
            set_outputs(modern, tensors)
        except Exception as e:  # RuntimeError of C++ assertions, and ConvertError
            raise InvalidInputError(
                "onnx",
                f"the model is of opset {opset}, the scorer needs {OLDEST_OPSET} or newer, and onnx cannot convert it "
                f"({first_line(e)}); {_REMEDY}",
            ) from None
        changes = (f"conversion from opset {opset} to {OLDEST_OPSET}",)
    if not opset:
        modern.opset_import.append(helper.make_opsetid("", OLDEST_OPSET))
    return modern, changes


def _candidates(
    proto: onnx.ModelProto, own: int, tensors: Sequence[str]
) -> Iterator[tuple[onnx.ModelProto, tuple[str, ...]]]:
    """What may take batches of any size, and by what it does if not by a free axis alone; the fastest goes first."""
    for freed in _with_free_batch(proto, own or 1):
        yield freed, ()
    if own == 1:
        yield row_by_row(proto, tensors), ("running a batch row by row",)


def _with_free_batch(proto: onnx.ModelProto, own: int) -> Iterator[onnx.ModelProto]:
    """The model with its batch axis free; then also with the batch size `own` freed where a Reshape has it."""
    axes = proto.graph.input[0].type.tensor_type.shape.dim
    if axes:
        axes[0].dim_param = "batch"
    yield proto
    freed = onnx.ModelProto()
    freed.CopyFrom(proto)
    shapes, moving = constants(freed.graph), downstream(freed.graph, freed.graph.input[0].name)
    for i, node in enumerate(freed.graph.node):
        shape = shapes.get(node.input[1]) if node.op_type == "Reshape" and node.input[0] in moving else None
        if shape is not None and len(shape) and shape[0] == own:
            # What is left over is the batch; where that place is taken, the axis is copied.
            free = np.array([0 if -1 in shape[1:] else -1, *shape[1:]], np.int64)
            node.input[1] = f"softkin/shape_{i}"
            del node.attribute[:]  # allowzero, which torch sets and which would take the 0 for a length
            freed.graph.initializer.append(numpy_helper.from_array(free, node.input[1]))
    yield freed

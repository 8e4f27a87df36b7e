"""Which tensor of a classifier tells the classes apart, and whether it holds logits or probabilities."""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from softkin.errors import InvalidInputError, listed
from softkin.scorer import LOGITS
from softkin_training.fit_rows import axes_of
from softkin_training.onnx_graphs import find_tensor, last_tensors
from softkin_training.trial import TensorError, fixed_batch, try_once

Array = NDArray[Any]

OutputKind = Literal["logits", "probabilities"]
OUTPUT_KINDS: tuple[str, ...] = ("auto", *get_args(OutputKind))
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
SUM_TOLERANCE = 1e-3
"""How far from 1 the sum of a row of probabilities may lie, and one of them below 0."""


def choose_output(proto: onnx.ModelProto, probe: Array, num_classes: int | None, output: str | None) -> str:
    """Name of the tensor that the logits come from, in one of the forms that `read_output` knows.

    Args:
        proto: the model.
        probe: `[n >= 1, ...]` raw inputs to run it on.
        num_classes: C, None: any from 2 on.
        output: name of an output, tensor or node; None: the only output that fits, `[B, C]` before `[B, C, 1, 1]` and
            the like, and those before a single column; of several alike the one called `logits`, as a bundle's own
            network has it beside representations and distances.

    Raises:
        InvalidInputError: nothing fits, or several do; lists the outputs with their shapes.
    """
    # scikit-learn's converters end in a list of dictionaries; what goes into that node is the tensor.
    zipped = {n.output[0]: n.input[0] for n in proto.graph.node if n.op_type == "ZipMap"}
    declared = {o.name: zipped.get(o.name, o.name) for o in proto.graph.output}
    if output is not None:
        declared = {output: declared[output] if output in declared else find_tensor(proto, output, "output")}
    else:
        floats = {o.name for o in proto.graph.output if o.type.tensor_type.elem_type in FLOATS} | set(zipped)
        declared = {k: v for k, v in declared.items() if k in floats}
    try:
        values = try_once(proto, list(dict.fromkeys(declared.values())), probe)[0] if declared else {}
    except TensorError as e:
        raise InvalidInputError("output", f"{e}; name another tensor or node") from None
    rows = fixed_batch(proto) or 1
    ranks = {name: _rank(values[tensor], rows, num_classes) for name, tensor in declared.items()}
    best = min((rank for rank in ranks.values() if rank is not None), default=None)
    found = [name for name, rank in ranks.items() if rank is not None and rank == best]
    if len(found) == 1 or LOGITS in found:
        return declared[LOGITS if LOGITS in found else found[0]]
    wanted = f"{num_classes} columns, one for each class name" if num_classes else "a column for each class"
    shapes = [f"{k!r} {values[v].dtype} {axes_of(values[v])}" for k, v in declared.items()]
    floats_there = "; ".join(shapes) or "none"
    if output is not None:
        raise InvalidInputError("output", f"{floats_there} is not 2-D float with {wanted}; name another tensor or node")
    which = "no output is" if not found else f"{len(found)} outputs are"
    others = "" if found else f"; the last tensors of the model are {listed(last_tensors(proto))}"
    raise InvalidInputError(
        "output",
        f"{which} 2-D float with {wanted}; the float outputs are {floats_there}: name the tensor or node to take by "
        f"--output (a scikit-learn model converted with zipmap='columns': convert it with zipmap=False){others}",
    )


def _rank(value: Array, rows: int, num_classes: int | None) -> int | None:
    """Rank of an output as the one that tells the classes apart, 0 is the best; None: it cannot be that."""
    long_axes = [n for n in value.shape[1:] if n != 1]
    if value.dtype.kind != "f" or not value.ndim or len(value) != rows or len(long_axes) > 1:
        return None
    if not long_axes:
        return 2 if num_classes in (None, 2) else None
    return int(value.ndim > 2) if num_classes in (None, long_axes[0]) else None


def read_output(value: Array, asked: str, source: str) -> tuple[NDArray[np.float32], OutputKind]:
    """Bring an output of shape `[B, C]`, `[B, C, 1, 1]` and the like to `[B, C]`, and tell logits from probabilities.

    A single column, `[B, 1]` or `[B]`, is that of the second of two classes: a probability p becomes `1 - p, p`, a
    logit z becomes `-z / 2, z / 2`, of which softmax makes what sigmoid makes of z.

    Args:
        value: of an output that `choose_output` takes.
        asked: one of `OUTPUT_KINDS`; `auto`: probabilities where every row lies within [0, 1] and sums to 1.
        source: name of the tensor, for the message.

    Raises:
        InvalidInputError: probabilities were asked for, and these are none.
    """
    y_BC = value.reshape(len(value), -1).astype(np.float32)
    if y_BC.shape[1] > 1:
        return y_BC, kind_of(y_BC, asked, source)
    p_BC = np.concatenate([1 - y_BC, y_BC], axis=1)
    kind = kind_of(p_BC, asked, source)
    return (p_BC if kind == "probabilities" else np.concatenate([-y_BC, y_BC], axis=1) * np.float32(0.5)), kind


def refuse_several_labels(y_BC: NDArray[np.float32], source: str) -> None:
    """Refuse sigmoids that give most rows several labels: there is no one predicted class.

    Args:
        y_BC: `[B, C]` of sigmoids, one for each class by itself.
        source: name of the tensor, for the message.

    Raises:
        InvalidInputError: says of how many rows.
    """
    several = int(((y_BC > 0.5).sum(axis=1) > 1).sum())
    if y_BC.shape[1] > 1 and 2 * several > len(y_BC):
        raise InvalidInputError(
            "output",
            f"{source!r} holds sigmoids, which give each label a probability by itself, and on {several} of "
            f"{len(y_BC)} rows tried more than one exceeds 0.5: the model gives a row several labels, and a detector "
            "compares it with rows of one class; give a classifier of one label a row (logits, or probabilities that "
            "sum to 1), or the vectors of a hidden layer without labels to fit --embeddings. If each row has one label "
            "all the same, choose --output-kind logits",
        )


def kind_of(y_BC: NDArray[np.float32], asked: str, source: str) -> OutputKind:
    """Whether the rows of an output are logits or probabilities.

    Args:
        y_BC: `[B, C]` values of the output.
        asked: one of `OUTPUT_KINDS`; `auto`: probabilities where every row lies within [0, 1] and sums to 1.
        source: name of the tensor, for the message.

    Raises:
        InvalidInputError: probabilities were asked for, and these are none.
    """
    sums = y_BC.sum(axis=1, dtype=np.float64)
    outside = (y_BC < -SUM_TOLERANCE).any(axis=1) | (np.abs(sums - 1) > SUM_TOLERANCE)  # 1 - p rounds to below 0
    if asked == "logits" or (asked == "auto" and outside.any()):
        return "logits"
    if outside.any():
        row = int(outside.argmax())
        raise InvalidInputError(
            "output_kind",
            f"{source!r} holds no probabilities: a row has {y_BC[row].min():.4g} to {y_BC[row].max():.4g} and sums to "
            f"{sums[row]:.4g}, where each must lie in [0, 1] and sum to 1; choose logits",
        )
    return "probabilities"

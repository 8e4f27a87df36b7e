"""Another tool's model, tried on a few rows: whether it runs, repeats its answers, and treats rows one by one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from softkin.device import parse_device
from softkin.errors import BundleError, InvalidInputError
from softkin.session import start_session
from softkin_training.onnx_graphs import computes_in_half, real_inputs, set_outputs

Array = NDArray[Any]

BATCH = 7
"""Rows that must give together what each gives alone."""
TOLERANCE, HALF_TOLERANCE = 1e-4, 1e-2
"""Largest difference between two runs, relative to the largest value of the tensor; the second one where a model
computes in 16 bits, whatever it gives out."""


LOAD_REMEDIES = {
    "Could not find an implementation": "export it in float32, which onnxruntime computes everything in",
    "is not a registered function/op": "onnxruntime has no such operator: export the model with those of ONNX alone, "
    "or give the vectors that it makes to fit --embeddings",
    "Unsupported model IR version": "export it again for this onnxruntime, or install a newer one",
    "Current official support": "export it again with an opset that this onnxruntime knows, or install a newer one",
}
"""What to do, by what onnxruntime says of a model that it does not load."""
SOURCE_PLACE = re.compile(r"/\S*onnxruntime_src/\S+:\d+ (?:[^()]*\((?:[^()]|\([^()]*\))*\)(?: const)? )?")
"""The line of its source code and the function's signature, which onnxruntime writes before what was wrong."""


class TrialError(Exception):
    """A model does not load or run; says why, without a remedy."""


class TensorError(TrialError):
    """A tensor of a model that runs is unfit; says which and why, without a remedy."""

    def __init__(self, tensor: str, reason: str) -> None:
        super().__init__(f"{tensor!r} {reason}")
        self.tensor = tensor


class Trial:
    """Runs any tensors of a model on the CPU.

    Args:
        proto: the model; it is left as it is.
        tensors: names of the tensors to compute.

    Attributes:
        tolerance: how much two runs may differ, for `difference_of`.

    Raises:
        TrialError: onnxruntime cannot load the model.
    """

    def __init__(self, proto: onnx.ModelProto, tensors: Sequence[str]) -> None:
        cut = onnx.ModelProto()
        cut.CopyFrom(proto)
        set_outputs(cut, tensors)
        self._tensors, self._input = list(tensors), real_inputs(proto.graph)[0].name
        self.tolerance = HALF_TOLERANCE if computes_in_half(proto) else TOLERANCE
        try:
            self._session, _ = start_session(cut, *parse_device("cpu"))
        except BundleError as e:
            raise TrialError(f"onnxruntime cannot load it ({first_line(e.__cause__ or e)})") from None

    def run(self, x: Array) -> dict[str, Array]:
        """The tensors by name, for raw inputs `x`.

        Raises:
            TensorError: a tensor does not hold numbers.
            TrialError: onnxruntime fails.
        """
        import onnxruntime as ort  # only after softkin.session, which has it keep usage data to itself

        options = ort.RunOptions()
        options.log_severity_level = 4  # a failure here is an answer, and ours to word
        try:
            found = self._session.run(self._tensors, {self._input: x}, options)
        except Exception as e:  # onnxruntime's exceptions share no base of their own
            raise TrialError(f"onnxruntime fails on a batch of {len(x)} ({first_line(e)})") from None
        for name, value in zip(self._tensors, found, strict=True):
            kind = value.dtype.name if isinstance(value, np.ndarray) else type(value).__name__
            if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiu":
                raise TensorError(name, f"holds {kind} where numbers are needed")
        return dict(zip(self._tensors, found, strict=True))


def try_once(proto: onnx.ModelProto, tensors: Sequence[str], probe: Array) -> list[dict[str, Array]]:
    """Tensors of a model as it is, for `BATCH` rows one by one, or in as many as it is fixed to.

    Raises:
        InvalidInputError: it does not load or run, or gives other values when run again.
        TensorError: a tensor does not hold numbers.
    """
    try:
        trial = Trial(proto, tensors)
        first, second = ([trial.run(x) for x in batches_of(proto, probe)] for _ in range(2))
    except TensorError:
        raise
    except TrialError as e:
        known = [remedy for words, remedy in LOAD_REMEDIES.items() if words in str(e)]
        remedy = known[0] if known else "check it with onnx.checker and export it again"
        raise InvalidInputError("onnx", f"the model does not run: {e}; {remedy}") from None
    for a, b in zip(first, second, strict=True):
        if difference := difference_of(a, b, trial.tolerance):
            raise InvalidInputError(
                "onnx",
                f"run twice on the same rows, the model gives two answers: {difference}; it draws random numbers, as "
                "dropout does while training: export it in evaluation mode",
            )
    return first


def refuse_mixing(trial: Trial, x: Array) -> None:
    """Refuse a model whose answers for rows `x` in one batch differ from those for each row alone.

    A score that depended on the other rows of its batch would have no false-alarm rate of its own.

    Raises:
        TensorError: a tensor does not have the rows on its first axis.
        TrialError: says which tensor, and by how much.
    """
    together = trial.run(x)
    alone = [trial.run(x[i : i + 1]) for i in range(len(x))]
    for values, rows in ((together, len(x)), (alone[0], 1)):
        refuse_other_axes(values, rows)
    joined = {name: np.concatenate([a[name] for a in alone]) for name in together}
    if reason := difference_of(joined, together, trial.tolerance):
        raise TrialError(
            f"alone and in a batch of {len(x)}, {reason}: rows influence each other, as in batch normalisation while "
            "training or in dynamic quantisation"
        )


def refuse_other_axes(values: dict[str, Array], rows: int) -> None:
    """Refuse tensors whose first axis is not the number of rows of the run.

    Raises:
        TensorError: the first of them.
    """
    for name, value in values.items():
        if not value.shape or value.shape[0] != rows:
            raise TensorError(
                name, f"has shape {list(value.shape)} for a batch of {rows}, which must be its first axis"
            )


def rows_of(probe: Array, n: int) -> Array:
    """The first `n` rows, repeated where there are fewer."""
    return probe[np.arange(n) % len(probe)]


def batches_of(proto: onnx.ModelProto, probe: Array) -> list[Array]:
    """At least `BATCH` rows, in batches of the size that the model takes."""
    size = fixed_batch(proto) or 1
    return [rows_of(np.roll(probe, -i, axis=0), size) for i in range(0, BATCH, size)]


def difference_of(found: dict[str, Array], expected: dict[str, Array], tolerance: float) -> str:
    """Which tensor differs by how much, empty if none does by more than `tolerance` of its largest value."""
    for name, e in expected.items():
        f = found[name]
        if f.shape != e.shape:
            return f"{name!r} has shapes {list(f.shape)} and {list(e.shape)}"
        a, b = f.astype(np.float64), e.astype(np.float64)
        with np.errstate(invalid="ignore"):
            off = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(a - b))
        relative = float(off.max(initial=0.0)) / float(np.abs(b[np.isfinite(b)]).max(initial=1e-30))
        if not relative <= tolerance:
            return f"{name!r} differs by {relative:.1e} of its largest value"
    return ""


def fixed_batch(proto: onnx.ModelProto) -> int:
    """The batch size that the input is fixed to; 0 if it is free."""
    axes = real_inputs(proto.graph)[0].type.tensor_type.shape.dim
    return axes[0].dim_value if axes else 0


def first_line(e: BaseException) -> str:
    """The reason alone: onnxruntime writes `[ONNXRuntimeError] : 1 : FAIL : ` before it, Python its `[Errno 2] `."""
    if isinstance(e, OSError) and e.strerror:
        return e.strerror
    lines = str(e).strip().splitlines() or [type(e).__name__]
    return SOURCE_PLACE.sub("", lines[0].split(" : ", 3)[-1]).rstrip(". ")

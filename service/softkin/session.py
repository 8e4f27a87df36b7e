"""onnxruntime sessions that behave: where they really run, how many threads, in which order, and how they stop."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from softkin.cancellation import Cancellation
from softkin.chunks import SLICE_ROWS, rows_together
from softkin.denormals import can_flush, denormals_as_zero
from softkin.device import Target, available_threads
from softkin.errors import BundleError, CancelledError, DeviceError, InvalidInputError
from softkin.freed_memory import return_freed_memory
from softkin.graph_builder import constant_bytes
from softkin.large_pages import in_large_pages

# onnxruntime's official builds send usage data to their maker unless told not to before the first import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime as ort
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

# Its default logger warns at every session on CUDA that no plugin device was found; none is meant to be there.
ort.set_default_logger_severity(3)

HALVES = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
SPIN_MICROSECONDS = 200
"""Longer than most nodes take; endless spinning loses half the speed where other processes want the cores."""


def start_session(
    model: Path | onnx.ModelProto,
    target: Target,
    *,
    threads: int | None = None,
    external_folder: Path | None = None,
    keep_constants: bool = False,
) -> tuple[ort.InferenceSession, Literal["cuda", "cpu"]]:
    """Start a session and say where it really runs.

    Args:
        model: path of a model, or a composed one.
        target: where it should run; a session that cannot start on CUDA starts on the CPU, and says so.
        threads: compute threads on the CPU; `available_threads()` when None.
        external_folder: where a composed model's external data lie.
        keep_constants: do not compute constants at load: a bank in fewer bits would unfold to float32 for good.

    Raises:
        BundleError: onnxruntime cannot load the model.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or available_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # On the CPU, planned memory would be held beside what the first run has taken: twice as much, and no faster.
    options.enable_mem_pattern = target.kind == "cuda"
    # In the order of the nodes in the model: chunk by chunk, so that one chunk's logits are gone before the next come.
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    # Threads spin from one node to the next, as to wake them would cost as much as the node; but no longer than that,
    # and not between runs: gRPC's threads share these cores.
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    options.add_session_config_entry("session.intra_op.spin_duration_us", str(SPIN_MICROSECONDS))
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if can_flush():
        options.add_session_config_entry("session.set_denormal_as_zero", "1")  # on the session's own threads
    if external_folder is not None:
        key = "session.model_external_initializers_file_folder_path"
        options.add_session_config_entry(key, str(external_folder.resolve()))
    providers: list[str | tuple[str, dict[str, str]]] = ["CPUExecutionProvider"]
    if target.kind == "cuda":
        # TF32 would move scores by 1e-3; the arena must not double when a batch is a little larger.
        cuda = {"device_id": str(target.index), "use_tf32": "0", "arena_extend_strategy": "kSameAsRequested"}
        providers.insert(0, ("CUDAExecutionProvider", cuda))
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find; the session tells the truth
            ort.preload_dlls()  # the CUDA libraries of pip packages are on no search path
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    disabled = ["ConstantFolding"] if keep_constants else []
    if _computes_in_half(model):
        # It gains nothing there, as casts stand around every convolution, and at a Transpose before a MatMul it ends
        # the process without a word (onnxruntime 1.24 to 1.31, x86).
        disabled.append("NchwcTransformer")
    return_freed_memory()  # or what an earlier session left, this one would take, and it could not be told
    with in_large_pages(_weight_bytes(model)):
        try:
            # By itself, onnxruntime would leave the thread that starts a session with denormals flushed.
            with denormals_as_zero():
                session = ort.InferenceSession(
                    source, options, providers=providers, disabled_optimizers=disabled, enable_fallback=0
                )
        except Exception as e:
            what = f"model {model}" if isinstance(model, Path) else f"model and bank of {external_folder}"
            raise BundleError(f"onnxruntime cannot load the {what}: {e}") from e
        return_freed_memory()  # copies of the weights that the session has packed
    # The only call that tells the truth: construction succeeds silently on the CPU when CUDA is broken.
    return session, "cuda" if session.get_providers()[0] == "CUDAExecutionProvider" else "cpu"


def _weight_bytes(model: Path | onnx.ModelProto) -> int:
    if isinstance(model, Path):
        return model.stat().st_size if model.is_file() else 0
    return constant_bytes(model.graph)


def _computes_in_half(model: Path | onnx.ModelProto) -> bool:
    """Whether nodes take 16-bit floats; a bank in float16, which is cast before anything else, does not count."""
    if isinstance(model, Path):
        try:
            model = onnx.load(model, load_external_data=False)
        except Exception:  # of protobuf, of onnx, of Python; onnxruntime meets the same, and says so
            return False
    nodes = [n for nodes in (model.graph.node, *(f.node for f in model.functions)) for n in _all_nodes(nodes)]
    half = {t.name for t in model.graph.initializer if t.data_type in HALVES}
    half |= {i.name for i in model.graph.input if i.type.tensor_type.elem_type in HALVES}
    half |= {o for n in nodes if any(a.i in HALVES for a in n.attribute if a.name == "to") for o in n.output}
    half |= {o for n in nodes if any(a.t.data_type in HALVES for a in n.attribute) for o in n.output}
    return any(half & set(n.input) for n in nodes if n.op_type != "Cast")


def _all_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _all_nodes(graph.node)


def run_session(
    session: ort.InferenceSession,
    outputs: list[str],
    feeds: Mapping[str, NDArray[np.generic]],
    device: str,
    cancellation: Cancellation | None = None,
) -> list[NDArray[Any]]:
    """One run, with onnxruntime's failures turned into our own.

    Args:
        session: from `start_session`.
        outputs: names of the outputs to compute.
        feeds: inputs by name.
        device: for the message.
        cancellation: stops the run at the end of the node that is being computed.

    Raises:
        InvalidInputError: the model takes no such values, as a table of words takes no index beyond its end.
        DeviceError: the device failed.
        CancelledError: `cancellation` was used.
    """
    options = ort.RunOptions()
    options.log_severity_level = 4  # the exception says the same, and onnxruntime writes past our own log

    def stop() -> None:
        options.terminate = True

    try:
        with cancellation.stopping_by(stop) if cancellation else contextlib.nullcontext(), denormals_as_zero():
            return list(session.run(outputs, feeds, options))
    except InvalidArgument as e:
        reason = str(e).rpartition("Status Message: ")[2].strip()
        raise InvalidInputError("inputs", f"the model cannot take these values ({reason}); leave such rows out") from e
    except Exception as e:  # onnxruntime's exceptions share no base of their own
        if cancellation and cancellation.cancelled:
            raise CancelledError from None
        raise DeviceError(f"onnxruntime failed on {device}: {e}") from e


def run_slices(
    session: ort.InferenceSession,
    outputs: list[str],
    input_name: str,
    x: NDArray[np.generic],
    device: str,
    *,
    fixed: Mapping[str, NDArray[np.generic]] | None = None,
    cancellation: Cancellation | None = None,
    slice_rows: int = SLICE_ROWS,
) -> list[NDArray[Any]]:
    """Outputs of all rows `x` of an input, computed in slices and joined; `fixed` are inputs that every slice shares.

    The slices are of equal size, to within a row, and at most `slice_rows`, fewer where rows are large: a small last
    one would read the bank for a few rows alone.

    Raises:
        DeviceError: the device failed.
        CancelledError: `cancellation` was used.
    """
    fixed = fixed or {}
    rows = rows_together(x[:1].size, slice_rows)
    if len(x) <= rows:  # most requests: what is done for slices would take half as long as the run on a small bank
        return run_session(session, outputs, {input_name: x, **fixed}, device, cancellation)
    slices = np.array_split(x, -(-len(x) // rows))
    parts = [run_session(session, outputs, {input_name: s, **fixed}, device, cancellation) for s in slices]
    return [np.concatenate(p) for p in zip(*parts, strict=True)]

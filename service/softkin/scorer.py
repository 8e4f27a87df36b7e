"""Runs model and bank as one ONNX session: input -> logits and class masses, without leaving the device in between."""

from __future__ import annotations

import contextlib
import io
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from softkin.bank import Bank
from softkin.device import available_threads, cuda_driver_present
from softkin.errors import BundleError, DeviceError
from softkin.nonconformity import Outputs
from softkin.scorer_graph import (
    OLDEST_OPSET,
    GraphBuilder,
    LayerGraph,
    is_bounded,
    layer_graph,
    representation_output,
    stack_masses,
)

# onnxruntime's official builds send usage data to their maker unless told not to before the first import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime as ort

Device = Literal["auto", "cuda", "cpu"]

LOGITS = "logits"
MASSES = "class_mass"
SLICE_ROWS = 256
"""Rows per session run: larger arrays go through in slices, so that memory does not grow with the request."""


def reducer_key(layer: str) -> str:
    """Key of the model's metadata that says how a layer was reduced."""
    return f"softkin.reducer.{layer}"


class Scorer:
    """The network and the bank as onnxruntime sessions. `run` and `nearest` may be called from several threads.

    Args:
        model: path of model.onnx; outputs `logits` (optional) and one `representation.<layer>` per bank layer.
        bank: the bank, already verified.
        bank_file: the safetensors file that holds the bank; sessions read its rows from there.
        device: `cuda` refuses to run anywhere else; `auto` takes CUDA where it really works, else the CPU.
        threads: compute threads on the CPU; `available_threads()` when None.
        chunk_rows: bank rows per matrix product, a multiple of the tile; chosen by the size of the bank when None.

    Raises:
        BundleError: the model cannot be read or lacks an output.
        DeviceError: `cuda` was asked for and the session does not run there.
    """

    def __init__(
        self,
        model: Path,
        bank: Bank,
        bank_file: Path,
        *,
        device: Device = "auto",
        threads: int | None = None,
        chunk_rows: int | None = None,
    ) -> None:
        self._model_path, self._bank, self._bank_file = model, bank, bank_file
        self._threads, self._chunk_rows = threads, chunk_rows
        self._lock = threading.Lock()
        self._evidence: ort.InferenceSession | None = None
        proto = read_network(model, bank)
        self.has_logits = LOGITS in {o.name for o in proto.graph.output}
        self.input_name: str = proto.graph.input[0].name
        self._bounded = {n: is_bounded(layer) for n, layer in bank.layers.items()}
        self._bank = bank.without_rows()  # the sessions read the rows from the file: one copy is enough
        self._session, self.device = self._start(self._compose_masses(proto), device)

    def run(self, x: NDArray[np.generic]) -> Outputs:
        """Class masses `[B, L, C]` and logits `[B, C]` of inputs, B >= 1, computed in slices of `SLICE_ROWS`.

        Raises:
            DeviceError: the device failed while running.
        """
        names = [*([LOGITS] if self.has_logits else []), MASSES]
        results = _run_slices(self._session, names, {self.input_name: x}, self.device)
        return Outputs(masses=results[-1], logits=results[0] if self.has_logits else None)

    def nearest(self, x: NDArray[np.generic], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The k bank rows with the largest mass at each input, per layer, best first.

        A session of its own, started by the first call, so that requests without evidence never pay for it.

        Args:
            x: inputs, computed in slices like those of `run`.
            k: 1 to the number of bank rows.

        Returns:
            `[B, L, k]` log mass contributions `log w - d / T`, and `[B, L, k]` tiled row numbers.
        """
        with self._lock:
            if self._evidence is None:
                graph = self._compose_nearest(read_network(self._model_path, self._bank))
                self._evidence, _ = self._start(graph, self.device)
        names = [f"{kind}.{layer}" for layer in self._bank.layers for kind in ("contribution", "row")]
        fixed = {"softkin/k": np.array([k], np.int64)}
        results = _run_slices(self._evidence, names, {self.input_name: x}, self.device, fixed)
        return np.stack(results[0::2], axis=1), np.stack(results[1::2], axis=1)

    def _start(self, graph: onnx.ModelProto, device: Device) -> tuple[ort.InferenceSession, Literal["cuda", "cpu"]]:
        return start_session(graph, device, threads=self._threads, external_folder=self._bank_file.parent)

    def _compose_masses(self, proto: onnx.ModelProto) -> onnx.ModelProto:
        g = GraphBuilder()
        masses = stack_masses(g, [self._layer(g, name) for name in self._bank.layers])
        g.nodes.append(helper.make_node("Identity", [masses], [MASSES], name=f"softkin/{MASSES}"))
        outputs = [o for o in proto.graph.output if o.name == LOGITS]
        return extend(proto, g, [*outputs, helper.make_tensor_value_info(MASSES, TensorProto.FLOAT, None)])

    def _compose_nearest(self, proto: onnx.ModelProto) -> onnx.ModelProto:
        g, outputs = GraphBuilder(), []
        for name in self._bank.layers:
            value, row = self._layer(g, name).nearest(representation_output(name), "softkin/k")
            for kind, source, dtype in (("contribution", value, TensorProto.FLOAT), ("row", row, TensorProto.INT64)):
                g.nodes.append(helper.make_node("Identity", [source], [f"{kind}.{name}"]))
                outputs.append(helper.make_tensor_value_info(f"{kind}.{name}", dtype, None))
        proto.graph.input.append(helper.make_tensor_value_info("softkin/k", TensorProto.INT64, [1]))
        return extend(proto, g, outputs)

    def _layer(self, g: GraphBuilder, name: str) -> LayerGraph:
        return layer_graph(
            g, self._bank, name, self._bank_file, bounded=self._bounded[name], chunk_rows=self._chunk_rows
        )


class Network:
    """A bundle's network without the bank: what calibration, bank building and export checks run.

    Args:
        model: path of model.onnx.
        device: as for `Scorer`.
        threads: as for `Scorer`.
    """

    def __init__(self, model: Path, *, device: Device = "auto", threads: int | None = None) -> None:
        self._session, self.device = start_session(model, device, threads=threads)
        self.outputs = [o.name for o in self._session.get_outputs()]
        self.input_name: str = self._session.get_inputs()[0].name
        self.metadata: dict[str, str] = self._session.get_modelmeta().custom_metadata_map

    def run(self, x: NDArray[np.generic]) -> dict[str, NDArray[np.float32]]:
        """All outputs by name, for `[n >= 1, ...]` raw inputs, computed in slices of `SLICE_ROWS`."""
        results = _run_slices(self._session, self.outputs, {self.input_name: x}, self.device)
        return dict(zip(self.outputs, results, strict=True))


def _run_slices(
    session: ort.InferenceSession,
    outputs: list[str],
    rows: Mapping[str, NDArray[np.generic]],
    device: str,
    fixed: Mapping[str, NDArray[np.generic]] | None = None,
) -> list[NDArray[Any]]:
    """Outputs of all rows, joined; `fixed` inputs are the same for every slice."""
    ((name, x),) = rows.items()
    slices = [x[i : i + SLICE_ROWS] for i in range(0, len(x), SLICE_ROWS)]
    parts = [run_session(session, outputs, {name: s, **(fixed or {})}, device) for s in slices]
    return parts[0] if len(parts) == 1 else [np.concatenate(p) for p in zip(*parts, strict=True)]


def run_session(
    session: ort.InferenceSession, outputs: list[str], feeds: dict[str, NDArray[np.generic]], device: str
) -> list[NDArray[np.float32]]:
    """One run, with onnxruntime's failures turned into DeviceError."""
    try:
        return list(session.run(outputs, feeds))
    except Exception as e:  # onnxruntime's exceptions share no base of their own
        raise DeviceError(f"onnxruntime failed on {device}: {e}") from e


def start_session(
    model: Path | onnx.ModelProto, device: Device, *, threads: int | None = None, external_folder: Path | None = None
) -> tuple[ort.InferenceSession, Literal["cuda", "cpu"]]:
    """Start a session and say where it really runs.

    Args:
        model: path of a model, or a composed one.
        device: `cuda` refuses to run anywhere else; `auto` takes CUDA where it really works, else the CPU.
        threads: compute threads on the CPU; `available_threads()` when None.
        external_folder: where a composed model's external data lie.

    Returns:
        The session, and `cuda` or `cpu`.

    Raises:
        BundleError: onnxruntime cannot load the model.
        DeviceError: `cuda` was asked for and the session does not run there.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or available_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Idle pool threads that spin steal the cores from the gRPC threads.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if external_folder is not None:
        key = "session.model_external_initializers_file_folder_path"
        options.add_session_config_entry(key, str(external_folder.resolve()))
    providers: list[str | tuple[str, dict[str, str]]] = ["CPUExecutionProvider"]
    if device == "cuda" or (device == "auto" and cuda_driver_present()):
        # TF32 would move scores by 1e-3; the arena must not double when a batch is a little larger.
        cuda = {"use_tf32": "0", "arena_extend_strategy": "kSameAsRequested"}
        providers.insert(0, ("CUDAExecutionProvider", cuda))
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find; the session tells the truth
            ort.preload_dlls()  # the CUDA libraries of pip packages are on no search path
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    try:
        session = ort.InferenceSession(source, options, providers=providers, enable_fallback=0)
    except Exception as e:
        raise BundleError(f"onnxruntime cannot load the model {model if isinstance(model, Path) else ''}: {e}") from e
    # The only call that tells the truth: construction succeeds silently on the CPU when CUDA is broken.
    actual: Literal["cuda", "cpu"] = "cuda" if session.get_providers()[0] == "CUDAExecutionProvider" else "cpu"
    if device == "cuda" and actual != "cuda":
        raise DeviceError(
            "device cuda: onnxruntime could not start on CUDA (driver 580 or newer and the CUDA 13 libraries are "
            "needed: pip install 'softkin[cuda]'); use device cpu to serve from the CPU"
        )
    return session, actual


def read_network(model: Path, bank: Bank) -> onnx.ModelProto:
    """Read a bundle's network and check that the bank's layers can be put on it.

    Raises:
        BundleError: not a readable model, an output is missing, or its operators are too old.
    """
    try:
        proto = onnx.load(model)
    except Exception as e:  # protobuf's DecodeError and OSError alike
        raise BundleError(f"{model}: not a readable ONNX model ({e}); build the bundle again") from e
    found = {o.name for o in proto.graph.output}
    for layer in bank.layers:
        if representation_output(layer) not in found:
            raise BundleError(f"{model}: has no output {representation_output(layer)!r}; it has {sorted(found)}")
    opset = max((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), default=0)
    if opset < OLDEST_OPSET:
        raise BundleError(f"{model}: is of opset {opset}; the scorer needs {OLDEST_OPSET} or newer, export it again")
    return proto


def extend(proto: onnx.ModelProto, g: GraphBuilder, outputs: list[onnx.ValueInfoProto]) -> onnx.ModelProto:
    """Add a graph's nodes to a network, and put `outputs` in the place of its outputs."""
    proto.graph.node.extend(g.nodes)
    proto.graph.initializer.extend(g.initializers)
    kept = list(outputs)  # some of them may live in the list that is cleared
    del proto.graph.output[:]
    proto.graph.output.extend(kept)
    return proto

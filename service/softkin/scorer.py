"""Runs model and bank as one ONNX session: input -> logits and class masses, without leaving the device in between."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from softkin.bank import PADDING_LABEL, Bank
from softkin.cancellation import Cancellation
from softkin.chunks import Chunk, chunk_rows_for, cut_into_chunks, slice_rows_for
from softkin.device import Target, parse_device
from softkin.errors import BundleError, DeviceError, listed
from softkin.freed_memory import return_freed_memory
from softkin.graph_builder import GraphBuilder
from softkin.nonconformity import Outputs
from softkin.scorer_graph import (
    OLDEST_OPSET,
    LayerGraph,
    is_bounded,
    representation_output,
    stack_masses,
)
from softkin.session import run_slices, start_session
from softkin.tensor_file import TensorFile

LOGITS, BOUNDARY = "logits", "boundary_distance"
MASSES = "class_mass"


def reducer_key(layer: str) -> str:
    """Key of the model's metadata that says how a layer was reduced."""
    return f"softkin.reducer.{layer}"


@dataclass(frozen=True, kw_only=True)
class Nearest:
    """The bank rows with the largest mass at each input, per layer, best first."""

    contributions: NDArray[np.float32]
    """`[B, L, K]` log mass contributions `log w - d / T`."""
    rows: NDArray[np.int64]
    """`[B, L, K]` tiled row numbers."""


class Scorer:
    """The network and the bank, or a shard of it, as one onnxruntime session. May be called from several threads.

    Args:
        model: path of model.onnx; outputs `logits` and `boundary_distance` (both optional) and one
            `representation.<layer>` per bank layer.
        bank: the bank, already verified.
        bank_file: the safetensors file that holds the bank; the session reads its rows from there.
        device: one device, see `parse_device`.
        threads: compute threads on the CPU; all this process may use when None.
        chunk_rows: bank rows per matrix product, a multiple of the large tile; chosen by device and threads when None.
        rows: the tiled rows to score against; all when None. Must start and end between tiles.
        also: other outputs of the model, for `run_with_others`.

    Attributes:
        device: where the session really runs, `cuda` or `cpu`.
        has_logits: whether the model is a classifier.
        has_boundary: whether it yields distances to its decision boundaries.
        input_name: of the model's input.
        num_rows: bank rows it scores against, without padding.

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
        device: str | Target = "auto",
        threads: int | None = None,
        chunk_rows: int | None = None,
        rows: slice | None = None,
        also: Sequence[str] = (),
    ) -> None:
        (target,) = (device,) if isinstance(device, Target) else parse_device(device)
        proto = read_network(model, bank)
        self._own = [o.name for o in proto.graph.output if o.name in (LOGITS, BOUNDARY)]
        self.has_logits, self.has_boundary = (name in self._own for name in (LOGITS, BOUNDARY))
        self._layers, self._also = list(bank.layers), list(also)
        self.num_rows = int((bank.labels[rows or slice(None)] != PADDING_LABEL).sum())
        file = TensorFile(bank_file)

        def start(kind: str) -> tuple[Any, Any]:
            composed = onnx.ModelProto()
            composed.CopyFrom(proto)
            own = rows or slice(None)
            per_chunk = chunk_rows or chunk_rows_for(kind, bank, threads, own)
            self._slice_rows = slice_rows_for(kind, per_chunk)
            parts = cut_into_chunks(bank, per_chunk, own)
            integer = multiplies_integers(kind)
            self._k_inputs = _compose(composed, bank, file, parts, {*self._own, *also}, integer=integer)
            keep = kind == "cuda" and bank.precision != "float32"
            return start_session(
                composed, target, threads=threads, external_folder=bank_file.parent, keep_constants=keep
            )

        self._session, self.device = start(target.kind)
        if self.device != target.kind:
            refuse_fallback(target)
            self._session, self.device = start("cpu")  # the graph for CUDA would be slow here
        self._none_nearest = self._numbers_of_nearest(0)
        # Asked of the session: in the file, constants may be listed among the inputs, and before the real one.
        self.input_name: str = self._session.get_inputs()[0].name

    def __del__(self) -> None:
        self._session = None
        return_freed_memory()

    def run(self, x: NDArray[np.generic], cancellation: Cancellation | None = None) -> Outputs:
        """Class masses `[B, L, C]`, logits and distances to the boundaries `[B, C]` of inputs, B >= 1.

        Args:
            x: `[B, ...]` inputs, computed in slices: few rows at a time where a chunk has many.
            cancellation: stops the call at the end of the chunk that is being computed.

        Raises:
            DeviceError: the device failed while running.
            CancelledError: `cancellation` was used.
        """
        return self._run(x, cancellation)[0]

    def run_with_others(self, x: NDArray[np.generic]) -> tuple[Outputs, dict[str, NDArray[np.float32]]]:
        """Like `run`, and from the same pass the outputs that `also` names."""
        outputs, found = self._run(x, others=self._also)
        return outputs, dict(zip(self._also, found, strict=True))

    def run_with_nearest(
        self, x: NDArray[np.generic], k: int, cancellation: Cancellation | None = None
    ) -> tuple[Outputs, Nearest]:
        """Like `run`, and from the same pass the k bank rows with the largest mass; k from 1 to the real rows here."""
        evidence = [name for layer in self._layers for name in _evidence_outputs(layer)]
        outputs, found = self._run(x, cancellation, k=k, others=evidence)
        return outputs, Nearest(contributions=np.stack(found[0::2], axis=1), rows=np.stack(found[1::2], axis=1))

    def _run(
        self,
        x: NDArray[np.generic],
        cancellation: Cancellation | None = None,
        *,
        k: int = 0,
        others: Sequence[str] = (),
    ) -> tuple[Outputs, list[NDArray[Any]]]:
        names = [MASSES, *self._own]
        found = run_slices(
            self._session,
            [*names, *others],
            self.input_name,
            x,
            self.device,
            fixed=self._numbers_of_nearest(k) if k else self._none_nearest,
            cancellation=cancellation,
            slice_rows=self._slice_rows,
        )
        own = dict(zip(self._own, found[1:], strict=False))
        outputs = Outputs(masses=found[0], logits=own.get(LOGITS), boundary=own.get(BOUNDARY))
        return outputs, found[len(names) :]

    def _numbers_of_nearest(self, k: int) -> dict[str, NDArray[np.int64]]:
        """What the graph's inputs for numbers of nearest rows get, so that each layer finds k."""
        return {name: np.array([min(k, n) if n else k], np.int64) for n, name in self._k_inputs.items()}


class Network:
    """A bundle's network without the bank: what calibration, bank building and export checks run.

    Args:
        model: path of model.onnx.
        device: as for `Scorer`.
        threads: as for `Scorer`.
    """

    def __init__(self, model: Path, *, device: str = "auto", threads: int | None = None) -> None:
        (target,) = parse_device(device)
        self._session, self.device = start_session(model, target, threads=threads)
        if self.device != target.kind:
            refuse_fallback(target)
        self.outputs = [o.name for o in self._session.get_outputs()]
        self.input_name: str = self._session.get_inputs()[0].name
        self.metadata: dict[str, str] = self._session.get_modelmeta().custom_metadata_map

    def run(self, x: NDArray[np.generic]) -> dict[str, NDArray[np.float32]]:
        """All outputs by name, for `[n >= 1, ...]` raw inputs, computed in slices of `SLICE_ROWS`."""
        results = run_slices(self._session, self.outputs, self.input_name, x, self.device)
        return dict(zip(self.outputs, results, strict=True))


def multiplies_integers(device: str) -> bool:
    """Whether onnxruntime multiplies uint8 by int8 matrices there: CUDA does not, the CPU does."""
    return device == "cpu"


def refuse_fallback(target: Target) -> None:
    """Refuse a session that fell back to the CPU though the device was required.

    Raises:
        DeviceError: with the remedy.
    """
    if target.required:
        raise DeviceError(
            f"device cuda:{target.index}: onnxruntime could not start on CUDA (driver 580 or newer and the CUDA 13 "
            "libraries are needed: pip install 'softkin[cuda]'); use device cpu to serve from the CPU"
        )


def layer_graphs(
    g: GraphBuilder, bank: Bank, file: TensorFile, parts: Sequence[Chunk], *, integer: bool = True
) -> list[LayerGraph]:
    """One part of the graph for each layer; see `LayerGraph`."""
    return [
        LayerGraph(graph=g, name=n, layer=b, bank=bank, file=file, bounded=is_bounded(b), chunks=parts, integer=integer)
        for n, b in bank.layers.items()
    ]


def _compose(
    proto: onnx.ModelProto,
    bank: Bank,
    file: TensorFile,
    parts: Sequence[Chunk],
    kept: Collection[str],
    *,
    integer: bool,
) -> dict[int, str]:
    """Add the bank to a network, of whose outputs only those `kept` stay.

    Returns the inputs for numbers of nearest rows that `LayerGraph.masses` asks for, by the n that bounds each.
    """
    # Inputs instead of a Min in the graph: TopK reads its k on the host, and on a GPU the result of Min is not there.
    k_inputs: dict[int, str] = {}

    def at_most(n: int) -> str:
        return k_inputs.setdefault(n, f"softkin/k_{n}")

    g, outputs, masses = GraphBuilder(), [o for o in proto.graph.output if o.name in kept], []
    for layer in layer_graphs(g, bank, file, parts, integer=integer):
        mass, *evidence = layer.masses(representation_output(layer.name), at_most)
        masses.append(mass)
        dtypes = (TensorProto.FLOAT, TensorProto.INT64)
        for name, source, dtype in zip(_evidence_outputs(layer.name), evidence, dtypes, strict=True):
            g.nodes.append(helper.make_node("Identity", [source], [name], name=f"softkin/{name}"))
            outputs.append(helper.make_tensor_value_info(name, dtype, None))
    g.nodes.append(helper.make_node("Identity", [stack_masses(g, masses)], [MASSES], name=f"softkin/{MASSES}"))
    extend(proto, g, [*outputs, helper.make_tensor_value_info(MASSES, TensorProto.FLOAT, None)])
    proto.graph.input.extend(helper.make_tensor_value_info(k, TensorProto.INT64, [1]) for k in k_inputs.values())
    return k_inputs


def _evidence_outputs(layer: str) -> tuple[str, str]:
    return f"contribution.{layer}", f"row.{layer}"


def read_network(model: Path, bank: Bank) -> onnx.ModelProto:
    """Read a bundle's network and check that the bank's layers can be put on it.

    Raises:
        BundleError: not a readable model, an output is missing, it knows other classes, or its operators are too old.
    """
    try:
        proto = onnx.load(model)
    except Exception as e:  # protobuf's DecodeError and OSError alike
        raise BundleError(f"{model}: not a readable ONNX model ({e}); build the bundle again") from e
    found = {o.name: o.type.tensor_type.shape.dim for o in proto.graph.output}
    classes = found[LOGITS][-1].dim_value if found.get(LOGITS) else 0  # 0: it does not say
    if classes not in (0, bank.num_classes):
        raise BundleError(f"{model}: has {classes} logits, the bank has {bank.num_classes} classes; build it again")
    for layer in bank.layers:
        if representation_output(layer) not in found:
            raise BundleError(
                f"{model}: has no output {representation_output(layer)!r}; it has {listed(sorted(found))}"
            )
    opset = max((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), default=0)
    if opset < OLDEST_OPSET:
        raise BundleError(f"{model}: is of opset {opset}; the scorer needs {OLDEST_OPSET} or newer, export it again")
    return proto


def extend(proto: onnx.ModelProto, g: GraphBuilder, outputs: list[onnx.ValueInfoProto]) -> None:
    """Add a graph's nodes and initializers to a network, and replace its outputs by `outputs`."""
    proto.graph.node.extend(g.nodes)
    proto.graph.initializer.extend(g.initializers)
    del proto.graph.output[:]
    proto.graph.output.extend(outputs)

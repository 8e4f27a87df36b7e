"""The whole detector, from raw input to what a verdict needs, as one ONNX model for any runtime without our Python.

Two files: OUT.onnx, and OUT.onnx.data with the bank and the network's large initializers, page-aligned so that a
runtime can map them. The bank is copied from file to file, never through a protobuf, which ends at 2 GB.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import onnx
from onnx import TensorProto, helper

from softkin import bundle as bundles
from softkin.bundle import Bundle
from softkin.chunks import CHUNK_ROWS, cut_into_chunks
from softkin.detector import nonconformity_of, refuse_difference
from softkin.detector_graph import OUTPUTS, DetectorGraph
from softkin.device import Target
from softkin.errors import BundleError, DeviceError, is_unicode
from softkin.graph_builder import GraphBuilder
from softkin.scorer import BOUNDARY, LOGITS, extend, layer_graphs, read_network
from softkin.scorer_graph import representation_output, stack_masses
from softkin.session import run_session, start_session
from softkin.staging import staged
from softkin.tensor_file import TensorFile

ALIGNMENT = 4096
COPY_BYTES = 8 << 20
LARGE_BYTES = 1 << 20
"""Initializers of the network from this size on go to the data file."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written."""

    model: Path
    data: Path
    data_bytes: int
    outputs: tuple[str, ...]


def export_onnx(bundle: str | os.PathLike[str], out: str | os.PathLike[str], *, force: bool = False) -> Exported:
    """Write a bundle's detector as one ONNX model, and prove it on the bundle's golden rows before it is in place.

    Args:
        bundle: bundle directory.
        out: model file to write, in a directory that exists; its data go to the same name with `.data` appended.
        force: replace what is there.

    Raises:
        BundleError: the bundle is damaged, the files exist or cannot be written, the disk is full, or the exported
            model does not score as the detector does; nothing half-written stays, what was there before does.
    """
    return write_export(bundles.read_bundle(bundle), out, force=force)


def write_export(bundle: Bundle, out: str | os.PathLike[str], *, force: bool = False) -> Exported:
    """`export_onnx` of a bundle that has been read already."""
    target = Path(out).absolute()
    data = target.with_name(f"{target.name}.data")
    if not is_unicode(data.name):
        raise BundleError(f"{target}: the model names its data file, and UTF-8 cannot spell that; choose another name")
    if bundle.path.resolve() in target.resolve().parents:
        raise BundleError(f"{target}: lies inside the bundle {bundle.path}; choose another directory")
    for file in (target, data):
        if os.path.lexists(file) and (file.is_dir() or not force):
            remedy = "it is a directory; choose another name" if file.is_dir() else "pass --force to replace it"
            raise BundleError(f"{file}: exists already; {remedy}")
    with staged(target, data, what="export", replace=force) as (model, staged_data):
        proto = compose(bundle)
        _move_data(proto, bundle.path / bundles.BANK, staged_data)
        model.write_bytes(proto.SerializeToString())
        _prove(model, bundle)
        size = staged_data.stat().st_size
    return Exported(model=target, data=data, data_bytes=size, outputs=tuple(o.name for o in proto.graph.output))


def compose(bundle: Bundle) -> onnx.ModelProto:
    """The detector as one model whose bank initializers point into bank.safetensors."""
    proto = _read_network(bundle)
    g, bank = GraphBuilder(), bundle.bank
    file = bundle.path / bundles.BANK
    layers = layer_graphs(g, bank, TensorFile(file), cut_into_chunks(bank, CHUNK_ROWS))
    masses = stack_masses(g, [layer.masses(representation_output(layer.name))[0] for layer in layers])
    own = {o.name: o for o in proto.graph.output if o.name in (LOGITS, BOUNDARY)}
    detector = DetectorGraph(
        graph=g,
        nonconformity=nonconformity_of(bundle.manifest, bank, bundle.calibration.references),
        outlier_scores=bundle.calibration.outlier_scores,
        true_class_scores=bundle.calibration.true_class_scores,
    )
    outputs = [own[LOGITS]] if LOGITS in own else []
    batch = _batch_axis(next(i for i in proto.graph.input if i.name == bundle.manifest.input_name))
    logits, boundary = (name if name in own else None for name in (LOGITS, BOUNDARY))
    for name, source in detector.outputs(masses, logits, boundary).items():
        g.nodes.append(helper.make_node("Identity", [source], [name], name=f"softkin/{name}"))
        dtype = TensorProto.INT32 if name == "predicted_class" else TensorProto.DOUBLE
        shape = [batch, bank.num_classes] if name == "class_p_values" else [batch]
        outputs.append(helper.make_tensor_value_info(name, dtype, shape))
    extend(proto, g, outputs)
    _describe(proto, bundle)
    return proto


def _read_network(bundle: Bundle) -> onnx.ModelProto:
    file = bundle.path / bundles.MODEL
    proto = read_network(file, bundle.bank)
    taken = {name for node in proto.graph.node for name in node.output} | {i.name for i in proto.graph.input}
    if clash := sorted(taken & set(OUTPUTS)):
        raise BundleError(f"{file}: has a tensor {clash[0]!r}, the name of an output of the export; rename it there")
    return proto


def _batch_axis(value: onnx.ValueInfoProto) -> str | int:
    axes = value.type.tensor_type.shape.dim
    if axes and axes[0].HasField("dim_value"):
        return int(axes[0].dim_value)
    return (axes[0].dim_param if axes else "") or "batch"


def _describe(proto: onnx.ModelProto, bundle: Bundle) -> None:
    """What turns the outputs into a verdict, as metadata: `is_outlier = p_value <= softkin.default_alpha`."""
    m = bundle.manifest
    values = {
        "name": m.name,
        "version": m.version,
        "digest": bundle.digest,
        "classes": json.dumps(m.classes),
        "default_alpha": repr(m.default_alpha),
        "calibration_size": str(m.calibration_size),
    }
    for key, value in values.items():
        proto.metadata_props.add(key=f"softkin.{key}", value=value)


def _move_data(proto: onnx.ModelProto, bank: Path, data: Path) -> None:
    """Write the data file and point the initializers at it: the bank's, and the network's large ones."""
    with bank.open("rb") as source, data.open("wb") as out:
        for tensor in proto.graph.initializer:
            entries = {e.key: e.value for e in tensor.external_data}
            if not entries and len(tensor.raw_data) < LARGE_BYTES:
                continue
            offset = -(-out.tell() // ALIGNMENT) * ALIGNMENT
            out.seek(offset)
            if entries:
                length = int(entries["length"])
                _copy(source, int(entries["offset"]), length, out)
            else:
                length = out.write(tensor.raw_data)
                tensor.ClearField("raw_data")
            del tensor.external_data[:]
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in {"location": data.name, "offset": str(offset), "length": str(length)}.items():
                tensor.external_data.add(key=key, value=value)


def _copy(source: BinaryIO, offset: int, length: int, out: BinaryIO) -> None:
    source.seek(offset)
    while length:
        part = source.read(min(length, COPY_BYTES))
        if not part:
            raise BundleError(f"{source.name}: ended while it was copied; copy or build the bundle again")
        out.write(part)
        length -= len(part)


def _prove(model: Path, bundle: Bundle) -> None:
    """A well-formed model that loads by its path alone and scores the golden rows as when they were built."""
    try:
        onnx.checker.check_model(str(model))
    except onnx.checker.ValidationError as e:
        raise BundleError(f"{bundle.path}: its detector is no valid ONNX model: {e}") from e
    golden = bundle.golden
    if not len(golden.inputs):
        return
    try:
        session, _ = start_session(model, Target("cpu"))
        feeds = {bundle.manifest.input_name: golden.inputs}
        found = run_session(session, ["outlier_score"], feeds, "cpu")[0]
    except DeviceError as e:
        raise BundleError(f"{bundle.path}: the exported model does not run: {e}") from e
    refuse_difference(found, golden, f"{bundle.path}, in the exported model")

"""Banks to measure on: clusters for timing, and files too large to build in memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from softkin.bank import LARGE_TILE_ROWS, TILE_ROWS, Bank, LayerBank, Precision
from softkin.precision import reduce_precision
from softkin.tensor_file import TensorFile

TEMPERATURE = 0.1
LAYER = "z"
BANK, MODEL = "bank.safetensors", "model.onnx"
BLOCK_ROWS = 256 * LARGE_TILE_ROWS
"""Rows made at a time; a larger bank repeats them, which neither time nor memory depends on."""


def clusters(
    folder: Path,
    rows: int,
    dim: int,
    classes: int,
    batches: tuple[int, ...],
    labels: NDArray[np.integer] | None = None,
) -> tuple[dict[str, Any], dict[int, str]]:
    """Unit-norm clusters, sorted by class, and queries from the same clusters, as npy files.

    Rows are drawn from all classes alike, unless `labels` says how many of each, in order.

    Returns:
        Arguments for every candidate, and batch size -> file of the batch.
    """
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(classes, dim)).astype(np.float32)

    def near(y: NDArray[np.integer]) -> NDArray[np.float32]:
        z = centers[y] + rng.standard_normal((len(y), dim), dtype=np.float32)
        return z / np.linalg.norm(z, axis=1, keepdims=True)

    if labels is None:
        labels = rng.integers(0, classes, rows)
        labels[:classes] = np.arange(classes)
        labels.sort()
    np.save(folder / "bank.npy", near(labels))
    np.save(folder / "labels.npy", labels)
    queries = {}
    for n in batches:
        np.save(folder / f"x{n}.npy", near(rng.integers(0, classes, n)))
        queries[n] = str(folder / f"x{n}.npy")
    arguments = {"bank": str(folder / "bank.npy"), "labels": str(folder / "labels.npy"), "temperature": TEMPERATURE}
    return arguments, queries


def write_network(file: Path, layers: list[str], dim: int) -> None:
    """A network that hands its input to every layer, so that only the scorer is measured."""
    import onnx
    from onnx import TensorProto, helper

    from softkin.scorer_graph import IR_VERSION, OPSET, representation_output

    value = helper.make_tensor_value_info
    outputs = [representation_output(name) for name in layers]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], [name]) for name in outputs],
        "identity",
        [value("x", TensorProto.FLOAT, ["batch", dim])],
        [value(name, TensorProto.FLOAT, ["batch", dim]) for name in outputs],
    )
    opsets = [helper.make_opsetid("", OPSET)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION), file)


def whole_tiles(rows: int) -> int:
    """Rows rounded up to whole tiles: large ones, or small ones below one large tile."""
    tile = TILE_ROWS if rows < LARGE_TILE_ROWS else LARGE_TILE_ROWS
    return -(-rows // tile) * tile


def write_bank(folder: Path, rows: int, dim: int, classes: int, precision: Precision) -> None:
    """Write network and bank of `whole_tiles(rows)` random unit rows, block by block: never whole in memory."""
    n, float32 = whole_tiles(rows), precision == "float32"
    write_network(folder / MODEL, [LAYER], dim)
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {
        "ids": ("int64", (1, n)),
        f"center.{LAYER}": ("float32", (dim,)),
        "weights": ("float32", (1, n)),
        "labels": ("int32", (n,)),
    }
    if not float32:
        shapes |= {f"{name}.{LAYER}": ("float32", (n,)) for name in ("offsets", "scales")}
    shapes[f"rows.{LAYER}"] = (precision, (n, dim + float32))  # last: int8 would misalign what follows
    arrays = _create(folder / BANK, shapes)
    tile = min(n, LARGE_TILE_ROWS)
    arrays["labels"][:] = np.repeat(np.arange(n // tile) * min(classes, n // tile) // (n // tile), tile)
    arrays["ids"][0], arrays["weights"][0] = np.arange(n), 1
    block = _block(min(n, BLOCK_ROWS), dim, precision)
    for start in range(0, n, BLOCK_ROWS):
        part = slice(start, min(start + BLOCK_ROWS, n))
        for name in ("rows", *([] if float32 else ["offsets", "scales"])):
            arrays[f"{name}.{LAYER}"][part] = getattr(block, name)[: part.stop - start]
    for array in arrays.values():
        array.flush()


def open_bank(file: Path) -> Bank:
    """The bank as memory maps, checked as those of a bundle are."""
    tensors = TensorFile(file)
    dtype, (n, width) = tensors.describe(f"rows.{LAYER}")
    exact = dtype == np.float32

    def column(name: str) -> NDArray[Any] | None:
        return None if exact else tensors.take(f"{name}.{LAYER}", "float32", (n,))

    layer = LayerBank(
        metric="cosine",
        temperature=TEMPERATURE,
        rows=tensors.take(f"rows.{LAYER}", dtype.name, (n, width), copy=False),
        center=tensors.take(f"center.{LAYER}", "float32", (width - exact,)),
        offsets=column("offsets"),
        scales=column("scales"),
    )
    labels = tensors.take("labels", "int32", (n,)).astype(np.int32, copy=False)
    return Bank(
        layers={LAYER: layer},
        labels=labels,
        ids=tensors.take("ids", "int64", (1, n)).astype(np.int64, copy=False),
        weights=tensors.take("weights", "float32", (1, n)).astype(np.float32, copy=False),
        num_classes=int(labels.max()) + 1,
    )


def _block(n: int, dim: int, precision: Precision) -> LayerBank:
    z = np.random.default_rng(0).standard_normal((n, dim + 1), dtype=np.float32)
    z[:, dim] = 0
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    layer = LayerBank(metric="cosine", temperature=TEMPERATURE, rows=z, center=np.zeros(dim, np.float32))
    ones = np.ones((1, n), np.float32)
    labels, ids = np.zeros(n, np.int32), np.zeros((1, n), np.int64)
    bank = Bank(layers={LAYER: layer}, labels=labels, ids=ids, weights=ones, num_classes=1)
    return reduce_precision(bank, precision).layers[LAYER]


def _create(file: Path, shapes: dict[str, tuple[str, tuple[int, ...]]]) -> dict[str, np.memmap[Any, Any]]:
    """A safetensors file of zeros, and writable maps of its arrays."""
    codes = {"int64": "I64", "int32": "I32", "float32": "F32", "float16": "F16", "int8": "I8"}
    header, end = {}, 0
    for name, (dtype, shape) in shapes.items():
        start, end = end, end + np.dtype(dtype).itemsize * int(np.prod(shape, dtype=np.int64))
        header[name] = {"dtype": codes[dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        f.truncate(8 + len(text) + end)
    return {
        name: np.memmap(file, dtype, "r+", 8 + len(text) + header[name]["data_offsets"][0], shape)
        for name, (dtype, shape) in shapes.items()
    }

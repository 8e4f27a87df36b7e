"""torch -> ONNX: logits and one reduced representation per layer, preprocessing inside, batch axis free."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from softkin.errors import ExportError
from softkin.mass import Metric
from softkin.scorer import LOGITS, Network, reducer_key
from softkin.scorer_graph import OPSET, representation_output
from softkin_training.averaged_maps import averaged
from softkin_training.layer_metrics import Metrics, metric_of
from softkin_training.models import Classifier
from softkin_training.projection import (
    SMALLEST_NORM,
    describe_reducer,
    pooling,
    projection_matrix,
)
from softkin_training.scratch import written_to

INPUT_NAME = "inputs"
TOLERANCE = 1e-4
"""Largest difference between torch and onnxruntime, relative to the largest magnitude of the output."""


class Reducer(nn.Module):
    """Pools and flattens activations, normalises them where the metric is cosine, and projects wide ones.

    See `projection.py`.

    Args:
        width: numbers in one flattened activation, pooled.
        max_dim: wider activations are projected to this many numbers.
        metric: cosine rows leave with unit norm.
        seed: of the projection; it is part of the exported graph.
        side: of the squares of maps that are pooled.
    """

    projection: Tensor | None

    def __init__(self, width: int, *, max_dim: int, metric: Metric, seed: int, side: int = 1) -> None:
        super().__init__()
        self.metric, self.dim, self._side = metric, min(width, max_dim), side
        self.description = describe_reducer(width, max_dim, seed, side)
        matrix = projection_matrix(width, max_dim, seed)
        self.register_buffer("projection", None if matrix is None else torch.from_numpy(matrix))

    def forward(self, activations: Tensor) -> Tensor:
        """`[B, ...]` activations -> `[B, dim]` representations."""
        z_BD = averaged(activations, self._side).flatten(1).float()
        if self.metric == "cosine":
            z_BD = _unit_rows(z_BD)
        if self.projection is not None:
            z_BD = z_BD @ self.projection
            if self.metric == "cosine":
                z_BD = _unit_rows(z_BD)
        return z_BD


def _unit_rows(z_BD: Tensor) -> Tensor:
    return z_BD / torch.linalg.vector_norm(z_BD, dim=1, keepdim=True).clamp_min(SMALLEST_NORM)


class _Exported(nn.Module):
    def __init__(self, model: Classifier, reducers: dict[str, Reducer]) -> None:
        super().__init__()
        self.model, self.layers = model, tuple(reducers)
        self.reducers = nn.ModuleList(reducers.values())

    def forward(self, inputs: Tensor) -> tuple[Tensor, ...]:
        logits, hidden = self.model.forward_with_hidden(inputs)
        reduced = [r(hidden[n]) for n, r in zip(self.layers, self.reducers, strict=True)]
        return (logits.float(), *reduced)


def export(
    model: Classifier,
    probe: NDArray[np.generic],
    *,
    layers: Sequence[str],
    metric: Metrics,
    max_dim: int,
    seed: int,
    max_side: int = 0,
    metadata: Mapping[str, str] | None = None,
) -> bytes:
    """Export a trained classifier and prove that onnxruntime reproduces it.

    Args:
        model: the classifier, on any device; it comes back on the CPU in eval mode.
        probe: `[n >= 2, ...]` raw inputs on which the proof is made.
        layers: hidden layers to export, in order.
        metric: of the representations: one for all layers, or one per layer.
        max_dim: wider layers are projected to this width.
        seed: of the projections.
        max_side: larger maps are averaged down to at most this many rows and columns before; 0 = none is.
        metadata: more of it for the model.

    Returns:
        The serialised ONNX model: outputs `logits` and `representation.<layer>`; its metadata say how each layer was
        reduced.

    Raises:
        ExportError: torch cannot export it, an output differs by more than `TOLERANCE`, or the graph fixed the batch
            size.
    """
    model = model.cpu().eval()
    x = torch.from_numpy(np.ascontiguousarray(probe))
    with torch.no_grad():
        _, hidden = model.forward_with_hidden(x[:2])
        reducers = {}
        for i, n in enumerate(layers):
            side, width = pooling(hidden[n].shape[1:], max_side)
            reducers[n] = Reducer(width, max_dim=max_dim, metric=metric_of(metric, n), seed=seed + i, side=side)
        wrapped = _Exported(model, reducers).eval()
        expected = [t.numpy() for t in wrapped(x)]
    names = [LOGITS, *map(representation_output, layers)]
    program = _to_onnx(wrapped, x[:2], names)
    described = {reducer_key(name): reducer.description for name, reducer in reducers.items()}
    for key, value in (described | dict(metadata or {})).items():
        program.metadata_props.add(key=key, value=value)
    serialized: bytes = program.SerializeToString()
    _prove(serialized, probe, dict(zip(names, expected, strict=True)))
    return serialized


def _to_onnx(module: nn.Module, x: Tensor, names: list[str]) -> onnx.ModelProto:
    with _quiet():
        try:
            program = torch.onnx.export(
                module,
                (x,),
                input_names=[INPUT_NAME],
                output_names=names,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
        except Exception as e:  # torch's exporter raises many types, with pages of text
            beneath = _beneath(e)
            if isinstance(beneath, ModuleNotFoundError | MemoryError | OSError):  # no fault of the network's
                raise beneath from None
            raise ExportError(
                f"torch cannot export the network to ONNX ({_reason(beneath)}); write its forward pass without "
                "branches and loops that depend on values, and with operators that ONNX has; a trained checkpoint "
                "stays: mend the network, then run the export step again"
            ) from e
    assert program is not None
    proto: onnx.ModelProto = program.model_proto
    return proto


def _beneath(error: BaseException) -> BaseException:
    """What torch has wrapped, in text that is advice for its developers."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _reason(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints its progress and warns about its own internals; none of it is for our users."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.fx", "torch.export", "torch._export")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        unread = io.StringIO()
        with warnings.catch_warnings(), contextlib.redirect_stdout(unread), contextlib.redirect_stderr(unread):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _prove(serialized: bytes, probe: NDArray[np.generic], expected: dict[str, NDArray[np.float32]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        with written_to(path.parent, "network"):
            path.write_bytes(serialized)
        network = Network(path, device="cpu")
        for rows in sorted({1, min(3, len(probe)), len(probe)}):
            found = network.run(probe[:rows])
            for name, value in expected.items():
                _compare(name, found[name], value[:rows], rows)


def _compare(name: str, found: NDArray[np.float32], expected: NDArray[np.float32], rows: int) -> None:
    if found.shape != expected.shape:
        raise ExportError(f"output {name!r}: onnxruntime gives shape {found.shape}, torch {expected.shape}")
    scale = float(np.abs(expected).max(initial=1e-6))
    difference = float(np.abs(found - expected).max(initial=0.0)) / scale
    if not difference <= TOLERANCE:  # NaN fails too
        raise ExportError(
            f"output {name!r} on a batch of {rows}: onnxruntime and torch differ by {difference:.2e} of the largest "
            f"value, allowed is {TOLERANCE:g}; the model has an operator that does not export faithfully, or is not in "
            "eval mode"
        )

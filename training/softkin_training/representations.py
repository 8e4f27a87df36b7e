"""Representations of many rows, written to files in slices: neither raw inputs nor outputs need fit into memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from softkin.chunks import rows_together
from softkin.errors import DataError, listed
from softkin.scorer import LOGITS, Network
from softkin.scorer_graph import representation_output
from softkin_training.rows import Rows
from softkin_training.scratch import written_to


def extract(
    network: Network, rows: Rows, layers: Sequence[str], num_classes: int, folder: Path
) -> dict[str, NDArray[np.float32]]:
    """What the network makes of rows, as many at a time as it takes.

    Args:
        network: with an output `representation.<layer>` for each layer.
        rows: at least one.
        layers: their names.
        num_classes: how many logits there must be, where there are any.
        folder: directory for the files; they must outlive the arrays.

    Returns:
        Per layer `[N, D]`, memory maps; what is written to them goes to the files.

    Raises:
        DataError: the network lacks a layer or has another number of logits, or a file cannot be written.
    """
    for layer in layers:
        if representation_output(layer) not in network.outputs:
            raise DataError(
                f"the model has no output {representation_output(layer)!r}; it has {listed(sorted(network.outputs))}"
            )
    paths = {layer: folder / f"{i}.float32" for i, layer in enumerate(layers)}
    widths: dict[str, int] = {}
    with written_to(folder, "representations"), ExitStack() as stack:
        files = {layer: stack.enter_context(path.open("wb")) for layer, path in paths.items()}
        step = rows_together(math.prod(rows.row_shape))
        for start in range(0, len(rows), step):
            outputs = network.run(rows.read(slice(start, start + step)))
            if LOGITS in outputs and outputs[LOGITS].shape[1] != num_classes:
                raise DataError(
                    f"the model has {outputs[LOGITS].shape[1]} logits, but {num_classes} class names are given"
                )
            for layer, file in files.items():
                z = outputs[representation_output(layer)]
                widths[layer] = z.shape[1]
                file.write(np.ascontiguousarray(z, np.float32).data)
    return {n: np.asarray(np.memmap(path, np.float32, "r+", shape=(len(rows), widths[n]))) for n, path in paths.items()}

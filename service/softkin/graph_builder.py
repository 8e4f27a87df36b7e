"""Collects the nodes and initializers of an ONNX graph."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper


@dataclass
class GraphBuilder:
    """Collects nodes and initializers under names that do not clash with a model's own."""

    prefix: str = "softkin"
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[TensorProto] = field(default_factory=list)
    _constants: dict[tuple[str, tuple[int, ...], bytes], str] = field(default_factory=dict)

    def op(self, op_type: str, inputs: Sequence[str], **attributes: Any) -> str:
        """Append a node with one output and return the output's name."""
        return self.ops(op_type, inputs, 1, **attributes)[0]

    def ops(self, op_type: str, inputs: Sequence[str], outputs: int, **attributes: Any) -> list[str]:
        """Append a node and return its outputs' names."""
        names = [f"{self.prefix}/{op_type}_{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op_type, list(inputs), names, name=names[0], **attributes))
        return names

    def constant(self, value: NDArray[np.generic] | float | Sequence[int]) -> str:
        """Name of an initializer holding `value`: float32 for a float, int64 for a list."""
        array = np.asarray(value, np.float32 if isinstance(value, float) else None)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            name = f"{self.prefix}/constant_{len(self._constants)}"
            self.initializers.append(numpy_helper.from_array(array, name))
            self._constants[key] = name
        return self._constants[key]

    def external(self, name: str, dtype: np.dtype[Any], shape: Sequence[int], file: str, offset: int) -> str:
        """Name of an initializer whose data lie in `file` at `offset`."""
        data_type = helper.np_dtype_to_tensor_dtype(dtype)
        tensor = TensorProto(name=f"{self.prefix}/{name}", data_type=data_type, dims=shape)
        tensor.data_location = TensorProto.EXTERNAL
        length = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
        for key, value in {"location": file, "offset": str(offset), "length": str(length)}.items():
            tensor.external_data.add(key=key, value=value)
        self.initializers.append(tensor)
        return tensor.name


def constant_bytes(graph: onnx.GraphProto) -> int:
    """Memory that the initializers of a graph take, wherever they lie."""
    return sum(math.prod(t.dims) * helper.tensor_dtype_to_np_dtype(t.data_type).itemsize for t in graph.initializer)

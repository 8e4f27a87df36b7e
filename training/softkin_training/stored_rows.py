"""Rows in an Arrow file: written a batch at a time, read through a memory map, so they need not fit into memory.

The file is an Arrow table of one column, `x`: a list of fixed length for each row, its shape in the schema's metadata.
Every batch but the last holds as many rows, so that a row is found by division. pyarrow comes with the extra
`datasets`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from softkin.errors import DataError, reason_of
from softkin.unfinished_files import written_whole
from softkin_training.rows import Rows, block_rows


class RowFile:
    """Raw inputs on disk.

    Args:
        path: an Arrow file from `write_rows`.

    Raises:
        DataError: the file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        import pyarrow as pa

        self.path = path
        try:
            reader = pa.ipc.open_file(pa.memory_map(str(path)))
            metadata = json.loads((reader.schema.metadata or {})[b"softkin"])
            self.dtype = np.dtype(metadata["dtype"])
            self._row_shape = tuple(metadata["row_shape"])
            self._batches = [self._view(reader.get_batch(i)) for i in range(reader.num_record_batches)]
        except (OSError, KeyError, ValueError, pa.ArrowException) as e:
            raise DataError(
                f"{path}: cannot be read as rows in Arrow ({e}); remove it, it will be made again"
            ) from None
        self._batch_rows = max(1, len(self._batches[0])) if self._batches else 1
        self.shape = sum(map(len, self._batches)), *self._row_shape
        """`(N, ...)`, as of an array."""

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, which: slice | NDArray[np.integer]) -> NDArray[np.generic]:
        """`[m, ...]` the rows at `which`, in that order."""
        positions = np.arange(*which.indices(len(self))) if isinstance(which, slice) else which
        found = np.empty((len(positions), *self._row_shape), self.dtype)
        batches, rows = np.divmod(positions, self._batch_rows)
        for batch in np.unique(batches):
            here = batches == batch
            found[here] = self._batches[batch][rows[here]]
        return found

    def __reduce__(self) -> tuple[Any, ...]:
        return RowFile, (self.path,)  # another process opens the file, it does not get the rows

    def _view(self, batch: Any) -> NDArray[np.generic]:
        """The rows where they are, in the map."""
        flat: NDArray[np.generic] = batch.column(0).values.to_numpy(zero_copy_only=True)
        return flat.reshape(batch.num_rows, *self._row_shape)


def write_rows(path: Path, inputs: Iterable[NDArray[np.generic]]) -> RowFile:
    """Write raw inputs as they come; the file appears whole or not at all.

    Args:
        path: of the file; its directory is made if missing.
        inputs: arrays `[m, ...]` of one dtype and row shape; at least one.

    Raises:
        DataError: there is nothing to write, or the file cannot be written, as on a full disk.
        Exception: whatever `inputs` raises.
    """
    import pyarrow as pa

    writer: Any = None
    waiting: list[NDArray[np.generic]] = []
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as temporary, pa.OSFile(str(temporary), "wb") as file:
            for x in inputs:
                if writer is None:
                    writer = pa.ipc.new_file(file, _schema(x))
                    batch_rows = block_rows(x.dtype, x.shape[1:])
                waiting.append(x)
                if sum(map(len, waiting)) >= batch_rows:
                    joined = np.concatenate(waiting)
                    whole = len(joined) // batch_rows * batch_rows
                    for start in range(0, whole, batch_rows):
                        writer.write_batch(_batch(joined[start : start + batch_rows]))
                    waiting = [joined[whole:]]
            if writer is None:
                raise DataError("there are no rows to write")
            if len(rest := np.concatenate(waiting)):
                writer.write_batch(_batch(rest))
            writer.close()
    except OSError as e:
        raise DataError(
            f"{path}: cannot write the rows ({reason_of(e)}); make room there, or set HF_HOME to a larger disk"
        ) from None
    return RowFile(path)


def _schema(x: NDArray[np.generic]) -> Any:
    import pyarrow as pa

    column = pa.list_(pa.from_numpy_dtype(x.dtype), math.prod(x.shape[1:]))
    about = json.dumps({"dtype": x.dtype.name, "row_shape": x.shape[1:]})
    return pa.schema([pa.field("x", column, nullable=False)], metadata={"softkin": about})


def _batch(x: NDArray[np.generic]) -> Any:
    import pyarrow as pa

    values = pa.array(np.ascontiguousarray(x).reshape(-1))
    column = pa.FixedSizeListArray.from_arrays(values, math.prod(x.shape[1:]))
    return pa.record_batch([column], schema=_schema(x))


def rows_of(file: RowFile, y: NDArray[np.int64], first_id: int) -> Rows:
    """All rows of a file.

    Args:
        file: with the raw inputs.
        y: `[n]` class indices.
        first_id: example id of its first row; the others follow.

    Raises:
        DataError: there is not one label for each row.
    """
    if len(y) != len(file):
        raise DataError(f"{file.path}: {len(file)} rows, {len(y)} labels; they must be equally many")
    return Rows(file, y, first_id + np.arange(len(file)))

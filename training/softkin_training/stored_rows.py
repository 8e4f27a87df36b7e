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
            self.row_shape = tuple(metadata["row_shape"])
            self._batches = [self._view(reader.get_batch(i)) for i in range(reader.num_record_batches)]
        except (OSError, KeyError, ValueError, pa.ArrowException) as e:
            raise DataError(
                f"{path}: cannot be read as rows in Arrow ({e}); remove it, it will be made again"
            ) from None
        self._batch_rows = max(1, len(self._batches[0])) if self._batches else 1

    def __len__(self) -> int:
        return sum(map(len, self._batches))

    def read(self, positions: NDArray[np.integer]) -> NDArray[np.generic]:
        """`[m, ...]` the rows at `positions`, in that order."""
        found = np.empty((len(positions), *self.row_shape), self.dtype)
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
        return flat.reshape(batch.num_rows, *self.row_shape)


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


class StoredRows(Rows):
    """Rows of a file; what is taken of them stays on disk until it is read.

    Args:
        file: with the raw inputs.
        y: `[n]` class indices.
        ids: `[n]` example ids.
        positions: `[n]` where each row stands in the file; in its order when None.

    Raises:
        DataError: there is not one label for each row.
    """

    def __init__(
        self,
        file: RowFile,
        y: NDArray[np.int64],
        ids: NDArray[np.int64],
        positions: NDArray[np.integer] | None = None,
    ) -> None:
        found = np.arange(len(file)) if positions is None else positions
        if not len(found) == len(y) == len(ids):
            raise DataError(
                f"{file.path}: {len(found)} rows, {len(y)} labels, {len(ids)} ids; they must be equally many"
            )
        for name, value in {"_file": file, "_positions": found, "y": y, "ids": ids}.items():
            object.__setattr__(self, name, value)  # frozen, like all rows

    _file: RowFile
    _positions: NDArray[np.integer]

    @property
    def x(self) -> NDArray[np.generic]:
        """`[n, ...]` all raw inputs, read into memory."""
        return self.read(slice(None))

    @property
    def num_inputs(self) -> int:
        """Raw inputs there are."""
        return len(self._positions)

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """Data type of the raw inputs."""
        return self._file.dtype

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of one raw input."""
        return self._file.row_shape

    def read(self, which: slice | NDArray[np.integer]) -> NDArray[np.generic]:
        """`[m, ...]` raw inputs of the rows at `which`, in that order."""
        return self._file.read(self._positions[which])

    def take(self, indices: NDArray[np.integer]) -> StoredRows:
        """The rows at `indices`, in that order; nothing is read."""
        taken = StoredRows(self._file, self.y[indices], self.ids[indices], self._positions[indices])
        return self._share_digests(taken, indices)

    def labelled(self, y: NDArray[np.int64]) -> StoredRows:
        """The same rows with other labels, `[n]`."""
        return StoredRows(self._file, y, self.ids, self._positions)

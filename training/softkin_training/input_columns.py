"""Columns of an Arrow table to one array: encoded images, lists of numbers, or plain numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from softkin.errors import DataError
from softkin_training.image_reader import ImageReader

KEY = "data.input_columns"
"""What names inputs in a recipe."""
SERVED_AS = {"bool": "uint8", "int8": "int32", "int16": "int32", "uint16": "int32", "uint32": "int64"}
SERVED_AS |= {"float16": "float32"}
"""dtypes that a detector takes in the place of those it does not."""


class InputColumns:
    """The inputs of a table.

    Args:
        features: the table's columns by name, as `datasets` describes them.
        names: of the columns that are inputs.
        reader: of images.
        table: what an error calls the table.
        option: by which inputs are named, for errors.

    Raises:
        DataError: a column holds neither images nor numbers, or images stand beside other columns.
    """

    def __init__(
        self, features: Mapping[str, Any], names: Sequence[str], reader: ImageReader, table: str, option: str = KEY
    ) -> None:
        self._names, self._reader, self._table, self._option = list(names), reader, table, option
        self._shapes: dict[str, list[int]] = {}
        self._images = [n for n in names if _is_image(features[n])]
        if self._images and len(names) > 1:
            others = [n for n in names if n != self._images[0]]
            raise DataError(
                f"{table}: column {self._images[0]!r} holds images, so it must be the only input, and there are "
                f"{others} too; say {self._alone(self._images[0])}"
            )

    def _alone(self, column: str) -> str:
        return f"{KEY} = [{column!r}]" if self._option == KEY else f"{self._option} {column}"

    def read(self, table: Any, first_row: int) -> NDArray[np.generic]:
        """`[m, ...]` inputs of the rows of a `pyarrow` or `datasets` table, of which the first is `first_row`.

        Raises:
            DataError: a value is missing, no image, no number, or of another size than those before.
        """
        for name in self._names:
            column = table.column(name)
            if column.null_count:
                row = first_row + int(np.flatnonzero(column.is_null().to_numpy())[0])
                raise DataError(
                    f"{self._table}: column {name!r} has no value in row {row}; fill it in, or drop the row"
                )
        if self._images:
            return self._read_images(table.column(self._images[0]), first_row)
        parts = [self._numbers(table.column(name), name, first_row) for name in self._names]
        if len(parts) == 1 and parts[0].ndim > 1:
            x = parts[0]
        else:
            for name, part in zip(self._names, parts, strict=True):
                if part.ndim > 2:
                    raise DataError(
                        f"{self._table}: column {name!r} holds {part.ndim - 1} axes a row, so it must be the only "
                        f"input; say {self._alone(name)}"
                    )
            x = np.concatenate([part.reshape(len(part), -1) for part in parts], axis=1)
        return x.astype(SERVED_AS.get(x.dtype.name, x.dtype), copy=False)

    def refuse_stray_text(self, table: Any) -> None:
        """Refuse numbers that a cell without one has made a column of text; columns of words are left to `read`.

        Args:
            table: all rows, of `pyarrow` or `datasets`.

        Raises:
            DataError: names the first cell that is no number.
        """
        import pyarrow as pa

        for name in self._names:
            column = table.column(name)
            if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
                continue
            stray, numbers = None, False
            for row, text in enumerate(map(str, column)):
                numbers = numbers or _is_number(text)
                if stray is None and column[row].is_valid and not _is_number(text):
                    stray = row, text
                if numbers and stray is not None:
                    raise DataError(
                        f"{self._table}: column {name!r} is text, because row {stray[0]} has {stray[1]!r}; put a "
                        f"number there, or leave the column out by {self._option}, which names the columns to take"
                    )

    def _read_images(self, column: Any, first_row: int) -> NDArray[np.generic]:
        images = []
        for row, value in enumerate(column.to_pylist(), start=first_row):
            encoded, path = (value["bytes"], value["path"] or "") if isinstance(value, dict) else (value, "")
            name = f"{self._table}: image in row {row}" + (f" ({path})" if path else "")
            if encoded is None and not path:
                raise DataError(f"{name} is empty; fill it in, or drop the row")
            images.append(self._reader.read(Path(path) if encoded is None else encoded, name))
        return np.stack(images)

    def _numbers(self, column: Any, name: str, first_row: int) -> NDArray[np.generic]:
        import pyarrow as pa
        import pyarrow.compute as pc

        kind = column.type
        column = pa.chunked_array([_storage(chunk) for chunk in column.chunks])
        shape = [len(column)]
        while pa.types.is_list(column.type) or pa.types.is_large_list(column.type) or _is_fixed_list(column.type):
            lengths = pc.unique(pc.list_value_length(column)).to_pylist()
            if len(lengths) != 1:
                raise DataError(
                    f"{self._table}: column {name!r} has rows of {sorted(lengths, key=str)[:4]} numbers; all must "
                    "be as long"
                )
            if lengths == [0]:
                raise DataError(f"{self._table}: column {name!r} has lists of no numbers; leave it out")
            shape.append(lengths[0])
            column = pc.list_flatten(column)
        if (before := self._shapes.setdefault(name, shape[1:])) != shape[1:]:
            raise DataError(
                f"{self._table}: column {name!r} has rows of {before} numbers before row {first_row} and of "
                f"{shape[1:]} from there on; all must be as long"
            )
        if column.null_count:
            raise DataError(
                f"{self._table}: column {name!r} has lists with missing numbers; fill them in, or drop those rows"
            )
        if not (
            pa.types.is_integer(column.type) or pa.types.is_floating(column.type) or pa.types.is_boolean(column.type)
        ):
            raise DataError(
                f"{self._table}: column {name!r} is {kind}, which is neither numbers nor images; leave it out by "
                f"{self._option}, which names the columns to take"
            )
        return column.to_numpy().reshape(shape)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _is_image(feature: Any) -> bool:
    kind = str(getattr(feature, "dtype", ""))
    return type(feature).__name__ == "Image" or kind in ("binary", "large_binary") or _is_image_struct(feature)


def _is_image_struct(feature: Any) -> bool:
    return isinstance(feature, dict) and feature.keys() == {"bytes", "path"}


def _is_fixed_list(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_fixed_size_list(kind))


def _storage(chunk: Any) -> Any:
    """What an array of an extension type, such as the library's Array2D, holds."""
    return getattr(chunk, "storage", chunk)

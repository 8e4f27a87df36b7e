"""A column of a table that names its rows: a key, a path, a date. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from softkin.errors import DataError


class NameColumn:
    """What rows are called, read from the table's memory map when it is asked for.

    Args:
        column: Arrow's.
        what: table and column, for messages.

    Raises:
        DataError: the column holds bytes, images or lists.
    """

    def __init__(self, column: Any, what: str) -> None:
        import pyarrow as pa

        kind = column.type
        if pa.types.is_nested(kind) or "binary" in str(kind):  # of which there are four kinds
            raise DataError(f"{what} is {kind}, and a name is text, a number or a date; name another column")
        # In views of strings Arrow takes no rows out.
        self._column = column.cast(pa.large_string()) if pa.types.is_string_view(kind) else column

    @classmethod
    def of(cls, names: Iterable[str]) -> NameColumn:
        """Names that are no table's; what UTF-8 cannot spell is written as Python would escape it."""
        import pyarrow as pa

        return cls(pa.array(name.encode("utf-8", "backslashreplace").decode() for name in names), "")

    def __call__(self, rows: NDArray[np.integer]) -> list[str]:
        """`[n]` names of the rows at `rows`; empty where the column holds nothing."""
        return list(map(_text, self._column.take(rows).to_pylist()))

    def all(self) -> list[str]:
        """The names of all rows, in order."""
        return list(map(_text, self._column.to_pylist()))


def _text(value: Any) -> str:
    if value is None:
        return ""
    # A gap, or a fraction elsewhere in a file of CSV, makes whole numbers others.
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)

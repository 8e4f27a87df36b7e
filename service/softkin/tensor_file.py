"""A safetensors file, read by memory map: arrays larger than memory cost nothing until they are touched."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from softkin.errors import BundleError

T = TypeVar("T", bound=np.generic)

DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "U64": "<u8",
    "I64": "<i8",
    "I32": "<i4",
    "I8": "|i1",
    "U8": "|u1",
}
FINITE_CHECK_BYTES = 64 << 20


class TensorFile:
    """The arrays of one file, checked as they are taken.

    Format: 8 bytes little-endian header length, a JSON header with offsets relative to its end, then the raw arrays.

    Raises:
        BundleError: not a safetensors file.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        try:
            with safe_open(file, framework="numpy"):  # checks that header and offsets hold together
                pass
            # Mapped once: the file may be replaced by another before its arrays are taken.
            self._bytes = np.memmap(file, np.uint8, "r")
        except (OSError, SafetensorError) as e:
            raise BundleError(f"{file}: not a readable safetensors file ({e}); build the bundle again") from None
        self._start = 8 + int.from_bytes(self._bytes[:8].tobytes(), "little")
        self._entries = json.loads(self._bytes[8 : self._start].tobytes())

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def offset(self, name: str) -> int:
        """Byte offset of an array in the file, for a graph that points at it instead of copying it."""
        return self._start + int(self._entry(name)["data_offsets"][0])

    def describe(self, name: str) -> tuple[np.dtype[Any], tuple[int, ...]]:
        """Dtype and shape of an array."""
        entry = self._entry(name)
        return np.dtype(DTYPES.get(entry["dtype"], "V1")), tuple(entry["shape"])

    def take(self, name: str, dtype: type[T], shape: tuple[int | None, ...], *, copy: bool = True) -> NDArray[T]:
        """An array, every number of it finite: a copy, or else a read-only map of the file.

        Args:
            name: of the array.
            dtype: that it must have.
            shape: that it must have; None for an axis of any length.
            copy: whether to copy it into memory.

        Raises:
            BundleError: names the file, the array, what was found and what is asked for.
        """
        found_dtype, found_shape = self.describe(name)
        fits = len(found_shape) == len(shape) and all(n in (None, m) for n, m in zip(shape, found_shape, strict=True))
        asked = np.dtype(dtype)
        if found_dtype != asked or not fits:
            want = "[" + ", ".join("any" if n is None else str(n) for n in shape) + "]"
            raise BundleError(
                f"{self.file}: array {name!r} is {found_dtype}{list(found_shape)}, the manifest asks for {asked}{want}"
            )
        if 0 in found_shape:
            return np.zeros(found_shape, asked)
        start = self.offset(name)
        array = self._bytes[start : start + math.prod(found_shape) * asked.itemsize].view(asked).reshape(found_shape)
        if found_dtype.kind == "f":
            rows = max(1, FINITE_CHECK_BYTES // array[:1].nbytes)
            if not all(np.isfinite(array[i : i + rows]).all() for i in range(0, len(array), rows)):
                raise BundleError(f"{self.file}: array {name!r} has values that are not finite")
        return np.array(array) if copy else array

    def _entry(self, name: str) -> dict[str, Any]:
        entry: dict[str, Any] | None = self._entries.get(name)
        if entry is None:
            raise BundleError(f"{self.file}: has no array {name!r}")
        return entry

"""Arrays of .npz and .npy files that other people wrote: no pickle, and faults of a file told in one way."""

from __future__ import annotations

import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray

from softkin.errors import DataError, reason_of


@contextmanager
def open_npz(path: str | Path, remedy: str) -> Iterator[NpzFile]:
    """An .npz file, open for as long as arrays are taken out of it by `array_of`.

    Args:
        path: the file.
        remedy: how to write one that will do.

    Raises:
        DataError: it cannot be read, or is not an .npz file of plain arrays; also where that shows only in an array.
    """
    with (
        _faults_told(path, "an .npz file of plain arrays", remedy),
        # Not np.load, which reads an .npy whole, takes any text for a pickle, and explains how to load that.
        Path(path).open("rb") as raw,
        NpzFile(raw, allow_pickle=False) as file,
    ):
        yield file


def read_npy(path: str | Path, remedy: str) -> NDArray[Any]:
    """The array of an .npy file; arguments and errors as for `open_npz`."""
    with _faults_told(path, "an .npy file of a plain array", remedy), Path(path).open("rb") as raw:
        array: NDArray[Any] = np.lib.format.read_array(raw, allow_pickle=False)
        return array


@contextmanager
def _faults_told(path: str | Path, expected: str, remedy: str) -> Iterator[None]:
    try:
        yield
    except IsADirectoryError:
        raise DataError(f"{path}: is a folder, not {expected}; {remedy}") from None
    except OSError as e:
        raise DataError(f"{path}: cannot be read ({reason_of(e)}); check path and rights") from None
    except MemoryError as e:
        raise DataError(f"{path}: is too large for the memory here ({e}); take a part of its rows") from None
    # Old headers NumPy parses as Python.
    except (ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error, tokenize.TokenError) as e:
        reason = str(e) or "it ends too soon"
        raise DataError(f"{path}: not {expected} ({reason}); {remedy}") from None


def array_of(file: NpzFile, key: str) -> NDArray[Any]:
    """One array of an open file.

    Raises:
        ValueError: it is pickled, or no array but another file in the same archive.
    """
    found: NDArray[Any] | bytes = file[key]
    if not isinstance(found, np.ndarray):
        raise ValueError(f"{key!r} is no array, but another file in the same archive")
    return found

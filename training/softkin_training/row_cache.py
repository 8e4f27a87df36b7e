"""Rows decoded once: an Arrow file in the cache of the `datasets` library, made again when what it was made of changes.

The cache is ~/.cache/huggingface/datasets/softkin, or where HF_HOME says. A file appears whole or not at all; what a
run that was killed had begun is removed by the next that writes there.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from softkin.errors import DataError, RecipeError
from softkin.unfinished_files import remove_unfinished
from softkin_training.stored_rows import RowFile, write_rows

FORMAT = 2
"""Counts the ways in which sources have been turned into rows."""
FILES = re.compile(r"[0-9a-f]{32}\.arrow")


def optional_package(name: str, extra: str, needed_by: str) -> Any:
    """A package that comes with an extra.

    Raises:
        RecipeError: it is not installed; says how to get it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as e:
        raise RecipeError(f"{needed_by} needs the package {name} ({e}); pip install 'softkin[{extra}]'") from None


def cached_rows(
    files: Iterable[Path], settings: dict[str, Any], rows: Callable[[], Iterable[NDArray[np.generic]]]
) -> RowFile:
    """The rows of some files, from the cache, or made and put there.

    Args:
        files: that the rows are made of; told by path, size and time of change.
        settings: everything else that decides the rows, JSON-able.
        rows: makes them, as arrays `[m, ...]` of one dtype and row shape.

    Raises:
        DataError: a file is missing, or the cache cannot be written.
        Exception: whatever `rows` raises.
    """
    try:
        state = [(str(p.absolute()), (found := p.stat()).st_size, found.st_mtime_ns) for p in files]
    except OSError as e:
        raise DataError(f"{e.filename}: cannot be read ({e.strerror})") from None
    key = hashlib.sha256(json.dumps([FORMAT, settings, state], sort_keys=True).encode()).hexdigest()
    library = optional_package("datasets", "datasets", "this source of data")
    path = Path(library.config.HF_DATASETS_CACHE) / "softkin" / f"{key[:32]}.arrow"
    if path.exists():
        return RowFile(path)
    remove_unfinished(path.parent, FILES)  # first: it may be for want of room that a run was killed
    return write_rows(path, rows())

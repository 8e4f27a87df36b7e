"""Files that a command makes for itself in the system's temporary folder, and takes away again. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from softkin.errors import DataError, reason_of


@contextmanager
def written_to(folder: Path, what: str) -> Iterator[None]:
    """Write `what` there, inside; a full disk is no fault of the command, and has a remedy.

    Raises:
        DataError: it could not be written.
    """
    try:
        yield
    except (OSError, SafetensorError) as e:
        raise DataError(
            f"{folder}: cannot write the {what} ({reason_of(e)}); make room there, or set TMPDIR to a larger disk"
        ) from None

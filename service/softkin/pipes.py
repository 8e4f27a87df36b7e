"""Files that can be read only once: opening a named pipe again waits for a writer, and may wait for ever."""

from __future__ import annotations

import stat
from pathlib import Path


def is_pipe(path: Path) -> bool:
    """Whether a path is a pipe, named or a shell's `<(...)`; False where there is nothing, or it cannot be seen."""
    try:
        return stat.S_ISFIFO(path.stat().st_mode)
    except (OSError, ValueError):
        return False

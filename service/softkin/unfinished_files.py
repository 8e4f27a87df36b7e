"""Files that appear whole or not at all. What a writer that died has left unfinished is removed by a later one.

A writer locks its temporary file, and the operating system releases the lock however the process ends. A process id
could not tell whether the writer is still alive: ids are reused, and every container counts from 1.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ABANDONED_SECONDS = 24 * 3600
"""A file of another host, whose locks may not show here, is abandoned if nothing was written to it for so long."""


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A new file beside `path`, locked while it is written; then it is synced and replaces `path`.

    It must be written to, not replaced: the lock is on this very file, and it is the one that is synced. What writers
    of `path` that died have left unfinished is removed first.

    Raises:
        OSError: it cannot be written; nothing of it stays.
    """
    remove_unfinished(path.parent, re.compile(re.escape(path.name)))
    temporary, fd = new_locked(lambda: _beginning(path))
    try:
        yield temporary
        os.fsync(fd)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
        os.close(fd)


def remove_unfinished(folder: Path, pattern: re.Pattern[str]) -> None:
    """Remove what writers that died have left unfinished in `folder`; what is being written stays, whoever writes it.

    Args:
        folder: it need not exist.
        pattern: of the names of finished files; the names of temporary ones follow from it.
    """
    beginnings = re.compile(rf"\.(?:{pattern.pattern})\.(.+)")
    for file in folder.glob(".*"):
        if found := beginnings.fullmatch(file.name):
            _remove_if_abandoned(file, of_this_host=found[1].startswith(f"{this_host()}."))


def _remove_if_abandoned(file: Path, *, of_this_host: bool) -> None:
    try:
        fd = os.open(file, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)  # NFS locks only what can be written
    except OSError:
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if of_this_host or time.time() - os.fstat(fd).st_mtime > ABANDONED_SECONDS:
            file.unlink(missing_ok=True)
    except OSError:  # being written, somebody else's, or on a file system without locks: then it had better stay
        pass
    finally:
        os.close(fd)


def _beginning(path: Path) -> tuple[Path, int]:
    temporary = path.with_name(f".{path.name}.{this_host()}.{secrets.token_hex(8)}")
    return temporary, os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)


def new_locked(make: Callable[[], tuple[Path, int]]) -> tuple[Path, int]:
    """A new temporary file or directory, locked: while its descriptor is open, nobody takes it for abandoned.

    Args:
        make: creates one under a name of its own, and opens it.
    """
    while True:
        path, fd = make()
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
        except OSError:
            return path, fd  # on a file system without locks nobody else gets one either
        if os.path.lexists(path):
            return path, fd
        os.close(fd)  # taken for abandoned before it was locked


def this_host() -> str:
    """The name of this host, fit for file names: locks may not show whether a writer on another host is alive."""
    return re.sub(r"[^\w-]", "_", socket.gethostname())[:64]

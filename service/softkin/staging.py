"""Several files or directories that appear together, whole or not at all; for a single file see `unfinished_files`."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from softkin.errors import BundleError, reason_of
from softkin.unfinished_files import new_locked, this_host

FULL = errno.ENOSPC, errno.EDQUOT, errno.EFBIG
SET_ASIDE = ".old"
"""Ends the name, in the temporary directory, of what is being replaced."""


@contextmanager
def staged(*targets: Path, what: str, make_parent: bool = False, replace: bool = True) -> Iterator[list[Path]]:
    """Paths of the targets' own names in a temporary sibling directory; synced and renamed into place at the end.

    All targets or none: what stood there before is set aside first, and comes back when a rename fails. The directory
    is locked while it is in use, so that whoever finds one can tell whether its writer lives.

    Args:
        targets: files or directories of one parent.
        what: what they are, for errors.
        make_parent: make the parent directory where it is missing.
        replace: whether to replace what stands there once all is written; otherwise that is an error.

    Raises:
        BundleError: the parent cannot be written, the disk is full, or a target exists that is not to be replaced;
            everything is as it was before.
    """
    parent = targets[0].parent
    staging: Path | None = None
    lock: int | None = None
    try:
        if make_parent:
            parent.mkdir(parents=True, exist_ok=True)
        staging, lock = new_locked(lambda: _beginning(targets[0]))
        paths = [staging / t.name for t in targets]
        yield paths
        mode = _mode_of_new_files(staging)
        for path in paths:
            for file in [*(path.iterdir() if path.is_dir() else ()), path]:
                if file.is_file() and file.stat().st_mode & 0o777 != mode:
                    file.chmod(mode)
                _sync(file)
        if not replace:  # whoever asked has looked before, but writing takes time
            _refuse_existing(targets)
        _put(paths, list(targets), staging)
        _sync(parent)
    except (OSError, SafetensorError) as e:
        remedy = ""
        if staging is None and isinstance(e, FileNotFoundError | NotADirectoryError):
            remedy = f"; make the directory {parent} first, or choose another"
        elif isinstance(e, SafetensorError) or e.errno in FULL:
            remedy = "; make room, or choose another directory"
        raise BundleError(
            f"{targets[0]}: cannot write the {what} ({reason_of(e)}); nothing was changed there{remedy}"
        ) from e
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def staging_prefix(target: Path) -> str:
    """What the names of temporary directories of this target begin with, made by processes of this host."""
    return f".{target.name}.{this_host()}."


def _beginning(target: Path) -> tuple[Path, int]:
    staging = Path(tempfile.mkdtemp(prefix=staging_prefix(target), dir=target.parent))
    return staging, os.open(staging, os.O_RDONLY)


def _mode_of_new_files(folder: Path) -> int:
    # safetensors writes files for their owner alone, whatever the umask; servers run as somebody else.
    probe = folder / ".mode"
    probe.touch()
    return probe.stat().st_mode & 0o777


def _refuse_existing(targets: Sequence[Path]) -> None:
    for target in targets:
        if os.path.lexists(target):
            raise BundleError(
                f"{target}: exists already, written in the meantime; choose another name, or remove it first"
            )


def _put(paths: list[Path], targets: list[Path], staging: Path) -> None:
    aside: dict[Path, Path] = {}
    placed: list[Path] = []
    try:
        for target in targets:
            if os.path.lexists(target):
                old = staging / f"{target.name}{SET_ASIDE}"
                target.rename(old)
                aside[target] = old
        # The last target first: a model is never seen without the data that it points to.
        for path, target in zip(reversed(paths), reversed(targets), strict=True):
            path.rename(target)
            placed.append(target)
    except BaseException:
        for target in placed:
            target.rename(staging / f"{target.name}.new")
        for target, old in aside.items():
            old.rename(target)
        raise


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)

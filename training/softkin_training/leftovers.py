"""What a killed build left beside a bundle: put back, removed where nothing is lost, or told of.

A build writes to a directory of its own beside the bundle, in which the bundle of before stands for the moment between
two renames. Killed at any time it leaves that directory, which may be all there is of a bundle.
"""

from __future__ import annotations

import fcntl
import os
import re
import shlex
import shutil
from pathlib import Path

from softkin import bundle as bundles
from softkin.errors import SoftkinError
from softkin.staging import SET_ASIDE, staging_prefix


def tidy(bundle: str | os.PathLike[str]) -> list[str]:
    """Look after what killed builds of this bundle left, before it is built again.

    Removed is what holds no bundle, and anything where the bundle itself is complete, by the sha256 of every file; put
    back is a complete bundle of before where there is none now. Everything else stays, as does what is being written.

    Args:
        bundle: directory of the bundle; neither it nor its parent need exist.

    Returns:
        A line on each that was found, what is being written left out.
    """
    target = Path(bundle).absolute()
    lines = [_look_after(folder, target) for folder in _left_by(target)]
    return [line for line in lines if line]


def _left_by(target: Path) -> list[Path]:
    """Temporary directories beside a bundle, the newest first."""
    name = re.compile(rf"\.{re.escape(target.name)}\.([\w-]{{1,64}}\.)?[a-z0-9_]{{8}}")
    if not os.path.isdir(target.parent):
        return []
    try:
        found = [
            (e.stat().st_mtime, e.path) for e in os.scandir(target.parent) if name.fullmatch(e.name) and e.is_dir()
        ]
    except OSError:
        return []
    return [Path(path) for _, path in sorted(found, reverse=True)]


def _look_after(folder: Path, target: Path) -> str | None:
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError as e:
        return f"{folder}: a build that was killed may have left it, and it cannot be read ({e.strerror}); look into it"
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        sure = folder.name.startswith(staging_prefix(target))
    except BlockingIOError:
        return None
    except OSError:  # no locks on this file system
        sure = False
    try:
        if not sure:
            return (
                f"{folder}: a killed build left it, unless one on another machine is writing it; if none is, look into "
                "it, for it may hold the bundle of before, and remove it"
            )
        return _settle(folder, target)
    finally:
        os.close(fd)


def _settle(folder: Path, target: Path) -> str:
    """What becomes of a directory that no process writes any more."""
    old, new = folder / f"{target.name}{SET_ASIDE}", folder / target.name
    if _is_complete(target):
        return _remove(folder, f"a killed build left it, and {target} is complete")
    there = os.path.lexists(target)
    if not there and _is_complete(old):
        try:
            old.rename(target)
        except OSError as e:
            return (
                f"{old}: is the bundle of before, which a killed build set aside ({e.strerror}); {_move(old, target)}"
            )
        _remove(folder, "")
        return f"{target}: put back; a killed build had set it aside"
    for what, path in {"the bundle of before": old, "a complete bundle": new}.items():
        if _is_complete(path):
            first = f"{target} is damaged: move it away, then " if there else ""
            return f"{path}: is {what}, which a killed build left; {first}{_move(path, target)}"
    if os.path.lexists(old):
        return f"{old}: a killed build set it aside, and it is no complete bundle; look into it, and remove {folder}"
    return _remove(folder, "the beginning of a bundle, which a killed build left")


def _is_complete(path: Path) -> bool:
    try:
        bundles.verify_files(path)
    except SoftkinError:
        return False
    return True


def _remove(folder: Path, why: str) -> str:
    shutil.rmtree(folder, ignore_errors=True)
    return f"{folder}: {'could not be ' if os.path.lexists(folder) else ''}removed; {why}"


def _move(path: Path, target: Path) -> str:
    return f"to have it back: mv {shlex.quote(str(path))} {shlex.quote(str(target))}"

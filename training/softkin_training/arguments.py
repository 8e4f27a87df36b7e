"""Types of command-line arguments."""

from __future__ import annotations

import argparse
import errno
import os
import re
from pathlib import Path

from softkin.errors import InvalidInputError


def folder(text: str) -> Path:
    """Take a path that a command writes to; an empty one, as an unset variable gives, would be the current directory.

    Raises:
        argparse.ArgumentTypeError: it is empty, or a file, which the command would find out after its work.
    """
    if not text:
        raise argparse.ArgumentTypeError("it is empty; name a directory")
    if os.path.isfile(path := Path(text)):
        raise argparse.ArgumentTypeError(f"got {text!r}, which is a file; name a directory")
    return path


def refuse_unwritable(out: Path) -> None:
    """Refuse a folder for results that cannot be made or written; after the work its results would be lost.

    Args:
        out: the folder, or the file of a command that writes one: what counts is then the folder that it lies in.

    Raises:
        InvalidInputError: what is there of its path is no folder, or must not be written.
    """
    folder_of = out.parent if os.path.isfile(out) else out
    there = next(p for p in (folder_of, *folder_of.parents) if os.path.lexists(p))
    reason = None
    if not os.path.isdir(there):
        reason = errno.ENOTDIR
    elif not os.access(there, os.W_OK | os.X_OK):
        reason = errno.EROFS if os.statvfs(there).f_flag & os.ST_RDONLY else errno.EACCES
    if reason is not None:
        raise InvalidInputError("out", f"cannot write to {out} ({os.strerror(reason)}); choose another folder")


def no_folder(text: str) -> str:
    """Take NAME=FILE. A folder without a name was meant for BUNDLE, but an option of many values has swallowed it.

    Raises:
        argparse.ArgumentTypeError: it is a folder.
    """
    if "=" not in text and os.path.isdir(text):
        raise argparse.ArgumentTypeError(
            f"got the folder {text!r}; outliers must read NAME=FILE, and BUNDLE stands before the options"
        )
    return text


def names(text: str) -> list[str]:
    """Split names at commas; a comma inside a name is written after a backslash."""
    return [name.strip().replace("\\,", ",") for name in re.split(r"(?<!\\),", text)]

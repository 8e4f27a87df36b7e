"""`softkin-train rows`: its options, and what it writes."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from softkin.errors import DataError, InvalidInputError
from softkin_training.arguments import names


def add_rows_arguments(sub: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    sub.add_argument("bundle", type=Path, metavar="BUNDLE", help="bundle directory")
    sub.add_argument(
        "--data", required=True, type=Path, metavar="FILE", help="a table (.csv, .parquet), or a folder of images"
    )
    sub.add_argument(
        "--out",
        required=True,
        type=_new_file,
        metavar="FILE.npz",
        help="file to write: x_test, and names where rows have any, which `softkin score` shows",
    )
    sub.add_argument(
        "--columns",
        default="",
        metavar="NAME,NAME",
        help=r"columns of a table, in the order of the detector's inputs (default: those it was trained on); write \, "
        "for a comma within a name",
    )
    sub.add_argument(
        "--name-column",
        metavar="NAME",
        help="column of a table that names rows (default: that which named the training rows, if there is one); images "
        "go by their path",
    )
    sub.add_argument("--force", action="store_true", help="replace the file if it exists")


def _new_file(text: str) -> Path:
    path = Path(text)
    if not text.endswith(".npz") or os.path.isdir(path):
        raise argparse.ArgumentTypeError(f"got {text!r}; must be the name of a file that ends in .npz")
    if not os.path.isdir(path.parent):
        raise argparse.ArgumentTypeError(f"got {text!r}, and there is no folder {str(path.parent)!r}; make it first")
    return path


def write_rows(arguments: argparse.Namespace) -> None:
    """Write rows of FILE as BUNDLE's detector takes them.

    Raises:
        SoftkinError: the rows cannot be read or are none that the detector takes, or the file exists.
    """
    import numpy as np

    from softkin.bundle import read_manifest
    from softkin.score_display import DEFAULT_KEY, NAMES_KEY
    from softkin.unfinished_files import written_whole
    from softkin_training.fit_rows import axes_of
    from softkin_training.image_folder import images_below
    from softkin_training.new_rows import as_taken, open_table, read_columns, read_images, read_names
    from softkin_training.table_rows import is_table

    manifest, data, out = read_manifest(arguments.bundle), arguments.data, arguments.out
    if os.path.lexists(out) and not arguments.force:
        raise InvalidInputError("--out", f"{out} exists; pass --force to replace it, or name another file")
    found: list[str] | None = None
    if os.path.isdir(data):
        for option in ("columns", "name_column"):
            if getattr(arguments, option):
                raise InvalidInputError(
                    f"--{option.replace('_', '-')}", f"is for tables, and {data} is a folder; leave it out"
                )
        images = images_below(data)
        x = read_images(data, images, manifest)
        found = [str(image.relative_to(data)) for image in images]
    elif is_table(data):
        columns = [name for name in names(arguments.columns) if name]
        table = open_table(data, manifest)
        x = read_columns(table, manifest, columns)
        found = read_names(table, manifest, arguments.name_column)
    else:
        raise DataError(
            f"{data}: is no folder, nor a file that ends in .csv or .parquet; `softkin score` reads .npz and .npy "
            "as they are"
        )
    x = as_taken(x, manifest, data)
    arrays: dict[str, Any] = {DEFAULT_KEY: x, **({} if found is None else {NAMES_KEY: np.array(found, str)})}
    try:
        with written_whole(out) as temporary, temporary.open("r+b") as file:
            np.savez(file, **arrays)
    except OSError as e:
        raise InvalidInputError(
            "--out", f"cannot write {out} ({e.strerror}); make room, or name another file"
        ) from None
    print(f"{out}: {len(x)} row{'s' * (len(x) > 1)} of {x.dtype} {axes_of(x)}")

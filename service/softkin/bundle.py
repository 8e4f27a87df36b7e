"""A detector on disk: a directory of plain files, written whole or not at all, verified on every read.

    manifest.json            what it is, and sha256 and size of every other file
    model.onnx               input -> logits and one representation per layer
    bank.safetensors         the tiled bank
    calibration.safetensors  sorted calibration scores
    golden.safetensors       probe inputs with their expected scores
    used_rows.safetensors    digests of the rows it was made of

No pickle and no code, ever; no path is taken from the manifest.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from safetensors.numpy import save_file

from softkin.bank import Bank
from softkin.bundle_arrays import (
    Golden,
    UsedRows,
    bank_tensors,
    calibration_tensors,
    contiguous,
    read_bank,
    read_calibration,
    read_golden,
    read_used_rows,
)
from softkin.calibration import Calibration
from softkin.errors import BundleError, reason_of
from softkin.manifest import FileEntry, Manifest, parse_manifest
from softkin.staging import staged

MANIFEST, MODEL, BANK = "manifest.json", "model.onnx", "bank.safetensors"
CALIBRATION, GOLDEN, USED_ROWS = "calibration.safetensors", "golden.safetensors", "used_rows.safetensors"
DATA_FILES = (MODEL, BANK, CALIBRATION, GOLDEN, USED_ROWS)
FILES = (MANIFEST, *DATA_FILES)


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A verified bundle."""

    path: Path
    digest: str
    """sha256 of manifest.json, hexadecimal."""
    manifest: Manifest
    bank: Bank
    calibration: Calibration
    golden: Golden
    used_rows: UsedRows
    stamps: tuple[tuple[int, ...], ...]
    """What identifies its files, see `_stamps`; taken before they were verified."""

    def refuse_replaced(self) -> None:
        """Make sure that what was read after the files had been verified came from these very files.

        Raises:
            BundleError: other files have taken their place.
        """
        if _stamps(self.path) != self.stamps:
            raise BundleError(f"{self.path}: was replaced or changed while it was being read; load it again")


def read_manifest(path: str | os.PathLike[str]) -> Manifest:
    """Read and check the manifest alone.

    Raises:
        BundleError: not a bundle, or the manifest is damaged.
    """
    return _read_manifest(Path(path))[0]


def digest(path: str | os.PathLike[str]) -> str:
    """The sha256 of a bundle's manifest, which holds the sha256 of everything else."""
    return _read_manifest(Path(path))[1]


def _read_manifest(path: Path) -> tuple[Manifest, str]:
    file = path / MANIFEST
    try:
        raw = file.read_bytes()
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise BundleError(f"{file}: not UTF-8 text; the bundle is damaged, copy or build it again") from None
    except (OSError, ValueError) as e:  # a path with a NUL in it is a ValueError
        near = _bundle_near(path)
        one = f"a bundle is a directory with a {MANIFEST}" + (f", such as {near}" if near else "")
        raise BundleError(f"{file}: cannot be read ({reason_of(e)}); {one}") from None
    return parse_manifest(text, str(file)), hashlib.sha256(raw).hexdigest()


def _bundle_near(path: Path) -> Path | None:
    """The bundle that was probably meant: one in this directory, or the directory that this file is in."""
    try:
        inside = sorted(file.parent for file in path.glob(f"*/{MANIFEST}"))
        return next(near for near in [*inside, path.parent] if (near / MANIFEST).is_file())
    except (OSError, ValueError, StopIteration):
        return None


def verify_files(path: str | os.PathLike[str]) -> tuple[Manifest, str]:
    """Check the manifest, and size and sha256 of every file, without reading an array.

    Returns:
        The manifest, and its sha256.

    Raises:
        BundleError: names the file that is missing or altered.
    """
    root = Path(path)
    manifest, manifest_digest = _read_manifest(root)
    for name in DATA_FILES:
        _verify_file(root / name, manifest.files.get(name))
    return manifest, manifest_digest


def read_bundle(path: str | os.PathLike[str]) -> Bundle:
    """Read a bundle, verifying size and sha256 of every file, and every array's shape, dtype and finiteness.

    Raises:
        BundleError: names the file that is missing, altered or inconsistent; or the bundle was replaced meanwhile.
    """
    root = Path(path)
    stamps = _stamps(root)
    manifest, manifest_digest = verify_files(root)
    found = Bundle(
        path=root,
        digest=manifest_digest,
        manifest=manifest,
        bank=read_bank(root / BANK, manifest),
        calibration=read_calibration(root / CALIBRATION, manifest),
        golden=read_golden(root / GOLDEN, manifest),
        used_rows=read_used_rows(root / USED_ROWS),
        stamps=stamps,
    )
    found.refuse_replaced()
    return found


def write_bundle(
    path: str | os.PathLike[str],
    manifest: Manifest,
    *,
    model: bytes,
    bank: Bank,
    calibration: Calibration,
    golden: Golden,
    used_rows: UsedRows,
    replace: bool = False,
) -> Manifest:
    """Write a bundle to a temporary sibling, sync it, read it back, then rename it into place.

    Args:
        path: directory to create.
        manifest: `files` is filled in here.
        model: the serialised ONNX model.
        bank: the tiled bank.
        calibration: sorted calibration scores.
        golden: probe rows.
        used_rows: digests of the rows that the detector was made of.
        replace: put the new bundle in the place of an existing one; otherwise an existing path is an error.

    Returns:
        The manifest as written.

    Raises:
        BundleError: the path exists, or is to be replaced and is no bundle; the directory cannot be written, the disk
            is full; nothing half-written stays.
    """
    target = Path(path).absolute()
    if os.path.lexists(target) and not replace:
        raise BundleError(f"{target}: exists already; choose another directory, or remove it first")
    if _holds_something_else(target):
        raise BundleError(f"{target}: exists already and is no bundle; choose another directory, or remove it first")
    with staged(target, what="bundle", make_parent=True, replace=replace) as (staging,):
        staging.mkdir()
        (staging / MODEL).write_bytes(model)
        save_file(bank_tensors(bank), staging / BANK)
        save_file(calibration_tensors(calibration), staging / CALIBRATION)
        save_file(contiguous(vars(golden)), staging / GOLDEN)
        save_file(contiguous(vars(used_rows)), staging / USED_ROWS)
        files = {n: FileEntry(sha256=_sha256(staging / n), size=(staging / n).stat().st_size) for n in DATA_FILES}
        manifest = dataclasses.replace(manifest, files=files)
        (staging / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
        read_bundle(staging)
    return manifest


def _holds_something_else(path: Path) -> bool:
    """Whether a path is taken by something that is no bundle, and would be lost; a damaged bundle is one, too."""
    if not os.path.isdir(path):  # which takes any path, unlike Path.is_dir
        return os.path.lexists(path)
    try:
        return not os.path.lexists(path / MANIFEST) and any(path.iterdir())
    except OSError:
        return True


def _sha256(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _verify_file(file: Path, entry: FileEntry | None) -> None:
    if entry is None:
        raise BundleError(f"{file}: not listed in the manifest; the bundle is incomplete, copy or build it again")
    try:
        size = file.stat().st_size
        if size != entry.size:
            raise BundleError(f"{file}: has {size} bytes, the manifest says {entry.size}; copy or build it again")
        if _sha256(file) != entry.sha256:
            raise BundleError(f"{file}: its sha256 is not the manifest's: the file was altered; copy or build it again")
    except OSError as e:
        raise BundleError(f"{file}: cannot be read ({e.strerror}); copy or build the bundle again") from None


def _stamps(root: Path) -> tuple[tuple[int, ...], ...]:
    """What identifies each file that is there. Files are opened by path several times, and verified only once."""
    found: list[tuple[int, ...]] = []
    for name in FILES:
        with contextlib.suppress(OSError, ValueError):
            at = (root / name).stat()
            # The times of a pipe change whenever somebody writes to it.
            found.append((at.st_dev, at.st_ino, *((at.st_size, at.st_mtime_ns) if stat.S_ISREG(at.st_mode) else ())))
    return tuple(found)

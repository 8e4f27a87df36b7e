"""What a scorer needs in memory, measured in processes of their own.

Counted is what is resident, less what the same process has with a bank of 64 rows: the libraries do not count. A second
scorer of the same files is counted in proportional shares, so that pages of the bank file that both map count once.
"""

from __future__ import annotations

import tempfile
import threading
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from banks import BANK, LAYER, MODEL, open_bank, write_bank
from candidates import K
from softkin.bank import Precision
from softkin.tensor_file import TensorFile
from workers import Call, Worker, in_own_process, interleave, resident_bytes

BATCH = 256
CALLS = (BATCH, 100, 1, BATCH)
"""Rows of the calls that count: what the first one of a size takes, the next ones may take again."""
PRECISIONS: tuple[Precision, ...] = tuple(p for p in get_args(Precision) if p != "float16")
"""float16 is for CUDA: on a CPU it unfolds to float32 at load, and takes as much memory."""


@dataclass(frozen=True)
class Shape:
    """Of a bank."""

    rows: int
    dim: int
    classes: int = 10

    @property
    def title(self) -> str:
        """For tables."""
        return f"{self.rows:,} x {self.dim}"


SHAPES = (Shape(60_000, 128), Shape(1_000_000, 128), Shape(1_200_000, 512))
TWICE = SHAPES[1]
"""The bank that is loaded twice."""
ROUNDS, SECONDS = 7, 8
"""At most, for each batch size."""
SAMPLE_SECONDS = 0.005
NOTHING = Shape(64, 128, 1)


def measure_memory(shapes: tuple[Shape, ...] = SHAPES, twice: Shape = TWICE) -> dict[str, Any]:
    """Load, calls and a second scorer, for every bank and precision."""
    loads, seconds = [], []
    for precision in PRECISIONS:
        for shape in shapes:
            print(f"memory: {shape.title}, {precision}", flush=True)
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                empty = NOTHING if shape.dim == NOTHING.dim else Shape(NOTHING.rows, shape.dim, NOTHING.classes)
                loads.append({"title": shape.title, "precision": precision, **_load(folder, shape, empty, precision)})
                if shape == twice:
                    seconds.append({"title": shape.title, "precision": precision, **_second(folder)})
    return {"batch": BATCH, "k": K, "loads": loads, "second": seconds}


def _load(folder: Path, shape: Shape, empty: Shape, precision: Precision) -> dict[str, float]:
    (folder / "empty").mkdir()
    for where, s in ((folder, shape), (folder / "empty", empty)):
        in_own_process(write_bank, where, s.rows, s.dim, s.classes, precision)
    base = in_own_process(_after_load, folder / "empty", 0)
    masses, nearest = (in_own_process(_after_load, folder, k) for k in (0, K))
    file = (folder / BANK).stat().st_size
    return {
        "file_mb": _mb(file),
        "resident_mb": _mb(masses["loaded"] - base["loaded"]),
        "resident_share": round((masses["loaded"] - base["loaded"]) / file, 3),
        "load_peak_mb": _mb(masses["load_peak"] - base["loaded"]),
        "load_peak_share": round((masses["load_peak"] - base["loaded"]) / file, 3),
        "own_peak_share": round((masses["own_peak"] - base["own"]) / file, 3),
        "calls_extra_mb": _mb(masses["calls_extra"]),
        "nearest_extra_mb": _mb(nearest["calls_extra"]),
    }


def _after_load(folder: Path, neighbors: int) -> dict[str, int]:
    x, own, loading = _queries(folder), [_status_bytes("RssAnon")], threading.Event()

    def sample() -> None:
        while not loading.wait(SAMPLE_SECONDS):
            own.append(_status_bytes("RssAnon"))

    sampler = threading.Thread(target=sample)
    sampler.start()
    _reset_peak()
    scorer = _scorer(folder)
    loaded, load_peak = resident_bytes(), _status_bytes("VmHWM")
    own.append(_status_bytes("RssAnon"))
    loading.set()
    sampler.join()
    _reset_peak()
    for rows in CALLS:
        if neighbors:
            scorer.run_with_nearest(x[:rows], neighbors)
        else:
            scorer.run(x[:rows])
    extra = _status_bytes("VmHWM") - loaded
    return {"loaded": loaded, "load_peak": load_peak, "own": own[-1], "own_peak": max(own), "calls_extra": extra}


def _second(folder: Path) -> dict[str, Any]:
    """What a second scorer adds, with the runtime's prepacked copies of the bank and without, and what they gain."""
    file = (folder / BANK).stat().st_size
    first, added = (
        {name: in_own_process(_adds, folder, packed)[i] for name, packed in (("prepacked", True), ("mapped", False))}
        for i in (0, 1)
    )
    sizes = (1, 32, BATCH)
    queries = {}
    for rows in sizes:
        queries[rows] = str(folder / f"x{rows}.npy")
        np.save(queries[rows], _queries(folder)[:rows])
    builds = {"prepacked": partial(stored, packed=True), "mapped": partial(stored, packed=False)}
    workers = [Worker(name, build, {"folder": folder}, queries) for name, build in builds.items()]
    slower = {}
    for rows in sizes:
        times = interleave(workers, rows, ROUNDS, SECONDS)
        ratios = np.array(times["mapped"]) / np.array(times["prepacked"])
        slower[str(rows)] = round(float(np.median(ratios)), 2)
    for worker in workers:
        worker.close()
    return {
        "first_share": {name: round(n / file, 3) for name, n in first.items()},
        "added_share": {name: round(n / file, 3) for name, n in added.items()},
        "mapped_times_slower": slower,
    }


def _adds(folder: Path, packed: bool) -> tuple[int, int]:
    """Bytes that the first scorer takes, and that a second one adds, each after a call that reads the whole bank."""
    x, sizes, kept = _queries(folder), [], []
    for where in (folder / "empty", folder, folder):  # the first pays for the libraries
        kept.append(_scorer(where, packed=packed))
        kept[-1].run(x[:1])
        sizes.append(_proportional_bytes())
    return sizes[1] - sizes[0], sizes[2] - sizes[1]


def stored(*, folder: Path, packed: bool) -> Call:
    """A candidate: the scorer of the files in a folder."""
    return _scorer(folder, packed=packed).run


def _scorer(folder: Path, *, packed: bool = True) -> Any:
    from placement import session_entry
    from softkin.scorer import Scorer

    with session_entry("session.disable_prepacking", "0" if packed else "1"):
        return Scorer(folder / MODEL, open_bank(folder / BANK), folder / BANK, device="cpu")


def _queries(folder: Path) -> NDArray[np.float32]:
    (dim,) = TensorFile(folder / BANK).describe(f"center.{LAYER}")[1]
    x = np.random.default_rng(1).standard_normal((BATCH, dim), dtype=np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _status_bytes(key: str) -> int:
    """VmHWM: the most that was resident since the last reset. RssAnon: what is resident now, without mapped files."""
    return 1024 * int(Path("/proc/self/status").read_text().split(f"{key}:")[1].split()[0])


def _proportional_bytes() -> int:
    return 1024 * int(Path("/proc/self/smaps_rollup").read_text().split("\nPss:")[1].split()[0])


def _mb(n: int) -> float:
    return round(n / 2**20, 1)

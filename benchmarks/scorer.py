"""Side by side: the scorer against the machine's ceilings and against peers, in one interleaved run.

    make bench                                   everything; about 5 minutes on two cores
    python benchmarks/scorer.py --cases small --out DIR

Writes scorer_<cores>vcpu_<date>.json, .md and .png.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import candidates
from workers import Build, Worker, interleave

TEMPERATURE = 0.1
LIBRARIES = ("softkin", "numpy", "onnxruntime-gpu", "torch", "faiss-cpu", "scikit-learn")

SOFTKIN = "softkin"
CEILING = "MatMul of the same shape"
CANDIDATES: dict[str, Build] = {
    SOFTKIN: candidates.softkin,
    "softkin, any temperature": partial(candidates.softkin, bounded=False),
    "softkin + exact top-50": partial(candidates.softkin, neighbors=candidates.K),
    CEILING: candidates.matmul,
    "bank read once": candidates.read_once,
    "FAISS flat, k = 50": candidates.faiss_flat,
    "FAISS HNSW, k = 50 (approximate)": candidates.faiss_hnsw,
    "scikit-learn brute, k = 50": candidates.sklearn_brute,
    "torch, segments": candidates.torch_segments,
    "torch, attention": candidates.torch_attention,
}


@dataclass(frozen=True)
class Case:
    """One bank and the batch sizes to try on it."""

    rows: int
    dim: int
    classes: int
    batches: tuple[int, ...]
    rounds: int
    leave_out: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """For tables."""
        return f"{self.rows:,} x {self.dim}, {self.classes} classes"


_SLOW = ("FAISS HNSW, k = 50 (approximate)", "scikit-learn brute, k = 50", "torch, attention", "softkin + exact top-50")
CASES = {
    "60k-128": Case(60_000, 128, 10, (1, 32, 256), 31),
    "60k-512": Case(60_000, 512, 100, (1, 32, 256), 31, leave_out=_SLOW[:1]),
    "1m-128": Case(1_000_000, 128, 1000, (1, 32), 15, leave_out=_SLOW),
}
LINE = tuple(Case(n, 128, 10, (32,), 21) for n in (4_000, 16_000, 60_000, 250_000, 1_000_000))
"""Bank sizes for the plot of time against size."""


def main() -> None:
    """Run, then write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES), help="which banks")
    parser.add_argument("--no-line", action="store_true", help="leave out the plot of time against bank size")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", metavar="DIR")
    arguments = parser.parse_args()
    results = [measure(CASES[name], CANDIDATES) for name in arguments.cases]
    ours = {n: CANDIDATES[n] for n in (SOFTKIN, CEILING)}
    line = [] if arguments.no_line else [measure(case, ours) for case in LINE]
    write({"machine": machine(), "temperature": TEMPERATURE, "cases": results, "line": line}, arguments.out)


def measure(case: Case, builds: dict[str, Build]) -> dict[str, Any]:
    """Medians, and the median over rounds of the ratio to the ceiling of the same round."""
    print(case.title, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        arguments, queries = _data(case, Path(folder))
        workers = [Worker(n, b, arguments, queries) for n, b in builds.items() if n not in case.leave_out]
        failed = {w.name: w.error for w in workers if w.error}
        workers = [w for w in workers if not w.error]
        timings: dict[str, Any] = {}
        for rows in case.batches:
            seconds = interleave(workers, rows, case.rounds if rows > 1 else 2 * case.rounds)
            ceiling = np.array(seconds[CEILING])
            timings[str(rows)] = {
                name: {
                    "milliseconds": round(1e3 * float(np.median(s)), 4),
                    "ratio": round(float(np.median(np.array(s) / ceiling)), 3),
                }
                for name, s in seconds.items()
            }
            for name, t in timings[str(rows)].items():
                print(f"  batch {rows:<4} {name:<34} {t['milliseconds']:>10.3f} ms   {t['ratio']:>7.2f}", flush=True)
        memory = {
            w.name: {"resident_mb": round(w.resident_bytes / 2**20, 1), "peak_mb": round(w.peak_bytes / 2**20, 1)}
            for w in workers
        }
        for w in workers:
            w.close()
    bank_mb = round(case.rows * case.dim * 4 / 2**20, 1)
    return {"title": case.title, "bank_mb": bank_mb, "timings": timings, "memory": memory, "failed": failed}


def _data(case: Case, folder: Path) -> tuple[dict[str, Any], dict[int, str]]:
    """Unit-norm clusters, sorted by class, and queries from the same clusters."""
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(case.classes, case.dim)).astype(np.float32)

    def rows(y: np.ndarray) -> np.ndarray:
        z = centers[y] + rng.standard_normal((len(y), case.dim), dtype=np.float32)
        return z / np.linalg.norm(z, axis=1, keepdims=True)

    labels = np.sort(rng.integers(0, case.classes, case.rows))
    labels[: case.classes] = np.arange(case.classes)
    labels.sort()
    np.save(folder / "bank.npy", rows(labels))
    np.save(folder / "labels.npy", labels)
    queries = {}
    for n in case.batches:
        np.save(folder / f"x{n}.npy", rows(rng.integers(0, case.classes, n)))
        queries[n] = str(folder / f"x{n}.npy")
    arguments = {"bank": str(folder / "bank.npy"), "labels": str(folder / "labels.npy"), "temperature": TEMPERATURE}
    return arguments, queries


def machine() -> dict[str, Any]:
    """Processor, cores, versions, date."""
    info = Path("/proc/cpuinfo").read_text()
    model = next((x.split(":")[1].strip() for x in info.splitlines() if x.startswith("model name")), platform.machine())
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "processor": model,
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "versions": versions,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def write(results: dict[str, Any], out: Path) -> None:
    """JSON with everything, a Markdown table, and the plot."""
    out.mkdir(parents=True, exist_ok=True)
    m = results["machine"]
    stem = f"scorer_{m['cores']}vcpu_{m['date']}"
    (out / f"{stem}.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (out / f"{stem}.md").write_text(_markdown(results, stem), encoding="utf-8")
    if results["line"]:
        _plot(results["line"], out / f"{stem}.png")
    print(out / f"{stem}.md")


def _markdown(results: dict[str, Any], stem: str) -> str:
    m = results["machine"]
    versions = ", ".join(f"{k} {v}" for k, v in m["versions"].items())
    lines = [
        f"# Scorer, {m['date']}",
        "",
        f"{m['processor']}, {m['cores']} cores, Python {m['python']}, {versions}.",
        "",
        "One process per candidate, interleaved rounds, medians. Ratio: median over rounds of the time over that of",
        f"the {CEILING} in the same round. Cosine, T = {results['temperature']}. Memory: resident after load and",
        "the first calls, less that of the process before.",
    ]
    for case in results["cases"]:
        batches = list(case["timings"])
        names = list(case["timings"][batches[0]])
        lines += ["", f"## {case['title']} ({case['bank_mb']} MB)", ""]
        lines.append("| candidate | " + " | ".join(f"batch {b}: ms | ratio" for b in batches) + " | resident MB |")
        lines.append("|---|" + "---|" * (2 * len(batches) + 1))
        for name in names:
            timings = [case["timings"][b][name] for b in batches]
            cells = [f"{t['milliseconds']:.2f} | {t['ratio']:.2f}" for t in timings]
            lines.append(f"| {name} | " + " | ".join(cells) + f" | {case['memory'][name]['resident_mb']:.0f} |")
        lines += [f"\nNot run: {name}: {why}" for name, why in case["failed"].items()]
    if results["line"]:
        lines += ["", "## Time against bank size (128 wide, 10 classes, batch 32)", "", f"![time]({stem}.png)"]
    return "\n".join(lines) + "\n"


def _plot(line: list[dict[str, Any]], file: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    sizes = [int(case["title"].split(" ")[0].replace(",", "")) for case in line]
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for name in (SOFTKIN, CEILING):
        axes.loglog(sizes, [case["timings"]["32"][name]["milliseconds"] for case in line], marker="o", label=name)
    axes.set(xlabel="bank rows", ylabel="milliseconds per batch of 32", title="128 wide, 10 classes, float32")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.savefig(file, dpi=120)


if __name__ == "__main__":
    main()

"""Side by side: the scorer against the machine's ceilings and against peers, in one interleaved run.

    make bench                                   everything; about 15 minutes on two cores
    python benchmarks/scorer.py --parts timing --cases 60k-128 --out DIR
    python benchmarks/scorer.py --device cuda    the scorer, the ceiling and torch on a GPU

Parts: timing, linearity, memory (on the CPU), cancellation, condensed, classes, after (the masses). Writes
scorer_<machine>_<date> .json, .md and .png.
Every candidate runs in a process of its own; one that cannot run here is named in the report, with the reason.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import linearity
from after_masses import measure_after_masses
from banks import TEMPERATURE, clusters
from cancellation import measure_cancellation
from catalogue import CASES, CEILING, NEAREST, ONLY_CPU, OURS, SOFTKIN, Case, builds
from condensed import measure_condensed
from machine import describe_machine
from many_classes import measure_many_classes
from memory import measure_memory
from placement import place
from report import write_report
from workers import Build, Worker, interleave

PARTS = ("timing", "linearity", "memory", "cancellation", "condensed", "classes", "after")


def main() -> None:
    """Run, then write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=PARTS, help="which parts")
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES), help="which banks to time")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="where the scorer runs")
    parser.add_argument("--rounds", type=int, metavar="N", help="at most; 31 when left out")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", metavar="DIR")
    arguments = parser.parse_args()
    cases = [CASES[name] for name in arguments.cases]
    if arguments.rounds is not None:
        cases = [dataclasses.replace(case, rounds=arguments.rounds) for case in cases]
    write_report(run(arguments.parts, cases, arguments.device), arguments.out)


def run(parts: list[str], cases: list[Case], device: str) -> dict[str, Any]:
    """Results of the chosen parts, with the seconds that each took."""
    found = builds(device)
    left_out = {} if device == "cpu" else dict.fromkeys(ONLY_CPU, f"does not run on {device}")
    results: dict[str, Any] = {"machine": describe_machine(device), "temperature": TEMPERATURE, "left_out": left_out}
    seconds: dict[str, float] = {}
    for part in [p for p in parts if device == "cpu" or p != "memory"]:
        started = time.perf_counter()
        if part == "timing":
            results["cases"] = [measure(case, found, device) for case in cases]
            if device != "cpu" and cases:
                results["placement"] = _placement(cases[0], found)
        elif part == "linearity":
            ours = {name: found[name] for name in linearity.CANDIDATES if name in found}
            results["line"] = [measure(case, ours, device) for case in linearity.CASES]
            results["fits"] = linearity.fit_lines(results["line"])
        elif part == "memory":
            results["memory"] = measure_memory()
        elif part == "cancellation":
            results["cancellation"] = measure_cancellation(device)
        elif part == "condensed":
            results["condensed"] = measure_condensed(device)
        elif part == "classes":
            results["classes"] = measure_many_classes(device)
        elif part == "after":
            results["after"] = measure_after_masses()
        seconds[part] = round(time.perf_counter() - started)
        print(f"{part}: {seconds[part]} s", flush=True)
    return {**results, "seconds": seconds}


def measure(case: Case, candidates: dict[str, Build], device: str) -> dict[str, Any]:
    """Medians, and medians over rounds of the ratios within a round."""
    print(case.title, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        arguments, queries = clusters(Path(folder), case.rows, case.dim, case.classes, case.batches)
        gpu = device != "cpu"
        workers = [Worker(n, b, arguments, queries, gpu=gpu) for n, b in candidates.items() if n not in case.left_out]
        failed = {w.name: w.error for w in workers if w.error}
        workers = [w for w in workers if not w.error]
        timings = {}
        for rows in case.batches:
            timings[str(rows)] = _compare(interleave(workers, rows, case.rounds, case.seconds))
            for name, t in timings[str(rows)].items():
                print(f"  batch {rows:<4} {name:<34} {t['milliseconds']:>10.3f} ms", flush=True)
        for worker in workers:
            worker.close()
    return {
        "title": case.title,
        "rows": case.rows,
        "bank_mb": round(case.rows * case.dim * 4 / 2**20, 1),
        "timings": timings,
        "memory": {
            w.name: {
                "resident_mb": round(w.resident_bytes / 2**20, 1),
                "peak_mb": round(w.peak_bytes / 2**20, 1),
                "gpu_mb": round(w.gpu_bytes / 2**20, 1),
            }
            for w in workers
        },
        "devices": {w.name: w.device for w in workers},
        "failed": failed,
        "left_out": {name: why for name, why in case.left_out.items() if name in candidates},
    }


def _compare(seconds: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Per candidate: median, rounds, and its time over those of the ceiling and the scorer in the same round."""
    references = {"over_ceiling": CEILING, "over_softkin": SOFTKIN, "over_nearest": NEAREST}
    return {
        name: {
            "milliseconds": round(1e3 * float(np.median(times)), 4),
            "rounds": len(times),
            **{
                key: round(float(np.median(np.divide(times, seconds[reference]))), 3)
                for key, reference in references.items()
                if reference in seconds
            },
        }
        for name, times in seconds.items()
    }


def _placement(case: Case, found: dict[str, Build]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        arguments, _ = clusters(Path(folder), case.rows, case.dim, case.classes, ())
        return place({name: found[name] for name in OURS if name in found}, arguments)


if __name__ == "__main__":
    main()

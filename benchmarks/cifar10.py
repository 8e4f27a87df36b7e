"""The figures of docs/paper.md for CIFAR-10: ResNet-18 with and without entanglement, over seeds.

    python benchmarks/cifar10.py --cifar10 FILE --outliers NAME=FILE [--outliers ...] [--out DIR]

A step takes an H100 11 ms, however many networks train at a time: ten networks want seven minutes of it, and their
detectors more. Stopped, it goes on where it was. Needs the extra `augmentation`.
Writes results/cifar10_<machine>_<date> .json and .md.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import paper_claims
import paper_tables
from machine import describe_machine
from result_files import write_results
from softkin_training.ablate import ablate
from softkin_training.ablation_plan import load_plan
from softkin_training.ablation_table import summarise

HERE = Path(__file__).parent
NAME = "cifar10"
PLAN = HERE / "cifar10_plan.toml"
ROWS = 10_000
"""Test rows, and at most as many of each outlier set, that a detector is measured on."""


def main() -> None:
    """Run what is not done yet, some networks at a time, then write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", type=Path, required=True, metavar="FILE", help="npz: x_train, y_train, ...")
    parser.add_argument("--outliers", action="append", required=True, metavar="NAME=FILE", help="npz with x_test")
    parser.add_argument("--out", type=Path, default=Path("runs/cifar10"), metavar="DIR", help="networks and reports")
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="0 to N-1 (default 5)")
    parser.add_argument("--processes", type=int, default=3, metavar="N", help="networks at a time (default 3)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda", help="where to train (default cuda)")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="for every network")
    a = parser.parse_args()
    overrides = [
        "data.source=npz",
        f"data.path={a.cifar10}",
        *(f"data.outliers.{pair}" for pair in a.outliers),
        f"training.accelerator={a.device}",
        "training.epochs=20",
        "training.precision=bf16-mixed",
        *a.set,
    ]
    seeds, plan = list(range(a.seeds)), load_plan(PLAN)
    with processes_of_equal_cores(a.processes) as pool:
        for done in [pool.submit(run_one, n, seed, a.out, overrides) for seed in seeds for n in plan.train]:
            done.result()
    cells = ablate(NAME, plan, a.out / NAME, overrides=overrides, seeds=seeds, rows=ROWS)
    found = {
        "machine": describe_machine(a.device),
        "seeds": {NAME: seeds},
        "near_seeds": {NAME: []},
        NAME: summarise(cells) | {"claims": paper_claims.claims(cells, a.out / NAME)},
    }
    write_results(NAME, found, paper_tables.markdown(found), HERE / "results")


@contextmanager
def processes_of_equal_cores(count: int) -> Iterator[ProcessPoolExecutor]:
    """Each with cores of its own: detectors are built on all that a process sees, and four on all 16 took minutes."""
    cores, spawn = sorted(os.sched_getaffinity(0)), multiprocessing.get_context("spawn")
    shares = spawn.SimpleQueue()
    for i in range(count):
        shares.put(cores[i::count] or cores)
    for library in ("OMP", "OPENBLAS"):  # which look at all cores of the machine, once, when they are loaded
        os.environ[f"{library}_NUM_THREADS"] = str(max(1, len(cores) // count))
    with ProcessPoolExecutor(count, mp_context=spawn, initializer=_take_cores, initargs=(shares,)) as pool:
        yield pool


def _take_cores(shares: Any) -> None:
    os.sched_setaffinity(0, shares.get())


def run_one(network: str, seed: int, out: Path, overrides: list[str]) -> None:
    """Train one network, and build and evaluate its detectors."""
    plan, started = load_plan(PLAN), time.perf_counter()
    plan = dataclasses.replace(plan, train={network: plan.train[network]})
    ablate(NAME, plan, out / NAME, overrides=overrides, seeds=[seed], rows=ROWS)
    print(f"{network}, seed {seed}: {time.perf_counter() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()

"""The figures of docs/paper.md: networks with and without entanglement, over seeds, data sets and held-out classes.

    make paper FASHION_MNIST=FILE MNIST=FILE NOTMNIST=FILE [TEXTURES=FILE]

About two hours on one core; stopped, it goes on where it was. Writes results/paper.json and paper.md, and
docs/figures/paper_*.png.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import paper_claims
import paper_plots
import paper_tables
from machine import describe_machine
from paper_data import write_data
from softkin_training.ablate import ablate
from softkin_training.ablation_plan import FAR, Cell, Plan, load_plan
from softkin_training.ablation_table import summarise

HERE = Path(__file__).parent
ROWS = 2000
"""Test rows, and rows of each outlier set, that a detector is measured on."""
EPOCHS = {"fashion_mnist": 5, "mnist": 2}
REDUCED = ("data.calibration_rows=3000", "training.batch_size=128", "training.cpu_threads=1")
"""What makes 32 networks fit into an evening; the recipes ship more of everything."""


def main() -> None:
    """Run what is not done yet, then write numbers and pictures."""
    a = parse(__doc__)
    found = {"machine": describe_machine("cpu")} | seeds_of(a)
    for recipe, cells in run_all("paper_plan.toml", a).items():
        found[recipe] = summarise(cells) | {"claims": paper_claims.claims(cells, a.out / recipe)}
    write(found)


def parse(description: str | None) -> argparse.Namespace:
    """The command line of whoever compares networks on these data sets."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("fashion-mnist", "mnist", "notmnist"):
        parser.add_argument(f"--{name}", type=Path, required=True, metavar="FILE", help="npz, see write_data")
    parser.add_argument("--textures", type=Path, metavar="FILE", help="npz of colour images, one more outlier set")
    parser.add_argument("--out", type=Path, default=Path("runs/paper"), metavar="DIR", help="networks and reports")
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="for far outliers (default 5)")
    parser.add_argument("--near-seeds", type=int, default=3, metavar="N", help="for classes held out (default 3)")
    return parser.parse_args()


def seeds_of(a: argparse.Namespace) -> dict[str, dict[str, list[int]]]:
    """By recipe the seeds of far outliers, and those of classes held out."""
    near = {recipe: list(range(a.near_seeds if recipe == "fashion_mnist" else 0)) for recipe in EPOCHS}
    return {"seeds": {recipe: list(range(a.seeds)) for recipe in EPOCHS}, "near_seeds": near}


def run_all(plan_name: str, a: argparse.Namespace) -> dict[str, list[Cell]]:
    """The cells of a plan of this folder, by recipe; what is done is not done again."""
    plan, seeds = load_plan(HERE / plan_name), seeds_of(a)
    far = write_data(
        a.out / "data", fashion_mnist=a.fashion_mnist, mnist=a.mnist, notmnist=a.notmnist, textures=a.textures
    )
    return {
        recipe: run(recipe, plan, a.out, outliers, seeds["seeds"][recipe], seeds["near_seeds"][recipe])
        for recipe, outliers in far.items()
    }


def run(
    recipe: str, plan: Plan, out: Path, outliers: dict[str, Path], seeds: Sequence[int], near_seeds: Sequence[int]
) -> list[Cell]:
    """All cells of a recipe: far ones with all outlier sets, near ones with the classes held out alone."""
    overrides = [f"data.path={out / 'data' / recipe}.npz", f"training.epochs={EPOCHS[recipe]}", *REDUCED]
    sets = [f"data.outliers.{name}={path}" for name, path in outliers.items()]
    near = {name: held_out for name, held_out in plan.families.items() if name != FAR}
    return [
        *ablate(
            recipe,
            dataclasses.replace(plan, families={FAR: ()}),
            out / recipe,
            overrides=[*overrides, *sets],
            seeds=seeds,
            rows=ROWS,
        ),
        *ablate(
            recipe,
            dataclasses.replace(plan, families=near),
            out / recipe,
            overrides=overrides,
            seeds=near_seeds,
            rows=ROWS,
        ),
    ]


def write(found: dict[str, Any]) -> None:
    """Numbers, tables and pictures."""
    (HERE / "results" / "paper.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (HERE / "results" / "paper.md").write_text("\n".join(paper_tables.markdown(found)) + "\n", encoding="utf-8")
    paper_plots.plot_all(found, HERE.parent / "docs" / "figures")


if __name__ == "__main__":
    main()

"""Whether classes that SNNL holds apart in the hidden layers make a better detector: the recipes' networks.

    python benchmarks/separation.py --fashion-mnist FILE --mnist FILE --notmnist FILE [--textures FILE] [--out DIR]

The data sets, sizes and seeds of paper.py, whose --out may be given: what is the same is not trained again. Three
quarters of an hour on one core; stopped, it goes on where it was. Writes results/separation.json and separation.md.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from machine import describe_machine
from paper import HERE, parse, run_all, seeds_of
from paper_tables import TITLES
from softkin_training.ablation_table import markdown, summarise


def main() -> None:
    """Run what is not done yet, then write the numbers."""
    a = parse(__doc__)
    found = {"machine": describe_machine("cpu")} | seeds_of(a)
    found |= {recipe: summarise(cells) for recipe, cells in run_all("separation_plan.toml", a).items()}
    stem = HERE / "results" / "separation"
    stem.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    stem.with_suffix(".md").write_text("\n".join(report(found)) + "\n", encoding="utf-8")
    print(stem.with_suffix(".md"))


def report(found: dict[str, Any]) -> Iterator[str]:
    """Lines: of each data set the networks, and all scores on both."""
    m = found["machine"]
    yield "# Classes held apart in averaged maps"
    yield ""
    yield f"{m['processor']}, {m['cores']} cores, Python {m['python']}, torch {m['versions']['torch']}, {m['date']}."
    yield "Made by separation.py, which says of what. Mean +- standard deviation over seeds; differences to plain"
    yield "training are paired by seed, p of a two-sided paired t-test. Caught: share of outliers with p-value <= 0.05."
    yield "Near: classes held out, mean over pairs."
    for recipe, title in TITLES.items():
        if recipe in found:
            yield from ("", f"## {title}", "")
            far, near = (", ".join(map(str, found[k][recipe])) for k in ("seeds", "near_seeds"))
            yield f"Seeds {far}; of held-out classes {near or 'none'}."
            yield from markdown(found[recipe]).splitlines()[1:]


if __name__ == "__main__":
    main()

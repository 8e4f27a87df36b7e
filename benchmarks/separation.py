"""Whether classes that SNNL holds apart in the hidden layers make a better detector: the recipes' networks.

    python benchmarks/separation.py --fashion-mnist FILE --mnist FILE --notmnist FILE [--textures FILE] [--out DIR]

The data sets, sizes and seeds of paper.py, whose --out may be given: what is the same is not trained again. Three
quarters of an hour on one core; stopped, it goes on where it was. Writes results/separation.json and separation.md.
"""

from __future__ import annotations

import json
from typing import Any

from machine import describe_machine
from paper import HERE, parse, run_all, seeds_of
from paper_tables import report
from softkin_training.ablation_table import markdown, summarise


def main() -> None:
    """Run what is not done yet, then write the numbers."""
    a = parse(__doc__)
    found = {"machine": describe_machine("cpu")} | seeds_of(a)
    found |= {recipe: summarise(cells) for recipe, cells in run_all("separation_plan.toml", a).items()}
    stem = HERE / "results" / "separation"
    stem.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    lines = report("Classes held apart in averaged maps", found, section)
    stem.with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(stem.with_suffix(".md"))


def section(f: dict[str, Any]) -> list[str]:
    """Lines of a data set: the networks, and all scores on both."""
    return markdown(f).splitlines()[2:]


if __name__ == "__main__":
    main()

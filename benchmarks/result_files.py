"""Files that a run leaves: everything as JSON, and Markdown for people, named by the machine and the date."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from machine import machine_name


def dated(name: str, results: dict[str, Any], out: Path) -> Path:
    """Where the results of a run on `results["machine"]` lie, without a suffix: `<name>_<machine>_<date>`."""
    m = results["machine"]
    return out / f"{name}_{machine_name(m)}_{m['date']}"


def write_results(name: str, results: dict[str, Any], lines: Iterable[str], out: Path) -> None:
    """Write .json and .md, and print the path of the latter."""
    out.mkdir(parents=True, exist_ok=True)
    stem = dated(name, results, out)
    stem.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    stem.with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(stem.with_suffix(".md"))

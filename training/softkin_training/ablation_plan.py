"""What an ablation varies: a TOML file of named variants, each a table of recipe keys.

[train."entangled, -0.1"]        # one training run for each
"loss.weight" = -0.1             # or by layer: { conv1 = -0.1, dense = 0.03 }
[detect.density]                 # one bundle for each, from the same network
"detector.nonconformity" = "density"
[held_out]                       # near outliers: classes that the network never learns
"trouser + bag" = [1, 8]
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from softkin.errors import RecipeError, reason_of

FAR = "all classes"
"""The family in which the network knows every class, so that all outliers come from elsewhere."""
Keys = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Variants by name; the first of `train` is what the others are compared with."""

    train: dict[str, Keys]
    detect: dict[str, Keys]
    families: dict[str, tuple[int, ...]]
    """Name -> classes held out; none for `FAR`."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One evaluated variant."""

    family: str
    """`FAR` where the network knows all classes, else the name of the classes held out."""
    train: str
    detect: str
    seed: int
    report: dict[str, Any]
    """report.json."""


def load_plan(path: str | Path | None = None) -> Plan:
    """Read a plan; the built-in one when None.

    Raises:
        RecipeError: not TOML, an unknown table, or a variant that is no table of recipe keys.
    """
    source = Path(path) if path else resources.files("softkin_training") / "ablation_plan.toml"
    try:
        raw = tomllib.loads(source.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as e:
        raise RecipeError(f"{source}: cannot be read as a plan ({reason_of(e)})") from None
    if unknown := sorted(raw.keys() - {"train", "detect", "held_out"}):
        raise RecipeError(f"{source}: unknown table {unknown[0]!r}; allowed: train, detect, held_out")
    for table in ("train", "detect"):
        variants = raw.get(table)
        if not isinstance(variants, dict) or not variants or not all(isinstance(v, dict) for v in variants.values()):
            raise RecipeError(f"{source}: [{table}] must hold at least one table of recipe keys")
        for name, keys in variants.items():
            if nested := [k for k, v in keys.items() if isinstance(v, dict) and "." not in k]:
                raise RecipeError(f'{source}: {table}.{name}: quote the key: "{nested[0]}.KEY" = VALUE')
    held_out = raw.get("held_out", {})
    if not isinstance(held_out, dict):
        raise RecipeError(f"{source}: held_out is {held_out!r}; it must be a table of names and lists of class numbers")
    if FAR in held_out:
        raise RecipeError(f"{source}: held_out.{FAR}: with that name nothing is held out; choose another")
    for name, classes in held_out.items():
        if not isinstance(classes, list) or not classes or not all(map(_is_class, classes)):
            raise RecipeError(f"{source}: held_out.{name} must be a list of class numbers, got {classes!r}")
    families = {FAR: (), **{name: tuple(classes) for name, classes in held_out.items()}}
    return Plan(train=raw["train"], detect=raw["detect"], families=families)


def _is_class(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0

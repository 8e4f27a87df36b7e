"""Ablation: train, build and evaluate every variant of a plan on every family of classes and seed, and compare them.

DIR/<family>/<train variant>/seed<k>/                  checkpoint.pt, model.onnx
DIR/<family>/<train variant>/seed<k>/<detect variant>/ recipe.json, report.json
DIR/ablation.json, DIR/ablation.md                     means, deviations, paired differences

A cell whose recipe.json is the recipe wanted, evaluated on as many rows, is done: so a run that was stopped goes on
where it was.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from softkin.errors import DataError, InvalidInputError, RecipeError, SoftkinError, listed
from softkin.unfinished_files import written_whole
from softkin_training.ablation_plan import FAR, Cell, Plan
from softkin_training.checkpoint import AFRESH
from softkin_training.config import Recipe, load_recipe
from softkin_training.data import Dataset, load_dataset
from softkin_training.evaluate import evaluate
from softkin_training.history import GO_ON
from softkin_training.interruption import AGAIN
from softkin_training.launch import refuse_torchrun
from softkin_training.models import Classifier
from softkin_training.npz import read_npz
from softkin_training.run import BUNDLE, EXPORTED_KEYS, MODEL, build_step, export_step
from softkin_training.sources import read_source
from softkin_training.train import train

RECIPE, REPORT = "recipe.json", "report.json"
ROWS = "rows evaluated"
"""Key beside those of the recipe."""


def ablate(
    recipe: str | Path,
    plan: Plan,
    out: Path,
    *,
    overrides: Sequence[str] = (),
    seeds: Sequence[int] = (0, 1, 2),
    rows: int = 3000,
    say: Callable[[str], None] = print,
) -> list[Cell]:
    """Run every cell that is not done yet.

    Args:
        recipe: TOML file or name of a built-in recipe.
        plan: the variants and families.
        out: directory for everything.
        overrides: `section.key=value` for all cells, over the recipe and under the plan.
        seeds: of the recipe, each for every variant.
        rows: how many of the test rows, and of every outlier set, a cell is evaluated on; drawn at random.
        say: gets one line for each step.

    Returns:
        All cells, those of earlier runs included.

    Raises:
        RecipeError: a variant's key or value does not fit the recipe, a detect variant needs a network of its own, a
            class held out is none or too few are left, two names mean one folder, or torchrun has started this; before
            anything is trained. Or a variant was trained otherwise before.
        InvalidInputError: `out` cannot be written.
        SoftkinError: a cell failed, which the message names; what is done stays.
    """
    refuse_torchrun("ablate")
    for table, names in {"train": [*plan.train], "detect": [*plan.detect], "held_out": [*plan.families]}.items():
        _refuse_one_folder(table, names)
    wanted = list(_recipes(recipe, plan, overrides, seeds))
    cells = []
    for number, (family, train_name, seed, recipes) in enumerate(wanted, 1):
        folder = out / folder_of(family) / folder_of(train_name) / f"seed{seed}"
        missing = {n: r for n, r in recipes.items() if not _done(folder / folder_of(n), r, rows)}
        if missing:
            cell = f"{family}, {train_name}, seed {seed}"
            say(f"[{number} of {len(wanted)}] {cell}: {', '.join(missing)}")
            first = next(iter(recipes.values()))
            with _named(cell, out, folder):
                dataset, network = _trained(first, folder)
            for name, one in missing.items():
                place = folder / folder_of(name)
                with _named(f"{cell}, {name}", out, place):
                    _detect(first, one, dataset, network, place, rows)
        for name in recipes:
            report = json.loads((folder / folder_of(name) / REPORT).read_text(encoding="utf-8"))
            cells.append(Cell(family=family, train=train_name, detect=name, seed=seed, report=report))
    return cells


def _recipes(
    recipe: str | Path, plan: Plan, overrides: Sequence[str], seeds: Sequence[int]
) -> Iterator[tuple[str, str, int, dict[str, Recipe]]]:
    """Every training run: family, train variant, seed, and the checked recipe of each detect variant."""
    # By itself, without a variant, the recipe need not be valid: it is read only where its classes are counted.
    num_classes = _num_classes(load_recipe(recipe, overrides)) if any(plan.families.values()) else 0
    for family, held_out in plan.families.items():
        if outside := [c for c in held_out if c >= num_classes]:
            raise RecipeError(f"held_out.{family} has class {outside[0]}; the data have 0 to {num_classes - 1}")
        if held_out and (left := num_classes - len(set(held_out))) < 2:
            raise RecipeError(f"held_out.{family} leaves {left} of the {num_classes} classes; training needs 2 or more")
        for train_name, train_keys in plan.train.items():
            for seed in seeds:
                found = {}
                for detect_name, detect_keys in plan.detect.items():
                    keys = {**train_keys, **detect_keys, "seed": seed}
                    if held_out:
                        keys["data.known_classes"] = [c for c in range(num_classes) if c not in held_out]
                    try:
                        found[detect_name] = load_recipe(
                            recipe, [*overrides, *(f"{k}={_toml(v)}" for k, v in keys.items())]
                        )
                    except RecipeError as e:  # speaks of --set, which is how the plan's keys reach the recipe
                        where = f"train {train_name!r} with detect {detect_name!r} of the plan"
                        raise RecipeError(f"{where}: {e}") from None
                _refuse_another_network(found)
                yield family, train_name, seed, found


def _refuse_one_folder(table: str, names: Sequence[str]) -> None:
    """Refuse names that mean one folder: the figures of one variant would be taken for those of the other."""
    taken: dict[str, str] = {}
    for name in names:
        if (other := taken.setdefault(folder_of(name), name)) != name:
            raise RecipeError(f"[{table}] {other!r} and {name!r} mean one folder, {folder_of(name)!r}; rename one")


def _refuse_another_network(recipes: Mapping[str, Recipe]) -> None:
    """Refuse a detect variant that needs another network, or other layers of a shared export, than the first one."""
    (first_name, first), *others = recipes.items()
    shared = _shared(first)
    for name, recipe in others:
        if odd := [key for key, value in _shared(recipe).items() if value != shared[key]]:
            raise RecipeError(
                f"[detect] {name!r} and {first_name!r} differ in {odd[0]}, but all detect variants are built from one "
                "network; vary it under [train]"
            )
        more = [layer for layer in recipe.detector.layers if layer not in first.detector.layers]
        if more and _shares_export(recipe, first):
            raise RecipeError(
                f"[detect] {name!r} has the layers {listed(more)}, which {first_name!r} lacks; the first detect "
                "variant says which layers are exported, so it must name all"
            )


def _shared(recipe: Recipe) -> dict[str, Any]:
    sections = {k: v for k, v in recipe.to_dict().items() if k != "detector"}
    keyed = {s: v if isinstance(v, dict) else {"": v} for s, v in sections.items()}
    return {f"{s}.{k}".rstrip("."): v for s, keys in keyed.items() for k, v in keys.items()}


def _shares_export(recipe: Recipe, first: Recipe) -> bool:
    return all(getattr(recipe.detector, k) == getattr(first.detector, k) for k in EXPORTED_KEYS)


def _num_classes(recipe: Recipe) -> int:
    if recipe.data.known_classes:
        raise RecipeError(
            f"data.known_classes is {recipe.data.known_classes}; must be empty where a plan holds classes out: "
            "--set 'data.known_classes=[]', or --plan FILE with one that has no [held_out]"
        )
    match recipe.data.source:
        case "digits":
            return 10
        case "npz" if recipe.data.path:
            return len(read_npz(recipe.data.path, ("class_names",))["class_names"].reshape(-1))
    return len(read_source(recipe.data).class_names)


@contextmanager
def _named(cell: str, out: Path, folder: Path) -> Iterator[None]:
    """What fails within tells which cell it was, and how to go on: the training speaks of going on by itself."""

    def told(text: str) -> str:
        text = text.replace(GO_ON, f"make room, then {AGAIN}")
        return f"{cell}: {text}" + ("" if AGAIN in text else f"; then {AGAIN}")

    try:
        yield
    except InvalidInputError as e:
        raise InvalidInputError(e.field, told(e.message)) from None
    except SoftkinError as e:
        raise type(e)(told(str(e))) from None
    except Exception as e:
        if isinstance(e, OSError) and Path(e.filename or folder).is_relative_to(out):
            text = f"cannot write {e.filename or folder} ({e.strerror or e}); make room, then {AGAIN}"
            raise InvalidInputError("out", f"{cell}: {text}; or choose another folder") from None
        e.add_note(f"{cell}; {AGAIN}")  # a fault of ours, or of the data, for example: no other folder would help
        raise


def _trained(first: Recipe, folder: Path) -> tuple[Dataset, Classifier]:
    """The rows and the network of a training run, which goes on where it was, and its export for detect variants."""
    dataset = load_dataset(first)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        network = train(first, dataset, folder, resume=True, progress=False).model
    except (RecipeError, DataError) as e:  # of a checkpoint that is another's, or damaged
        raise type(e)(str(e).replace(AFRESH, f"remove {folder}: it is trained anew then")) from None
    export_step(first, dataset, folder, network)
    return dataset, network


def _detect(first: Recipe, recipe: Recipe, dataset: Dataset, network: Classifier, out: Path, rows: int) -> None:
    """Build and evaluate one detect variant of a network.

    The first of all says what is exported, whichever are missing: the seed of a layer's projection is its place there.
    A variant of another metric or width has an export of its own.
    """
    out.mkdir(exist_ok=True)
    for old in (RECIPE, MODEL):  # the recipe comes last again: without it a cell is not done
        (out / old).unlink(missing_ok=True)
    if _shares_export(recipe, first):
        shutil.copyfile(out.parent / MODEL, out / MODEL)
    else:
        export_step(recipe, dataset, out, network)
    build_step(recipe, dataset, out)
    fewer = _drawn(dataset, rows)
    report = evaluate(
        out / BUNDLE,
        inliers=fewer.test.x,
        labels=fewer.test.y,
        outliers=fewer.outliers,
        calibration=fewer.calibration,
        corruption_rows=0,
        compare=recipe is first,  # of the others, the table shows the bundle's own score alone
    )
    _write(out / REPORT, report.to_dict())
    shutil.rmtree(out / BUNDLE)  # tens of megabytes in every cell, and quickly built again
    (out / MODEL).unlink()
    _write(out / RECIPE, recipe.to_dict() | {ROWS: rows})


def _write(path: Path, values: Mapping[str, Any]) -> None:
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def _done(folder: Path, recipe: Recipe, rows: int) -> bool:
    """Whether the cell of this recipe is done, if by an older version whose missing keys are at their defaults."""
    file = folder / RECIPE
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if ROWS not in found:  # an older version's, which does not say how many were asked for
            found[ROWS] = json.loads((folder / REPORT).read_text(encoding="utf-8"))["inlier_rows"]
        return found.pop(ROWS) == rows and Recipe.model_validate(found) == recipe and (folder / REPORT).is_file()
    except (OSError, ValueError, AttributeError, TypeError, KeyError):
        return False


def _drawn(dataset: Dataset, rows: int) -> Dataset:
    """At most `rows` of the test rows and of each outlier set, drawn at random and the same for every cell.

    Of a source in order of class, as a folder of images is, the first ones would be of the first classes alone.
    """

    def some(n: int) -> NDArray[np.intp]:
        return np.sort(np.random.default_rng(0).permutation(n)[:rows])

    return replace(
        dataset,
        test=dataset.test.take(some(len(dataset.test))),
        outliers={name: x[some(len(x))] for name, x in dataset.outliers.items()},
    )


def folder_of(name: str) -> str:
    """A name as a folder: letters, digits and dashes."""
    return "-".join("".join(c if c.isalnum() or c in ".+-" else " " for c in name).split()) or FAR


def _toml(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {_toml(v)}" for k, v in value.items()) + "}"
    return json.dumps(value)  # numbers, strings, lists and booleans are the same in both

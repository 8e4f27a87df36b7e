"""`softkin-train`: from a recipe or a bundle to what can be served and shown."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from softkin import __version__
from softkin.console import OutputError, flushed, lost_directory
from softkin.errors import InvalidInputError, SoftkinError
from softkin.option_names import SERVICE_COMMANDS, as_typed, option, refuse_command_of, unrecognized
from softkin_training.arguments import folder, refuse_unwritable
from softkin_training.evaluate_command import add_evaluate_arguments, evaluate_files
from softkin_training.explain_command import add_explain_arguments, explain
from softkin_training.fit_command import add_fit_arguments, fit
from softkin_training.interruption import AGAIN, INTERRUPTED, terminable
from softkin_training.recalibrate_command import add_recalibrate_arguments, recalibrate_from_file
from softkin_training.rows_command import add_rows_arguments, write_rows


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 0 ok, 1 failed, 2 usage, 130 interrupted."""
    try:
        with flushed():
            whole = _parser()
            refuse_command_of("softkin", SERVICE_COMMANDS, whole, sys.argv[1:] if argv is None else argv)
            arguments, unknown = whole.parse_known_args(argv)
            parser: argparse.ArgumentParser = vars(arguments).pop("parser")
            if unknown:
                parser.error(unrecognized(parser, unknown))
            return _run_command(arguments)
    except OutputError as e:
        return _fail(e.reason) if e.reason else 1


def _run_command(arguments: argparse.Namespace) -> int:
    command: Callable[[argparse.Namespace], None] = arguments.command
    try:
        with terminable():
            if "out" in arguments:
                refuse_unwritable(arguments.out)
            _quieten(arguments)
            command(arguments)
    except ModuleNotFoundError as e:
        if e.name is None or e.name.startswith("softkin"):
            raise
        return _fail(f"this needs the Python package {e.name}: pip install 'softkin[{_extra(command, e.name)}]'")
    except SoftkinError as e:
        return _fail(as_typed(e, _options(arguments)))
    except FileNotFoundError as e:
        return _fail(lost_directory(e))
    except KeyboardInterrupt:
        remedy = "run it again"
        if hasattr(arguments, "resume"):
            remedy = "run again with --resume to go on from the last checkpoint"
        elif command is _ablate:
            remedy = AGAIN
        print(f"softkin-train: interrupted; {remedy}", file=sys.stderr)
        return INTERRUPTED
    return 0


def _extra(command: Callable[[argparse.Namespace], None], package: str) -> str:
    """The smallest extra that brings what the command lacks."""
    without_torch = (fit, recalibrate_from_file, evaluate_files, write_rows)
    if command not in without_torch or package.startswith("sklearn"):  # which condenses
        return "training"
    return "evaluation" if command is evaluate_files or package.startswith("PIL") else "service"


def _options(arguments: argparse.Namespace) -> dict[str, str]:
    """Argument of the library -> option of this command."""
    named = {name: option(name) for name in vars(arguments) if name not in ("command", "recipe", "bundle", "overrides")}
    if "parts" in arguments:  # elsewhere joint_parts is a key of the recipe
        named["joint_parts"] = "--parts"
    return named | {"out_dir": "--out"}


def _fail(message: str) -> int:
    print(f"softkin-train: error: {message}", file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="softkin-train", description="From a recipe, a classifier or a bundle to what can be served and shown."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, function: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        # No abbreviations, as of `softkin`: one that is clear today may be refused once there are more options.
        sub = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.set_defaults(command=function, parser=sub)
        return sub

    steps = {
        "run": (_run, "train, export, build and evaluate: everything up to DIR/bundle and DIR/report"),
        "train": (_train, "train the classifier of a recipe: DIR/checkpoint.pt"),
        "export": (_export, "export DIR/checkpoint.pt to DIR/model.onnx and prove the export"),
        "build": (_build, "build DIR/bundle from DIR/model.onnx"),
    }
    for name, (function, text) in steps.items():
        sub = add(name, function, text)
        sub.add_argument("recipe", metavar="RECIPE", help="a TOML file, or the name of a built-in recipe")
        results = "directory for all results; those of an earlier run are replaced"
        sub.add_argument("--out", required=True, type=folder, metavar="DIR", help=results)
        sub.add_argument(
            "--set",
            action="append",
            default=[],
            dest="overrides",
            metavar="SECTION.KEY=VALUE",
            help="override the recipe; may be repeated",
        )
        if name in ("run", "train"):
            sub.add_argument("--resume", action="store_true", help="go on from the checkpoint in DIR, if there is one")
            sub.add_argument("--quiet", action="store_true", help="no progress bar")

    text = "measure a bundle beside other scores: DIR/report.html, report.md, report.json"
    add_evaluate_arguments(add("evaluate", evaluate_files, text))
    add_fit_arguments(add("fit", fit, "a bundle without training, from an ONNX classifier or from vectors: DIR/bundle"))
    text = "a new version of a bundle from new calibration rows, without retraining"
    add_recalibrate_arguments(add("recalibrate", recalibrate_from_file, text))
    text = "new rows of a table or a folder of images as a bundle's detector takes them: an .npz for `softkin score`"
    add_rows_arguments(add("rows", write_rows, text))
    text = "which columns of flagged rows would have to be otherwise, as in which training row"
    add_explain_arguments(add("explain", explain, text))

    sub = add("ablate", _ablate, "train, build and evaluate every variant of a plan: DIR/ablation.md; resumable")
    sub.add_argument("recipe", metavar="RECIPE", help="a TOML file, or the name of a built-in recipe")
    sub.add_argument("--out", required=True, type=folder, metavar="DIR", help="directory for all results")
    sub.add_argument("--plan", type=Path, metavar="FILE", help="TOML file of variants (default: the built-in plan)")
    sub.add_argument("--seeds", type=int, default=3, metavar="N", help="seeds 0 to N-1 (default: 3)")
    sub.add_argument(
        "--rows", type=int, default=3000, metavar="N", help="test and outlier rows of a cell (default: 3000)"
    )
    sub.add_argument(
        "--set", action="append", default=[], dest="overrides", metavar="SECTION.KEY=VALUE", help="for every variant"
    )

    sub = add("entanglement", _entanglement, "entanglement of a bundle's layers on labelled rows, beside chance")
    sub.add_argument("bundle", type=Path, metavar="BUNDLE", help="bundle directory")
    sub.add_argument("--data", required=True, type=Path, metavar="FILE", help="npz with x_test and y_test")
    sub.add_argument(
        "--rows",
        type=int,
        default=1024,
        metavar="N",
        help="measure on the first N rows (default: %(default)s), which must be in no order of class; values at "
        "different sizes do not compare",
    )
    return parser


# torch takes seconds to import: each command imports what it needs, so that --help and usage errors come at once.


def _run(arguments: argparse.Namespace) -> None:
    from softkin.bundle import read_manifest
    from softkin.display import describe_bank
    from softkin_training.config import load_recipe
    from softkin_training.data import load_dataset
    from softkin_training.report_terminal import print_summary
    from softkin_training.run import run

    recipe = load_recipe(arguments.recipe, arguments.overrides)
    _tidy(arguments.out / "bundle")
    report = run(recipe, load_dataset(recipe), arguments.out, resume=arguments.resume, progress=not arguments.quiet)
    print_summary(report)
    manifest = read_manifest(arguments.out / "bundle")
    print(f"\nbank:   {describe_bank(manifest)}")
    print(f"bundle: {arguments.out / 'bundle'}\nreport: {arguments.out / 'report'}/report.html")


def _tidy(bundle: Path) -> None:
    from softkin_training.leftovers import tidy

    for line in tidy(bundle):
        print(line, file=sys.stderr)


def _quieten(arguments: argparse.Namespace) -> None:
    """Have the libraries that read data show no bars where we show none: they ask when they are imported."""
    if getattr(arguments, "quiet", False) or not sys.stderr.isatty():
        for name in ("HF_DATASETS_DISABLE_PROGRESS_BARS", "HF_HUB_DISABLE_PROGRESS_BARS"):
            os.environ.setdefault(name, "1")


def _train(arguments: argparse.Namespace) -> None:
    from softkin_training.config import load_recipe
    from softkin_training.data import load_dataset
    from softkin_training.train import train

    recipe = load_recipe(arguments.recipe, arguments.overrides)
    history = train(
        recipe, load_dataset(recipe), arguments.out, resume=arguments.resume, progress=not arguments.quiet
    ).history
    accuracy, epochs = history[-1]["test_accuracy"], f"{len(history)} epoch{'s' if len(history) > 1 else ''}"
    print(f"test accuracy {accuracy:.4f} after {epochs}: {arguments.out}/checkpoint.pt")


def _export(arguments: argparse.Namespace) -> None:
    from softkin_training.config import load_recipe
    from softkin_training.data import load_dataset
    from softkin_training.run import export_step

    recipe = load_recipe(arguments.recipe, arguments.overrides)
    print(export_step(recipe, load_dataset(recipe), arguments.out))


def _build(arguments: argparse.Namespace) -> None:
    from softkin.display import describe_bank
    from softkin_training.config import load_recipe
    from softkin_training.data import load_dataset
    from softkin_training.run import BUNDLE, build_step

    recipe = load_recipe(arguments.recipe, arguments.overrides)
    _tidy(arguments.out / BUNDLE)
    manifest = build_step(recipe, load_dataset(recipe), arguments.out)
    print(f"{arguments.out / BUNDLE}: {describe_bank(manifest)}")


def _ablate(arguments: argparse.Namespace) -> None:
    from softkin_training.ablate import ablate
    from softkin_training.ablation_plan import load_plan
    from softkin_training.ablation_table import summarise, write_table
    from softkin_training.report_terminal import print_ablation

    for name, value in {"--seeds": arguments.seeds, "--rows": arguments.rows}.items():
        if value < 1:
            raise InvalidInputError(name, f"got {value}; must be at least 1")
    cells = ablate(
        arguments.recipe,
        load_plan(arguments.plan),
        arguments.out,
        overrides=arguments.overrides,
        seeds=range(arguments.seeds),
        rows=arguments.rows,
        say=lambda line: print(line, flush=True),
    )
    write_table(cells, arguments.out)
    print_ablation(summarise(cells))
    print(f"deviations: {arguments.out / 'ablation.md'}\npaired differences: {arguments.out / 'ablation.json'}")


def _entanglement(arguments: argparse.Namespace) -> None:
    from softkin_training.entanglement_command import print_entanglement

    print_entanglement(arguments)

"""`softkin-train`: from a recipe or a bundle to what can be served and shown."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from softkin import __version__
from softkin.console import OutputError, flushed, lost_directory
from softkin.errors import InvalidInputError, SoftkinError
from softkin.option_names import SERVICE_COMMANDS, as_typed, option, refuse_command_of, unrecognized
from softkin_training.arguments import folder, names, no_folder, refuse_unwritable
from softkin_training.fit_command import add_fit_arguments, fit
from softkin_training.interruption import INTERRUPTED, terminable

if TYPE_CHECKING:  # each command imports what it needs, see below
    from softkin.manifest import Manifest


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
            remedy = "run it again: what is done stays"
        print(f"softkin-train: interrupted; {remedy}", file=sys.stderr)
        return INTERRUPTED
    return 0


def _extra(command: Callable[[argparse.Namespace], None], package: str) -> str:
    """The smallest extra that brings what the command lacks."""
    if command not in (fit, _recalibrate, _evaluate) or package.startswith("sklearn"):  # which condenses
        return "training"
    return "evaluation" if command is _evaluate or package.startswith("PIL") else "service"


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

    sub = add("evaluate", _evaluate, "measure a bundle beside other scores: DIR/report.html, report.md, report.json")
    sub.add_argument("bundle", type=Path, metavar="BUNDLE", help="bundle directory")
    sub.add_argument(
        "--inliers",
        required=True,
        type=Path,
        metavar="FILE",
        help="npz with x_test, and y_test if known; or a folder of images, whose folders may be called like classes",
    )
    sub.add_argument(
        "--outliers",
        required=True,
        type=no_folder,
        nargs="+",
        action="extend",
        metavar="NAME=FILE",
        help="npz files with x_test, or folders of images, that should be flagged; may be repeated",
    )
    sub.add_argument(
        "--calibration",
        type=Path,
        metavar="FILE",
        help="like --inliers: inliers unseen so far, which give every other score p-values too",
    )
    sub.add_argument(
        "--near",
        default="",
        metavar="NAME,NAME",
        help=r"outlier sets close to the known classes: means of their own; write \, for a comma within a name",
    )
    sub.add_argument("--alpha", type=float, metavar="A", help="false-alarm rate; the bundle's default when left out")
    sub.add_argument(
        "--corrupt",
        type=int,
        default=1000,
        metavar="ROWS",
        help="inliers to corrupt, where they are images; 0: none (default: %(default)s)",
    )
    sub.add_argument("--out", required=True, type=folder, metavar="DIR", help="directory for the report")

    add_fit_arguments(add("fit", fit, "a bundle without training, from an ONNX classifier or from vectors: DIR/bundle"))

    sub = add("recalibrate", _recalibrate, "a new version of a bundle from new calibration rows, without retraining")
    sub.add_argument("bundle", type=Path, metavar="BUNDLE", help="bundle directory")
    sub.add_argument(
        "--data",
        required=True,
        type=Path,
        metavar="FILE",
        help="npz with x_test, and y_test if known, or a folder of images, whose folders may be called like classes: a "
        "plain sample of inliers, unseen by the network, none picked by verdict",
    )
    sub.add_argument("--out", required=True, type=folder, metavar="BUNDLE", help="bundle directory to write")
    sub.add_argument("--grow", action="store_true", help="add the rows to the bundle's own instead of replacing those")
    sub.add_argument(
        "--version", metavar="V", help="of the new bundle; when left out the old one with -r1, then -r2, and a digest"
    )
    sub.add_argument("--alpha", type=float, metavar="A", help="default false-alarm rate; the bundle's when left out")

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

    _quieten(arguments)
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
    """Have the libraries that read data show no bars either: they ask the environment when they are imported."""
    if arguments.quiet:
        for name in ("HF_DATASETS_DISABLE_PROGRESS_BARS", "HF_HUB_DISABLE_PROGRESS_BARS"):
            os.environ.setdefault(name, "1")


def _train(arguments: argparse.Namespace) -> None:
    from softkin_training.config import load_recipe
    from softkin_training.data import load_dataset
    from softkin_training.train import train

    _quieten(arguments)
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


def _evaluate(arguments: argparse.Namespace) -> None:
    import numpy as np

    from softkin.bundle import read_manifest
    from softkin_training.elapsed import elapsed
    from softkin_training.evaluate import evaluate, write_report
    from softkin_training.new_rows import read_inputs, read_labelled
    from softkin_training.report_terminal import print_summary
    from softkin_training.rows import Rows

    manifest = read_manifest(arguments.bundle)
    outliers = {}
    for item in arguments.outliers:
        name, equals, file = item.partition("=")
        if not (name.strip() and equals and file):
            raise InvalidInputError(
                "--outliers", f"got {item!r}; must read NAME=FILE, for instance letters=letters.npz"
            )
        if name != name.encode(errors="replace").decode():  # bytes that no report could hold
            raise InvalidInputError("--outliers", f"got the name {name!a}, which is not in UTF-8; choose another")
        if name in outliers:
            raise InvalidInputError("--outliers", f"got {name!r} twice; every set needs a name of its own")
        outliers[name] = read_inputs(Path(file), manifest)
    if arguments.corrupt < 0:
        raise InvalidInputError("--corrupt", f"got {arguments.corrupt}; must be 0 or more")

    calibration = None
    if arguments.calibration:
        x, y = read_labelled(arguments.calibration, manifest)
        calibration = x if y is None else Rows(x, y, np.arange(len(y)))
    inliers, labels = read_labelled(arguments.inliers, manifest)
    if labels is None:
        _say_why_unlabelled(arguments.inliers, manifest)
    with elapsed("evaluating"):
        report = evaluate(
            arguments.bundle,
            inliers=inliers,
            labels=labels,
            outliers=outliers,
            calibration=calibration,
            alpha=arguments.alpha,
            near=[name for name in names(arguments.near) if name],
            corruption_rows=arguments.corrupt,
        )
    print_summary(report)  # first: it has taken minutes, and the disk may be full
    write_report(report, arguments.out)
    print(f"report: {arguments.out / 'report.html'}")


def _say_why_unlabelled(path: Path, manifest: Manifest) -> None:
    from softkin_training.new_rows import why_unlabelled

    if why := why_unlabelled(path, manifest):
        print(why, file=sys.stderr)


def _recalibrate(arguments: argparse.Namespace) -> None:
    import numpy as np

    from softkin.bundle import read_manifest
    from softkin.display import describe_class_p_values
    from softkin_training.elapsed import elapsed
    from softkin_training.new_rows import read_calibrating
    from softkin_training.recalibrate import recalibrate
    from softkin_training.rows import Rows

    _tidy(arguments.out)
    manifest = read_manifest(arguments.bundle)
    x, y = read_calibrating(arguments.data, manifest)
    if y is None:
        _say_why_unlabelled(arguments.data, manifest)
    with elapsed("recalibrating"):
        m = recalibrate(
            arguments.bundle,
            arguments.out,
            x if y is None else Rows(x, y, np.arange(len(y))),
            grow=arguments.grow,
            version=arguments.version,
            alpha=arguments.alpha,
        )
    c = m.certificate
    print(
        f"{arguments.out}: {m.name} {m.version}, {m.calibration_size} calibration rows; at alpha {c.alpha:g} "
        f"false alarms are at most {c.false_alarm_bound:.4g} at confidence {c.confidence:g}"
    )
    for line in describe_class_p_values(m):
        print(line)


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

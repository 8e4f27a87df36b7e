"""`softkin-train`: from a recipe or a bundle to what can be served and shown."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from softkin.errors import InvalidInputError, SoftkinError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 0 ok, 1 failed, 2 usage."""
    arguments = _parser().parse_args(argv)
    command: Callable[[argparse.Namespace], None] = arguments.command
    try:
        command(arguments)
    except SoftkinError as e:
        print(f"softkin-train: error: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("softkin-train: interrupted; run again with --resume to go on from the last checkpoint", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="softkin-train", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, function: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(command=function)
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
        sub.add_argument("--out", required=True, type=Path, metavar="DIR", help="directory for all results")
        sub.add_argument(
            "--set",
            action="append",
            default=[],
            dest="overrides",
            metavar="SECTION.KEY=VALUE",
            help="override the recipe",
        )
        if name in ("run", "train"):
            sub.add_argument("--resume", action="store_true", help="go on from the checkpoint in DIR, if there is one")
            sub.add_argument("--quiet", action="store_true", help="no progress bar")

    sub = add("evaluate", _evaluate, "measure a bundle beside other scores: DIR/report.json and DIR/report.md")
    sub.add_argument("bundle", type=Path, metavar="BUNDLE")
    sub.add_argument("--inliers", required=True, type=Path, metavar="FILE", help="npz with x_test, and y_test if known")
    sub.add_argument(
        "--outliers", required=True, nargs="+", metavar="NAME=FILE", help="npz files with x_test that should be flagged"
    )
    sub.add_argument("--alpha", type=float, help="false-alarm rate; the bundle's default when left out")
    sub.add_argument("--out", required=True, type=Path, metavar="DIR")

    sub = add("entanglement", _entanglement, "entanglement of a bundle's layers on labelled rows, beside chance")
    sub.add_argument("bundle", type=Path, metavar="BUNDLE")
    sub.add_argument("--data", required=True, type=Path, metavar="FILE", help="npz with x_test and y_test")
    sub.add_argument(
        "--rows", type=int, default=1024, help="rows to measure on; values at different sizes do not compare"
    )
    return parser


# torch takes seconds to import: each command imports what it needs, so that --help and usage errors come at once.


def _run(arguments: argparse.Namespace) -> None:
    from softkin.bundle import read_manifest
    from softkin.display import describe_bank
    from softkin_training.config import load_recipe
    from softkin_training.data import load_dataset
    from softkin_training.evaluate import markdown
    from softkin_training.run import run

    recipe = load_recipe(arguments.recipe, arguments.overrides)
    report = run(recipe, load_dataset(recipe), arguments.out, resume=arguments.resume, progress=not arguments.quiet)
    print(markdown(report), end="")
    manifest = read_manifest(arguments.out / "bundle")
    print(f"\nbank:   {describe_bank(manifest)}")
    print(f"bundle: {arguments.out / 'bundle'}\nreport: {arguments.out / 'report'}")


def _train(arguments: argparse.Namespace) -> None:
    from softkin_training.config import load_recipe
    from softkin_training.data import load_dataset
    from softkin_training.train import train

    recipe = load_recipe(arguments.recipe, arguments.overrides)
    history = train(
        recipe, load_dataset(recipe), arguments.out, resume=arguments.resume, progress=not arguments.quiet
    ).history
    print(
        f"test accuracy {history[-1]['test_accuracy']:.4f} after {len(history)} epochs: {arguments.out}/checkpoint.pt"
    )


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
    manifest = build_step(recipe, load_dataset(recipe), arguments.out)
    print(f"{arguments.out / BUNDLE}: {describe_bank(manifest)}")


def _evaluate(arguments: argparse.Namespace) -> None:
    from softkin_training.data import read_npz
    from softkin_training.evaluate import evaluate, markdown, write_report

    inliers = read_npz(arguments.inliers, ("x_test",), optional=("y_test",))
    outliers = {}
    for item in arguments.outliers:
        name, equals, file = item.partition("=")
        if not (name and equals and file):
            raise InvalidInputError(
                "--outliers", f"got {item!r}; must read NAME=FILE, for instance letters=letters.npz"
            )
        outliers[name] = read_npz(Path(file), ("x_test",))["x_test"]
    report = evaluate(
        arguments.bundle,
        inliers=inliers["x_test"],
        labels=inliers.get("y_test"),
        outliers=outliers,
        alpha=arguments.alpha,
    )
    write_report(report, arguments.out)
    print(markdown(report), end="")


def _entanglement(arguments: argparse.Namespace) -> None:
    import torch

    from softkin import bundle as bundles
    from softkin.scorer import Network
    from softkin.scorer_graph import representation_output
    from softkin_training.data import read_npz
    from softkin_training.losses import entanglement

    loaded = bundles.read_bundle(arguments.bundle)
    data = read_npz(arguments.data, ("x_test", "y_test"))
    x, y = data["x_test"][: arguments.rows], torch.from_numpy(data["y_test"][: arguments.rows].astype("int64"))
    found = Network(loaded.path / bundles.MODEL).run(x)
    print(f"{'layer':<16}{'entanglement':>14}{'chance':>10}{'ratio':>8}{'temperature':>14}   ({len(x)} rows)")
    for layer in loaded.manifest.layers:
        z = torch.from_numpy(found[representation_output(layer.name)])
        e = entanglement(z, y, metric=loaded.bank.layers[layer.name].metric)
        print(f"{layer.name:<16}{e.value:>14.4f}{e.chance:>10.4f}{e.ratio:>8.3f}{e.temperature:>14.4g}")

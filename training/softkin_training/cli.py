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

    _add_fit(add("fit", _fit, "a bundle without training, from an ONNX classifier or from vectors: DIR/bundle"))

    sub = add("recalibrate", _recalibrate, "a new version of a bundle from new calibration rows, without retraining")
    sub.add_argument("bundle", type=Path, metavar="BUNDLE")
    sub.add_argument(
        "--data",
        required=True,
        type=Path,
        metavar="FILE",
        help="npz with x_test, y_test: a plain sample of inliers, unseen by the network, none picked by verdict",
    )
    sub.add_argument("--out", required=True, type=Path, metavar="DIR", help="bundle directory to write")
    sub.add_argument("--grow", action="store_true", help="add the rows to the bundle's own instead of replacing those")
    sub.add_argument(
        "--version", metavar="V", help="of the new bundle; when left out the old one with -r1, then -r2 ..."
    )
    sub.add_argument("--alpha", type=float, metavar="A", help="default false-alarm rate; the bundle's when left out")

    sub = add("entanglement", _entanglement, "entanglement of a bundle's layers on labelled rows, beside chance")
    sub.add_argument("bundle", type=Path, metavar="BUNDLE")
    sub.add_argument("--data", required=True, type=Path, metavar="FILE", help="npz with x_test and y_test")
    sub.add_argument(
        "--rows", type=int, default=1024, help="rows to measure on; values at different sizes do not compare"
    )
    return parser


def _add_fit(sub: argparse.ArgumentParser) -> None:
    source = sub.add_mutually_exclusive_group(required=True)
    source.add_argument("--onnx", metavar="MODEL.onnx", help="the classifier; needs --layers and --data")
    source.add_argument(
        "--embeddings", metavar="FILE", help="npz with x_train [rows, numbers], and y_train, class_names if known"
    )
    sub.add_argument(
        "--layers", metavar="NAME[,NAME...]", help="tensors or nodes of the model whose values tell rows apart"
    )
    sub.add_argument(
        "--data", metavar="FILE", help="npz with x_train as the model takes it, y_train, and class_names if known"
    )
    sub.add_argument("--out", required=True, type=Path, metavar="DIR")
    calibration = sub.add_mutually_exclusive_group()
    calibration.add_argument(
        "--calibration",
        metavar="FILE",
        help="npz with x_test, y_test that calibrate; give rows the classifier was not trained on, only then false "
        "alarms keep to alpha",
    )
    calibration.add_argument(
        "--calibration-share",
        type=float,
        default=0.2,
        metavar="S",
        help="without --calibration: this part of x_train calibrates (default %(default)s); the classifier must not "
        "have been trained on these rows either",
    )
    sub.add_argument("--output", metavar="NAME", help="tensor or node with a number per class, if several could be it")
    sub.add_argument(
        "--output-kind",
        default="auto",
        metavar="KIND",
        help="logits, probabilities, or auto (default): found on the data",
    )
    options = {
        "name": (str, "of the detector (default: that of the file)"),
        "version": (str, "of the detector (default 1)"),
        "metric": (str, "of the layers: cosine or squared_euclidean (default cosine)"),
        "max-dim": (int, "wider layers are projected to this many numbers (default 256)"),
        "bank-rows": (int, "training rows in the bank (default 20000)"),
        "nonconformity": (str, "density, posterior or joint (default density)"),
        "parts": (str, "of the joint form, joined by commas: posterior, density, density_last, energy"),
        "alpha": (float, "default false-alarm rate (default 0.05)"),
        "precision": (str, "of the bank: float32, float16, int8 or auto (default float32)"),
        "max-p-value-change": (float, "error budget of --precision and --condense (default 1.0: none)"),
        "condense": (float, "training rows that a bank row stands for (default 1.0); above 1 needs scikit-learn"),
        "seed": (int, "of split, projection and choice of bank rows (default 0)"),
    }
    for name, (kind, text) in options.items():
        # None where it is not given: the defaults are the recipes', whose module need not be imported for --help.
        sub.add_argument(f"--{name}", type=kind, metavar=name[0].upper(), help=text)


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
    from softkin_training.evaluate import evaluate, markdown, write_report
    from softkin_training.npz import read_npz

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


def _fit(arguments: argparse.Namespace) -> None:
    from softkin.display import describe_bank
    from softkin_training.expose import EMBEDDING
    from softkin_training.fit import fit_embeddings, fit_onnx
    from softkin_training.fit_config import default_name, fit_config

    a = arguments
    for name, value in {"--layers": a.layers, "--data": a.data}.items():
        if bool(value) != bool(a.onnx):
            remedy = "belongs to --onnx; leave it out" if value else "is missing; --onnx needs it"
            raise InvalidInputError(name, remedy)
    if a.embeddings and (a.output or a.output_kind != "auto"):
        raise InvalidInputError("--output", "belongs to --onnx; vectors have no output")
    names = ("version", "metric", "max_dim", "bank_rows", "nonconformity", "alpha", "precision", "max_p_value_change")
    given = {k: getattr(a, k) for k in (*names, "condense", "seed") if getattr(a, k) is not None}
    config = fit_config(
        name=a.name or default_name(a.onnx or a.embeddings),
        layers=[n.strip() for n in a.layers.split(",")] if a.onnx else [EMBEDDING],
        **given,
        **({"joint_parts": [p.strip() for p in a.parts.split(",")]} if a.parts else {}),
    )
    held_out = {"calibration": a.calibration, "calibration_share": a.calibration_share}
    if a.onnx:
        fitted = fit_onnx(a.onnx, a.data, a.out, config, output=a.output, output_kind=a.output_kind, **held_out)
    else:
        fitted = fit_embeddings(a.embeddings, a.out, config, **held_out)

    m, e = fitted.manifest, fitted.exposed
    for change in e.changes:
        print(f"model:       {change}; values are unchanged")
    for layer in e.layers:
        print(f"layer:       {layer.name}, {layer.width} numbers, reducer {layer.reducer}")
    if e.output:
        as_logits = ", their log serves as logits" if e.output_kind == "probabilities" else ""
        print(f"output:      {e.output}, {e.num_classes} {e.output_kind}{as_logits}")
    print(f"classes:     {', '.join(m.classes[:10])}{', ...' if len(m.classes) > 10 else ''}")
    left_out = f"; {fitted.repeated_rows} repeated rows left out" if fitted.repeated_rows else ""
    print(f"bank:        {describe_bank(m)}{left_out}")
    source = f"from {a.calibration}" if a.calibration else f"{a.calibration_share:g} of x_train"
    accuracy = "" if fitted.accuracy is None else f", of which the classifier gets {fitted.accuracy:.1%} right"
    print(f"calibration: {m.calibration_size} rows {source}{accuracy}")
    if not a.calibration:
        print("             the promise holds if the model was not trained on these rows; else give --calibration FILE")
    c = m.certificate
    print(
        f"{a.out / 'bundle'}: {m.name} {m.version}, {m.calibration_size} calibration rows; at alpha {c.alpha:g} "
        f"false alarms are at most {c.false_alarm_bound:.4g} at confidence {c.confidence:g}"
    )


def _recalibrate(arguments: argparse.Namespace) -> None:
    import numpy as np

    from softkin.bundle import read_manifest
    from softkin_training.npz import checked_labels, read_npz
    from softkin_training.recalibrate import recalibrate
    from softkin_training.rows import Rows

    data = read_npz(arguments.data, ("x_test", "y_test"))
    y = checked_labels(data, "test", len(read_manifest(arguments.bundle).classes), arguments.data)
    m = recalibrate(
        arguments.bundle,
        arguments.out,
        Rows(data["x_test"], y, np.arange(len(y))),
        grow=arguments.grow,
        version=arguments.version,
        alpha=arguments.alpha,
    )
    c = m.certificate
    print(
        f"{arguments.out}: {m.name} {m.version}, {m.calibration_size} calibration rows; at alpha {c.alpha:g} "
        f"false alarms are at most {c.false_alarm_bound:.4g} at confidence {c.confidence:g}"
    )


def _entanglement(arguments: argparse.Namespace) -> None:
    import torch

    from softkin import bundle as bundles
    from softkin.scorer import Network
    from softkin.scorer_graph import representation_output
    from softkin_training.losses import entanglement
    from softkin_training.npz import read_npz

    loaded = bundles.read_bundle(arguments.bundle)
    data = read_npz(arguments.data, ("x_test", "y_test"))
    x, y = data["x_test"][: arguments.rows], torch.from_numpy(data["y_test"][: arguments.rows].astype("int64"))
    found = Network(loaded.path / bundles.MODEL).run(x)
    print(f"{'layer':<16}{'entanglement':>14}{'chance':>10}{'ratio':>8}{'temperature':>14}   ({len(x)} rows)")
    for layer in loaded.manifest.layers:
        z = torch.from_numpy(found[representation_output(layer.name)])
        e = entanglement(z, y, metric=loaded.bank.layers[layer.name].metric)
        print(f"{layer.name:<16}{e.value:>14.4f}{e.chance:>10.4f}{e.ratio:>8.3f}{e.temperature:>14.4g}")

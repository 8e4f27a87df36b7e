"""`softkin-train fit`: its options, and what it prints."""

from __future__ import annotations

import argparse
import shlex
import sys
from typing import TYPE_CHECKING

from softkin.errors import InvalidInputError, listed
from softkin.nonconformity import PARTS
from softkin_training.arguments import folder, names

if TYPE_CHECKING:
    from softkin_training.fit_accuracy import FitAccuracy

SHAKY_TEMPERATURE = 1e-5
"""Rounding of a cosine distance, 1e-7, changes a logit by 1 % where the temperature is lower."""

MOVED_SHOWN = 3


def add_fit_arguments(sub: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    source = sub.add_mutually_exclusive_group(required=True)
    source.add_argument("--onnx", metavar="MODEL.onnx", help="the classifier; needs --layers and --data")
    source.add_argument(
        "--embeddings",
        metavar="FILE",
        help="npz with x_train [rows, numbers], and y_train, class_names if known; or a table (.csv, .parquet)",
    )
    sub.add_argument(
        "--layers",
        metavar="NAME[,NAME...]",
        help=r"tensors or nodes of the model whose values tell rows apart, or its input; write \, for a comma within a "
        "name",
    )
    sub.add_argument(
        "--data",
        metavar="FILE",
        help="npz with x_train as the model takes it, y_train, and class_names if known; or a table (.csv, .parquet)",
    )
    sub.add_argument(
        "--columns",
        default="",
        metavar="NAME[,NAME...]",
        help="of a table, in the order of the model's inputs (default: all but labels and names, as they stand); write "
        r"\, for a comma within a name",
    )
    sub.add_argument(
        "--label-column",
        default="",
        metavar="NAME",
        help="of a table; its values in order are the model's output columns (default: label)",
    )
    sub.add_argument("--name-column", default="", metavar="NAME", help="of a table, which names rows in evidence")
    sub.add_argument(
        "--out", required=True, type=folder, metavar="DIR", help="directory for the bundle; DIR/bundle is replaced"
    )
    calibration = sub.add_mutually_exclusive_group()
    calibration.add_argument(
        "--calibration",
        metavar="FILE",
        help="npz with x_test, y_test that calibrate, or a table; give rows the classifier was not trained on, only "
        "then false alarms keep to alpha",
    )
    calibration.add_argument(
        "--calibration-share",
        type=float,
        default=0.2,
        metavar="S",
        help="without --calibration: this part of x_train calibrates (default: %(default)s); the classifier must not "
        "have been trained on these rows either",
    )
    sub.add_argument(
        "--output",
        metavar="NAME",
        help="tensor or node with a number per class, or one for two, if several could be it and none is called logits",
    )
    sub.add_argument(
        "--output-kind",
        default="auto",
        metavar="KIND",
        help="logits, probabilities, or auto, which is found on the data (default: auto)",
    )
    options = {
        "name": (str, "of the detector (default: that of the file)"),
        "version": (str, "of the detector (default: 1)"),
        "temperature-scale": (float, "in units of the median distance between nearest bank rows (default: 0.25)"),
        "metric": (
            str,
            "cosine or squared_euclidean for all layers, or LAYER=METRIC,... (default: cosine, but for the last of "
            "--layers squared_euclidean)",
        ),
        "max-dim": (int, "wider layers are projected to this many numbers (default: 256)"),
        "max-side": (int, "feature maps are averaged down to so many rows and columns, 0: as they are (default: 1)"),
        "bank-rows": (int, "training rows in the bank (default: 20000)"),
        "nonconformity": (str, "density, posterior or joint (default: joint; of --embeddings density)"),
        "parts": (
            str,
            f"of the joint form, joined by commas: {', '.join(PARTS)} (default: density, class_density and, where the "
            "output has one, energy)",
        ),
        "alpha": (float, "default false-alarm rate (default: 0.05)"),
        "precision": (str, "of the bank: float32, float16, int8 or auto (default: float32)"),
        "max-p-value-change": (float, "error budget of --precision and --condense (default: 1.0, none)"),
        "condense": (float, "training rows that a bank row stands for (default: 1.0); above 1 needs scikit-learn"),
        "seed": (int, "of split, projection and choice of bank rows (default: 0)"),
    }
    for name, (kind, text) in options.items():
        # None where it is not given: the defaults are the recipes', whose module need not be imported for --help.
        sub.add_argument(f"--{name}", type=kind, metavar=name[0].upper(), help=text)
    standardize = (
        "compare columns of rows that are a layer themselves in units of their deviations (default: where half of them "
        "vary 30 times less than another; vectors by squared_euclidean then)"
    )
    sub.add_argument("--standardize", action=argparse.BooleanOptionalAction, help=standardize)
    whiten = "compare representations in units of their spread within classes (default: yes)"
    sub.add_argument("--whiten", action=argparse.BooleanOptionalAction, help=whiten)


def fit(arguments: argparse.Namespace) -> None:
    """Build DIR/bundle and print what was found and chosen, a line each.

    Raises:
        SoftkinError: as `fit_onnx` and `fit_embeddings` do, and for options that do not go together.
    """
    from softkin.display import describe_bank, spelled
    from softkin_training.elapsed import elapsed
    from softkin_training.fit import BUNDLE, fit_embeddings, fit_onnx
    from softkin_training.fit_config import classifier_config, default_name, vectors_config
    from softkin_training.fit_source import TableColumns
    from softkin_training.foreign import read_model
    from softkin_training.leftovers import tidy
    from softkin_training.onnx_graphs import last_tensors, real_inputs

    a = arguments
    for name, value in {"--layers": a.layers, "--data": a.data}.items():
        if value and not a.onnx:
            raise InvalidInputError(name, "belongs to --onnx; leave it out")
        if a.onnx and not value:
            model = read_model(a.onnx)
            last = f": name hidden tensors; the last of the model are {listed(last_tensors(model))}"
            last += f"; of a model of trees the input, {listed([i.name for i in real_inputs(model.graph)])}"
            raise InvalidInputError(name, f"is missing; --onnx needs it{last if name == '--layers' else ''}")
    if a.embeddings and (a.output or a.output_kind != "auto"):
        raise InvalidInputError("--output", "belongs to --onnx; vectors have no output")
    options = ("version", "metric", "max_dim", "max_side", "bank_rows", "nonconformity", "alpha", "precision")
    more = ("max_p_value_change", "condense", "seed", "whiten", "standardize", "temperature_scale")
    given = {k: getattr(a, k) for k in (*options, *more) if getattr(a, k) is not None}
    if a.metric and "=" in a.metric:
        given["metric"] = {layer: metric for layer, _, metric in (x.rpartition("=") for x in names(a.metric))}
    given["name"] = a.name or default_name(a.onnx or a.embeddings)
    if a.parts:
        given["joint_parts"] = names(a.parts)
    for line in tidy(a.out / BUNDLE):
        print(line, file=sys.stderr)
    columns = TableColumns(inputs=tuple(filter(None, names(a.columns))), label=a.label_column, name=a.name_column)
    how = {"calibration": a.calibration, "calibration_share": a.calibration_share, "columns": columns}
    with elapsed("fitting"):
        if a.onnx:
            config = classifier_config(layers=names(a.layers), **given)
            fitted = fit_onnx(a.onnx, a.data, a.out, config, output=a.output, output_kind=a.output_kind, **how)
        else:
            fitted = fit_embeddings(a.embeddings, a.out, vectors_config(**given), **how)

    m, e = fitted.manifest, fitted.exposed
    for change in e.changes:
        print(f"model:       values unchanged by {change}")
    for layer in e.layers:
        print(f"layer:       {spelled(layer.name)}, {layer.width} numbers, reducer {layer.reducer}")
        if layer.name in e.is_output:
            print(
                "             holds the output itself, which says little of what a row looks like: name hidden layers"
            )
    if e.output:
        as_logits = ", their log serves as logits" if e.output_kind == "probabilities" else ""
        print(f"output:      {spelled(e.output)}, {e.num_classes} {e.output_kind}{as_logits}")
    if e.before_softmax:
        print(f"             what the softmax is made of says more: --output {spelled(e.before_softmax)}")
    if e.before_sigmoid:
        print(
            "             sigmoids rate each class by itself; what they are made of says more as logits:\n"
            f"             --output {spelled(e.before_sigmoid)}"
        )
    print(f"classes:     {spelled(', '.join(m.classes[:10]))}{', ...' if len(m.classes) > 10 else ''}")
    left_out = f"; {fitted.repeated_rows} repeated rows left out" if fitted.repeated_rows else ""
    left_out += f", {fitted.contradicting_rows} of another label than the first" if fitted.contradicting_rows else ""
    print(f"bank:        {describe_bank(m)}{left_out}")
    if fitted.repeated_share > m.default_alpha:
        print(
            "             the promise is of different rows: where they go on to repeat, false alarms may exceed alpha"
        )
    if fitted.deviations:
        least, most = fitted.deviations
        if any(layer.standardized for layer in e.layers):
            count = "compared in units of those,\n             all count alike (--no-standardize: as they are)"
        else:
            count = "those of small numbers\n             hardly count (--standardize: all alike)"
        print(f"             columns of the rows have deviations from {least:.2g} to {most:.2g}: {count}")
    if m.parts:
        print(f"score:       {m.nonconformity}: {', '.join(m.parts)}")
    source = f"from {a.calibration}" if a.calibration else f"({a.calibration_share:g} of x_train)"
    found = fitted.accuracy
    accuracy = "" if found is None else f"; the classifier's accuracy on them is {found.calibration:.1%}"
    aside = ", less the half that the joint form sets aside" if m.parts else ""
    print(f"calibration: {m.calibration_size} rows {source}{aside}{accuracy}")
    if found is not None:
        _print_doubts(found)
    if not a.calibration:
        print("             the promise holds if the model was not trained on these rows; else give --calibration FILE")
    for used in m.layers:
        if used.metric == "cosine" and used.temperature < SHAKY_TEMPERATURE:
            remedy = "take --whiten or --metric squared_euclidean," if a.embeddings else "name an earlier layer,"
            print(
                f"temperature: {used.temperature:.2g} for {spelled(used.name)}, whose nearest rows are so alike that "
                f"rounding moves\n             scores by percents with batch size and processor; {remedy} "
                "or raise --temperature-scale"
            )
    c = m.certificate
    print(
        f"{a.out / 'bundle'}: {m.name} {m.version}, {m.calibration_size} calibration rows; at alpha {c.alpha:g} "
        f"false alarms are at most {c.false_alarm_bound:.4g} at confidence {c.confidence:g}"
    )
    such_as = "max logit" if e.output_kind == "logits" else "max softmax"
    others = f"others of the same network, such as {such_as}," if e.output else "others of the same vectors"
    # With them the others have false alarms and shares caught too.
    rows = f"--calibration {shlex.quote(str(a.calibration))} " if a.calibration else ""
    print(
        f"next:        softkin-train evaluate {shlex.quote(str(a.out / 'bundle'))} --inliers FILE --outliers NAME=FILE "
        f"{rows}--out DIR\n             compares this score with {others} on rows of yours: one of them may find more"
    )


def _print_doubts(accuracy: FitAccuracy) -> None:
    """Whether rows and labels are those of the classifier, where its accuracy leaves a doubt."""
    if accuracy.reordered:
        order, reached = accuracy.reordered
        moved = [f"column {column} has label {label}" for column, label in enumerate(order) if column != label]
        others = ", ..." if len(moved) > MOVED_SHOWN else ""
        print(
            f"             labels and columns differ in their order: {', '.join(moved[:MOVED_SHOWN])}{others};\n"
            f"             give labels and class_names in that of the columns, where it is {reached:.1%}"
        )
    elif accuracy.calibration <= accuracy.largest_class < 1:
        print(
            f"             always naming the largest class would reach {accuracy.largest_class:.1%}: are labels the "
            "index\n             of the model's column, and rows scaled as in its training? Where not, outliers are "
            "missed"
        )
    if accuracy.bank_fares_worse and not accuracy.reordered:  # in their order the bank's rows may fare as well
        print(
            f"             on the bank's rows it is only {accuracy.bank:.1%}: are x_train and y_train what the "
            "classifier\n             was trained on, and prepared as there? Where not, outliers are missed"
        )

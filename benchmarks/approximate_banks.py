"""What banks of fewer bits and fewer rows cost and gain against the exact bank, on one trained network.

    softkin-train run fashion_mnist --out DIR --set data.path=fashion_mnist.npz --set data.outliers.MNIST=mnist.npz ...
    python benchmarks/approximate_banks.py fashion_mnist DIR --set data.path=fashion_mnist.npz ...

Writes approximate_banks_<cores>vcpu_<date>.json and .md.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from collections.abc import Sequence
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from machine import describe_machine
from result_files import write_results
from softkin import bundle as bundles
from softkin.detector import Detector
from softkin.scorer import Network, Scorer
from softkin.scorer_graph import representation_output
from softkin.scores import Scores
from workers import Call, Worker, interleave

EXACT, FLOAT16, INT8, CONDENSED_20 = "float32 (exact)", "float16", "int8", "condensed 20x"
VARIANTS = {
    EXACT: ("float32", 1.0),
    FLOAT16: ("float16", 1.0),
    INT8: ("int8", 1.0),
    "condensed 10x": ("float32", 10.0),
    CONDENSED_20: ("float32", 20.0),
    "condensed 50x": ("float32", 50.0),
    "condensed 20x, int8": ("int8", 20.0),
}
"""Precision of the bank's rows, and how many training rows each stands for."""
PROBES, AMONG = 512, 2048
"""Rows whose scores must not depend on their batch, and the size of the shuffled batch that they are scored in too."""
ROUNDS = {1: 62, 32: 31, 256: 31}  # by batch size
INLIERS = "inliers"
LIBRARIES = ("softkin", "numpy", "onnxruntime-gpu", "scikit-learn")


def main() -> None:
    """Build, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", metavar="RECIPE", help="the recipe of the run")
    parser.add_argument("run", type=Path, metavar="DIR", help="its directory, with model.onnx")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="SECTION.KEY=VALUE")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", metavar="DIR")
    arguments = parser.parse_args()
    started = time.perf_counter()
    results = measure(arguments.recipe, arguments.overrides, arguments.run)
    options = "".join(f" --set {k}={Path(v).name}" for k, _, v in (o.partition("=") for o in arguments.overrides))
    results["command"] = f"python benchmarks/approximate_banks.py {Path(arguments.recipe).name} DIR{options}"
    results["seconds"] = round(time.perf_counter() - started)
    write_results("approximate_banks", results, _markdown(results).splitlines(), arguments.out)
    print(*results["checks"], sep="\n")


def measure(recipe_name: str, overrides: list[str], run: Path) -> dict[str, Any]:
    """Everything that the result files say."""
    # torch stays out of the processes that time the scorers: they import this file as well.
    from softkin_training.config import load_recipe
    from softkin_training.data import load_dataset
    from softkin_training.run import BUNDLE, MODEL, build_step

    dataset = load_dataset(load_recipe(recipe_name, overrides))
    if not dataset.outliers:
        raise SystemExit("error: no outliers to measure on; name them: --set data.outliers.NAME=FILE.npz")
    sets, rng = {INLIERS: dataset.test.x, **dataset.outliers}, np.random.default_rng(0)
    each = len(dataset.test.x) // len(dataset.outliers)
    sample = {n: rng.permutation(len(x))[: None if n == INLIERS else each] for n, x in sets.items()}
    pool = np.concatenate([x[sample[n]] for n, x in sets.items()])
    found, exact = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        paths = {title: Path(folder) / str(i) / BUNDLE for i, title in enumerate(VARIANTS)}
        for title, path in paths.items():
            print(f"{title}: build and score", flush=True)
            path.parent.mkdir()
            (path.parent / MODEL).symlink_to((run / MODEL).resolve())
            keys = dict(zip(("precision", "condense"), VARIANTS[title], strict=True), max_p_value_change=1.0)
            recipe = load_recipe(recipe_name, [*overrides, *(f"detector.{k}={v}" for k, v in keys.items())])
            manifest = build_step(recipe, dataclasses.replace(dataset, outliers={}), path.parent)
            detector = Detector.load(path, device="cpu")
            scores = {n: detector.score(x) for n, x in sets.items()}
            exact = exact or scores
            found[title] = {"bank_rows": manifest.bank_size, "bank_mb": (path / bundles.BANK).stat().st_size / 1e6}
            found[title] |= compare(scores, exact, sample) | {"batch_difference": batch_difference(detector, pool)}
        for title, timings in times(paths, run / MODEL, dataset.test.x).items():
            found[title] |= timings
    return {
        "machine": describe_machine("cpu"),
        "alpha": manifest.default_alpha,
        "rows": {n: len(x) for n, x in sets.items()} | {"calibration": manifest.calibration_size},
        "sample": {n: len(rows) for n, rows in sample.items()},
        "variants": found,
        "checks": checks(found),
    }


def compare(scores: dict[str, Scores], exact: dict[str, Scores], sample: dict[str, Any]) -> dict[str, Any]:
    """Detection on all rows, and what differs from the exact bank on the sample: row numbers by set."""
    from softkin_training.detection_metrics import auroc

    def aurocs(found: dict[str, Scores]) -> dict[str, float]:
        inliers = found[INLIERS].outlier_score
        each = {n: auroc(inliers, s.outlier_score) for n, s in found.items() if n != INLIERS}
        return each | {"mean": float(np.mean(list(each.values())))}

    before, after = aurocs(exact), aurocs(scores)
    changed = np.concatenate([(scores[n].is_outlier != exact[n].is_outlier)[rows] for n, rows in sample.items()])
    p = np.concatenate([np.abs(scores[n].p_value - exact[n].p_value)[rows] for n, rows in sample.items()])
    return {
        "auroc": after,
        "auroc_change": {n: after[n] - before[n] for n in after},
        "flagged": {n: float(s.is_outlier.mean()) for n, s in scores.items()},
        "verdicts_changed": int(changed.sum()),
        "verdict_changes": float(changed.mean()),
        "max_p_value_change": float(p.max()),
        "mean_p_value_change": float(p.mean()),
    }


def batch_difference(detector: Detector, pool: NDArray[np.generic]) -> float:
    """Largest relative difference of the probes' scores, alone and shuffled among others, from those together."""
    rng = np.random.default_rng(0)
    rows = rng.permutation(len(pool))[:AMONG]
    probes, order = pool[rows[:PROBES]], rng.permutation(len(rows))
    together = detector.score(probes).outlier_score
    alone = np.concatenate([detector.score(row[None]).outlier_score for row in probes])
    among = detector.score(pool[rows[order]]).outlier_score[np.argsort(order)[: len(probes)]]
    return max(float((np.abs(s - together) / np.abs(together)).max()) for s in (alone, among))


def scorer_alone(*, bundle: str) -> Call:
    """A bundle's bank behind a network that only hands on representations, all layers side by side in one input."""
    loaded = bundles.read_bundle(bundle)
    widths = {representation_output(layer.name): layer.dim for layer in loaded.manifest.layers}
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Split", ["x", "widths"], list(widths), axis=1)],
        "identity",
        [value("x", TensorProto.FLOAT, ["batch", sum(widths.values())])],
        [value(name, TensorProto.FLOAT, ["batch", width]) for name, width in widths.items()],
        [helper.make_tensor("widths", TensorProto.INT64, [len(widths)], list(widths.values()))],
    )
    with tempfile.NamedTemporaryFile(suffix=".onnx") as file:
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), file.name)
        return Scorer(Path(file.name), loaded.bank, loaded.path / bundles.BANK, device="cpu").run


def times(paths: dict[str, Path], model: Path, inliers: NDArray[np.generic]) -> dict[str, dict[str, Any]]:
    """Per variant and batch size: median milliseconds, and median over rounds of the exact bank's time over it."""
    outputs = Network(model, device="cpu").run(inliers[: max(ROUNDS)])
    layers = bundles.read_manifest(paths[EXACT]).layers
    z = np.concatenate([outputs[representation_output(layer.name)] for layer in layers], axis=1)
    found: dict[str, dict[str, Any]] = {title: {"milliseconds": {}, "speed_up": {}} for title in paths}
    with tempfile.TemporaryDirectory() as folder:
        queries = {batch: f"{folder}/{batch}.npy" for batch in ROUNDS}
        for batch, file in queries.items():
            np.save(file, z[:batch])
        workers = [Worker(title, scorer_alone, {"bundle": str(path)}, queries) for title, path in paths.items()]
        if failed := [f"{w.name}: {w.error}" for w in workers if w.error]:
            raise SystemExit("\n".join(failed))
        for batch, rounds in ROUNDS.items():
            seconds = {title: np.array(s) for title, s in interleave(workers, batch, rounds).items()}
            for title, s in seconds.items():
                found[title]["milliseconds"][str(batch)] = 1e3 * float(np.median(s))
                found[title]["speed_up"][str(batch)] = float(np.median(seconds[EXACT] / s))
        for worker in workers:
            worker.close()
    return found


def checks(found: dict[str, dict[str, Any]]) -> list[str]:
    """What is asked of float16, int8 and the bank condensed 20 times, each with its figure."""
    lines = []
    for bank in (FLOAT16, INT8):
        share, apart = found[bank]["verdict_changes"], found[bank]["batch_difference"]
        auroc = max((change for n, change in found[bank]["auroc_change"].items() if n != "mean"), key=abs)
        lines.append((share < 0.001, f"{bank}: fewer than 0.1 % of verdicts change: {share:.3%}"))
        lines.append((abs(auroc) <= 0.0005, f"{bank}: AUROC within .0005 for every outlier set: {auroc:+.6f}"))
        lines.append((apart <= 1e-6, f"{bank}: scores independent of the batch to 1e-6: {apart:.1e}"))
    auroc, speed_up = found[CONDENSED_20]["auroc_change"]["mean"], found[CONDENSED_20]["speed_up"]["256"]
    lines.append((auroc >= -0.002, f"{CONDENSED_20}: mean AUROC at most .002 below exact: {auroc:+.5f}"))
    lines.append((speed_up >= 10, f"{CONDENSED_20}: at least 10 times faster at batch 256: {speed_up:.2f} times"))
    return [f"{'pass' if passed else 'FAIL'}  {line}" for passed, line in lines]


def _table(found: dict[str, Any], columns: Sequence[tuple[str, str, str]]) -> str:
    """A line for each bank; a column is its title, where its figure stands (`key` or `key/key`), and the format."""
    lines = [["bank", *[title for title, _, _ in columns]], ["---"] * (len(columns) + 1)]
    lines += [[n, *[format(reduce(getitem, key.split("/"), v), f) for _, key, f in columns]] for n, v in found.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _markdown(results: dict[str, Any]) -> str:
    m, found, sample, a = results["machine"], results["variants"], results["sample"], f"{results['alpha']:g}"
    versions = ", ".join(f"{k} {m['versions'][k]}" for k in LIBRARIES)
    rows, sampled = (", ".join(f"{n:,} {name}" for name, n in results[k].items()) for k in ("rows", "sample"))
    total, probes = sum(sample.values()), min(PROBES, sum(sample.values()))
    detection, timed = [("rows", "bank_rows", ","), ("MB", "bank_mb", ".2f")], []
    for n in found[EXACT]["auroc"]:
        detection += [(f"AUROC {n}", f"auroc/{n}", ".4f"), ("change", f"auroc_change/{n}", "+.5f")]
    detection += [("false alarms" if n == INLIERS else f"caught {n}", f"flagged/{n}", ".4f") for n in sample]
    changes = [("verdicts changed", "verdicts_changed", "d"), ("share", "verdict_changes", ".3%")]
    changes += [("largest p-value change", "max_p_value_change", ".4f"), ("mean", "mean_p_value_change", ".5f")]
    changes += [("batch", "batch_difference", ".1e")]
    for b in ROUNDS:
        timed += [(f"batch {b}: ms", f"milliseconds/{b}", ".3f"), ("speed-up", f"speed_up/{b}", ".2f")]
    return f"""# Approximate banks, {m["date"]}

{m["processor"]}, {m["cores"]} cores, Python {m["python"]}, {versions}.
Rows: {rows}.
One network; every bank has its own calibration. alpha = {a}; false alarms and caught: share with p <= {a}.

{_table(found, detection)}

Against the exact bank, on {total:,} rows ({sampled}). Batch: largest relative difference of the
scores of {probes} rows, each alone and shuffled among {min(AMONG, total) - probes:,} others, from those together.

{_table(found, changes)}

Time of the scorer, representations given: one process per bank, interleaved rounds, medians. Speed-up: median over
rounds of the time of the exact bank over that of this bank in the same round.

{_table(found, timed)}

{chr(10).join(f"- {line}" for line in results["checks"])}

`{results["command"]}`: {results["seconds"] / 60:.1f} minutes.
"""


if __name__ == "__main__":
    main()

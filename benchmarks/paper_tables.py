"""The numbers of the evidence as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

TITLES = {"fashion_mnist": "Fashion-MNIST", "mnist": "MNIST", "cifar10": "CIFAR-10"}
MEASURES = {
    "far_auroc": "far AUROC",
    "far_caught": "far caught",
    "near_auroc": "near AUROC",
    "near_caught": "near caught",
    "false_alarms": "false alarms",
}


def markdown(found: dict[str, Any]) -> Iterator[str]:
    """Lines: of each data set the networks, the detectors, the best of others, and what probabilities are worth."""
    return report("Entangled networks and their detectors, over seeds", found, _recipe)


def report(title: str, found: dict[str, Any], section: Callable[[dict[str, Any]], Iterable[str]]) -> Iterator[str]:
    """Lines of a comparison of networks over seeds.

    Args:
        title: of the page.
        found: machine, seeds, and by recipe what was found.
        section: the lines of a data set.
    """
    m = found["machine"]
    yield f"# {title}"
    yield ""
    yield f"{m['processor']}, {m['cores']} cores, Python {m['python']}, torch {m['versions']['torch']}, {m['date']}."
    if m["gpu"]:
        yield f"GPU: {m['gpu']}."
    yield "Mean +- standard deviation over seeds; differences to the first network are paired by seed, p of a two-sided"
    yield "paired t-test. Caught: share of outliers with p-value <= 0.05. Near: classes held out, mean over pairs."
    for recipe, data_set in TITLES.items():
        if recipe in found:
            yield from ("", f"## {data_set}", "")
            far, near = (", ".join(map(str, found[k][recipe])) for k in ("seeds", "near_seeds"))
            yield from (f"Seeds {far}; of held-out classes {near or 'none'}.", "")
            yield from section(found[recipe])


def _recipe(f: dict[str, Any]) -> Iterator[str]:
    yield "| network | seeds | accuracy | difference |"
    yield "|---|---|---|---|"
    for i, (name, a) in enumerate(f["claims"]["accuracy"].items()):
        seeds = f["accuracy"][name]["seeds"]
        yield f"| {name} | {seeds} | {_value(a)} | {_difference(a['paired']) if i else ''} |"
    measures = {m: t for m, t in MEASURES.items() if any(m in row for row in f["rows"])}
    yield ""
    yield "| score | network | " + " | ".join(measures.values()) + " | difference in far | difference in near |"
    yield "|---" * (4 + len(measures)) + "|"
    for row in sorted(f["rows"], key=lambda r: not r["score"].startswith("softkin")):
        cells = [_value(row[m]) if m in row else "" for m in measures]
        paired = row.get("paired", {})
        cells += [_difference(paired.get("far_auroc")), _difference(paired.get("near_auroc"))]
        yield f"| {row['score']} | {row['train']} | " + " | ".join(cells) + " |"
    yield from (
        "",
        "Against the best score of others on the same networks, chosen for each measure with hindsight:",
        "",
    )
    yield "| network | measure | best of others | its mean | softkin | difference |"
    yield "|---|---|---|---|---|---|"
    for network, by_measure in f["claims"]["best"].items():
        for measure, b in by_measure.items():
            for detect, ours in b["softkin"].items():
                yield (
                    f"| {network} | {MEASURES[measure]} | {b['best']} | {b['mean']:.4f} | {detect}: {_value(ours)} "
                    f"| {_difference(ours['paired'])} |"
                )
    yield from _sets(f["claims"]["sets"])
    yield from (
        "",
        "| what probabilities and credibility are worth | network | value | difference |",
        "|---|---|---|---|",
    )
    for name, by_network in f["claims"]["calibration"].items():
        for i, (network, v) in enumerate(by_network.items()):
            yield f"| {name} | {network} | {_value(v)} | {_difference(v['paired']) if i else ''} |"
    yield from ("", "Entanglement over chance: untrained, then after each epoch, mean over seeds.", "")
    yield "| network | layer | ratio |"
    yield "|---|---|---|"
    for network, layers in f["claims"]["entanglement"].items():
        for layer, runs in layers.items():
            means = [sum(values) / len(values) for values in zip(*runs, strict=True)]
            yield f"| {network} | {layer} | {', '.join(f'{x:.4f}' for x in means)} |"


def _sets(by_network: dict[str, dict[str, dict[str, float]]]) -> Iterator[str]:
    names = list(next(iter(next(iter(by_network.values())).values())))
    yield from ("", "Mean AUROC by outlier set:", "", "| score | network | " + " | ".join(names) + " |")
    yield "|---" * (2 + len(names)) + "|"
    for network, scores in by_network.items():
        for score, sets in sorted(scores.items(), key=lambda item: not item[0].startswith("softkin")):
            yield f"| {score} | {network} | " + " | ".join(f"{sets[n]:.4f}" for n in names) + " |"


def _value(v: dict[str, Any]) -> str:
    return f"{v['mean']:.4f} +- {v['sd']:.4f}"


def _difference(paired: dict[str, Any] | None) -> str:
    if paired is None:
        return ""
    p = "" if paired["p"] is None else f" (p = {paired['p']:.2g})"
    return f"{paired['difference']:+.4f}{p}"

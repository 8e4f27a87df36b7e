"""The pictures of docs/guarantees.md."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

OURS, OURS_TOO, OTHER, OTHER_TOO, PLAIN = "#0b5cad", "#1c9e77", "#d1495b", "#e09f3e", "#555555"


def plot_all(found: dict[str, Any], folder: Path) -> None:
    """One PNG for each guarantee."""
    for plot in (false_alarms, certificates, classes, batches, drift, limits):
        plot(found, folder / f"guarantees_{plot.__name__}.png")


@contextmanager
def _panels(file: Path, number: int) -> Iterator[Any]:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, number, figsize=(4.8 * number, 3.9), layout="constrained", squeeze=False)
    yield panels[0]
    for axes in panels[0]:
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[1]:
            axes.legend(frameon=False, fontsize=9)
    figure.savefig(file, dpi=120)
    plt.close(figure)


def false_alarms(found: dict[str, Any], file: Path) -> None:
    """Realised over chosen rate."""
    f = found["false_alarms"]
    styles = {
        "deterministic": {"color": OURS, "marker": "o"},
        "smoothed": {"color": OURS_TOO, "marker": "s"},
        "DkNN as published": {"color": OTHER, "marker": "^"},
        "ties left out": {"color": OTHER_TOO, "marker": "v"},
    }
    with _panels(file, 2) as panels:
        for axes, (kind, rates) in zip(panels, f["rates"].items(), strict=True):
            alphas = np.array(f["alphas"])
            noise = 2 * np.sqrt((1 - alphas) / (alphas * f["splits"]))
            axes.axhline(1, color=PLAIN, linewidth=1)
            axes.fill_between(alphas, 1 - noise, 1 + noise, color=PLAIN, alpha=0.15, label="chance, 2 standard errors")
            for name, style in styles.items():
                axes.plot(alphas, np.array(rates[name]) / alphas, label=name, markersize=5, linewidth=1.2, **style)
            axes.set(
                xscale="log", title=kind, xlabel="alpha chosen", ylabel="false alarms realised / alpha", ylim=(0, 1.6)
            )


def certificates(found: dict[str, Any], file: Path) -> None:
    """Rates of single calibration sets, and the bound by n."""
    c = found["certificates"]
    with _panels(file, 2) as (left, right):
        bins = np.linspace(0.015, 0.085, 50)
        for name, color in {"marginal": OURS, "certified": OURS_TOO}.items():
            left.hist(c["rates"][name], bins, color=color, alpha=0.65, label=name)
        left.axvline(c["alpha"], color=PLAIN, label=f"alpha = {c['alpha']}")
        left.axvline(c["bound"], color=OURS, linestyle="--", label=f"certified for marginal: {c['bound']:.4f}")
        left.set(
            xlabel=f"false-alarm rate of one calibration set, n = {c['n']}",
            ylabel=f"of {c['draws']} sets",
            ylim=(0, 175),
        )
        for key, color in {"bound_at_0.05": OURS, "bound_at_0.01": OURS_TOO, "smallest_certified": OTHER}.items():
            label = key.replace("_", " ").replace("at", "at alpha =")
            right.loglog(c["sizes"], [row[key] for row in c["by_size"]], color=color, marker="o", label=label)
        for alpha, color in {0.05: OURS, 0.01: OURS_TOO}.items():
            right.axhline(alpha, color=color, linewidth=0.8, linestyle=":")
        right.set(xlabel="calibration rows", ylabel=f"rate, at confidence {c['confidence']}")


def classes(found: dict[str, Any], file: Path) -> None:
    """Rates by predicted class."""
    c = found["classes"]
    x = np.arange(len(c["marginal"]))
    with _panels(file, 1) as (axes,):
        axes.bar(x - 0.2, c["marginal"], 0.4, color=OTHER_TOO, label="marginal")
        axes.bar(x + 0.2, c["class_conditional"], 0.4, color=OURS, label="class_conditional")
        axes.axhline(c["alpha"], color=PLAIN, label=f"alpha = {c['alpha']}")
        axes.set(xlabel="predicted class (Fashion-MNIST)", ylabel="false alarms realised", xticks=x)


def batches(found: dict[str, Any], file: Path) -> None:
    """False discoveries and finds by share of outliers."""
    b = found["batches"]
    with _panels(file, 2) as (left, right):
        left.plot(b["shares"], [b["rate"] * (1 - s) for s in b["shares"]], color=PLAIN, label="rate x share of inliers")
        for (name, values), color in zip(b["sets"].items(), (OURS, OURS_TOO), strict=True):
            left.plot(b["shares"], values["false_discovery_rate"], color=color, marker="o", label=name)
            right.plot(b["shares"], values["found"], color=color, marker="o", label=name)
        left.axhline(b["rate"], color=PLAIN, linestyle=":", label=f"rate asked for, {b['rate']}")
        left.set(ylabel="inliers among the selected", ylim=(0, 0.14))
        right.set(ylabel="outliers selected", ylim=(0, 1.02))
        for axes in (left, right):
            axes.set(xscale="log", xlabel="share of outliers in the batch")
            axes.set_xticks(b["shares"], [f"{s:.0%}" for s in b["shares"]])
            axes.minorticks_off()


def drift(found: dict[str, Any], file: Path) -> None:
    """False alarms over time, and delays."""
    a, d = found["drift_alarms"], found["drift_delays"]
    with _panels(file, 2) as (left, right):
        steps = np.unique(np.geomspace(1, a["steps"], 300).astype(int))
        for (n, rows), line in zip(a["n"].items(), ("-", "--"), strict=True):
            for key, (color, label) in {
                "watch": (OURS, "drift watch"),
                "fixed": (OTHER, "fixed calibration set"),
            }.items():
                at = np.array([r or np.inf for r in rows[key]])
                share = [(at <= s).mean() for s in steps]
                left.plot(steps, share, color=color, linestyle=line, label=f"{label}, n = {n}")
        left.axhline(a["level"], color=PLAIN, linestyle=":", label=f"level {a['level']}")
        left.set(xscale="log", xlabel="rows served, nothing drifts", ylabel="streams that have alarmed")
        for (clean, rows), color in zip(d["delays"].items(), (OURS, OURS_TOO), strict=True):
            low, middle, high = (np.array([np.nan if r[i] is None else r[i] for r in rows], float) for i in range(3))
            right.fill_between(d["shares"], low, high, color=color, alpha=0.15)
            right.plot(d["shares"], middle, color=color, marker="o", label=f"after {clean} clean rows")
        right.set(xscale="log", yscale="log", xlabel="share of notMNIST in the stream", ylabel="rows until the alarm")
        right.set_xticks(d["shares"], [f"{s:.0%}" for s in d["shares"]])
        right.minorticks_off()


def limits(found: dict[str, Any], file: Path) -> None:
    """Misses, and dependent rows."""
    x = found["limits"]
    with _panels(file, 2) as (left, right):
        for (name, caught), color in zip(x["caught"].items(), (OURS, OURS_TOO), strict=True):
            left.plot(x["alphas"], [1 - c for c in caught], color=color, marker="o", label=name)
        left.set(xscale="log", xlabel="alpha chosen", ylabel="outliers missed", ylim=(0, None))
        right.bar([str(r) for r in x["repeats"]], x["alarmed"], color=OTHER)
        right.axhline(0.05, color=PLAIN, linestyle=":", label="level 0.05")
        right.set(xlabel="times that each inlier is sent in a row", ylabel="streams that alarm")

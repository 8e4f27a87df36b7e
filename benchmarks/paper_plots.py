"""The pictures of docs/paper.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

TITLES = {"fashion_mnist": "Fashion-MNIST", "mnist": "MNIST"}
COLOURS = ("#3b6ea8", "#c8553d", "#5b8c5a")


def plot_all(found: dict[str, Any], folder: Path) -> None:
    """Write paper_entanglement.png and paper_scores.png into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    _entanglement(found, folder / "paper_entanglement.png")
    _scores(found["fashion_mnist"], folder / "paper_scores.png")


def _entanglement(found: dict[str, Any], path: Path) -> None:
    recipes = [r for r in TITLES if r in found]
    networks = list(found[recipes[0]]["claims"]["entanglement"])
    figure, grid = plt.subplots(
        len(recipes), len(networks), figsize=(9, 3.1 * len(recipes)), sharey="row", squeeze=False, layout="constrained"
    )
    for axes, recipe in zip(grid, recipes, strict=True):
        for ax, network in zip(axes, networks, strict=True):
            for (layer, runs), colour in zip(
                found[recipe]["claims"]["entanglement"][network].items(), COLOURS, strict=False
            ):
                values = np.array(runs)
                # Each run against its own start: random weights of different seeds start apart, which hides the shape.
                relative = values / values[:, :1]
                x = np.arange(values.shape[1])
                for run in relative:
                    ax.plot(x, run, color=colour, alpha=0.25, linewidth=0.8)
                ax.plot(x, relative.mean(axis=0), color=colour, marker="o", markersize=3, label=layer)
            ax.set_title(f"{TITLES[recipe]}, {network}", fontsize=10)
            ax.set_xticks(x)
            ax.grid(alpha=0.3)
        axes[0].set_ylabel("entanglement,\nuntrained network = 1")
    for ax in grid[-1]:
        ax.set_xlabel("epoch")
    grid[0, 0].legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _scores(f: dict[str, Any], path: Path) -> None:
    network = f["baseline"]
    rows = [r for r in f["rows"] if r["train"] == network and "near_auroc" in r and "far_auroc" in r]
    rows.sort(key=lambda r: r["near_auroc"]["mean"])
    figure, axes = plt.subplots(1, 2, figsize=(9, 0.28 * len(rows) + 1), sharey=True, layout="constrained")
    for ax, measure, title in zip(
        axes, ("near_auroc", "far_auroc"), ("near: classes held out", "far: other data"), strict=True
    ):
        for i, row in enumerate(rows):
            v = row[measure]
            colour = COLOURS[1] if row["score"].startswith("softkin") else COLOURS[0]
            ax.errorbar(v["mean"], i, xerr=v["sd"], fmt="o", color=colour, markersize=4, capsize=2)
        ax.set_title(f"AUROC, {title}", fontsize=10)
        ax.grid(alpha=0.3)
    axes[0].set_yticks(range(len(rows)), [r["score"] for r in rows], fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)

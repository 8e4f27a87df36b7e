"""The picture of time against bank size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from catalogue import CEILING, FLAT, FLOAT16, INT8, SOFTKIN

STYLES = {
    SOFTKIN: {"color": "#0b5cad", "marker": "o", "linewidth": 2.2},
    INT8: {"color": "#1c9e77", "marker": "s", "linewidth": 2.2},
    FLOAT16: {"color": "#1c9e77", "marker": "s", "linewidth": 2.2},
    CEILING: {"color": "#555555", "marker": "x", "linestyle": "--"},
    FLAT: {"color": "#d1495b", "marker": "^"},
}


def plot_line(cases: list[dict[str, Any]], file: Path) -> None:
    """Milliseconds against rows, both logarithmic, one panel for each batch size."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    batches = list(cases[0]["timings"])
    figure, panels = plt.subplots(1, len(batches), figsize=(4.2 * len(batches), 4.6), layout="constrained", sharex=True)
    for axes, batch in zip(panels, batches, strict=True):
        for name in cases[0]["timings"][batch]:
            found = [
                (c["rows"], c["timings"][batch][name]["milliseconds"]) for c in cases if name in c["timings"][batch]
            ]
            axes.loglog(*zip(*found, strict=True), label=name, markersize=6, **STYLES.get(name, {}))
        axes.set_title(f"batch {batch}", fontsize=12)
        axes.set_xlabel("bank rows", fontsize=11)
        axes.grid(alpha=0.3, which="major")
        axes.set_xticks([c["rows"] for c in cases], [_short(c["rows"]) for c in cases])
        axes.minorticks_off()
        axes.tick_params(labelsize=10)
    panels[0].set_ylabel("milliseconds per call", fontsize=11)
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=11
    )
    figure.savefig(file, dpi=120)
    plt.close(figure)


def _short(n: int) -> str:
    return f"{n / 1e6:g}M" if n >= 1_000_000 else f"{n / 1e3:g}k"

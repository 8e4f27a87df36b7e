"""The picture of entanglement over training."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from softkin.errors import InvalidInputError
from softkin_training.history import GO_ON, History
from softkin_training.report_files import written_together

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURE, ENDINGS = "entanglement", ("svg", "png")
LINEAR_BELOW = 0.01
"""The scale is linear up to this share of chance, so that 0 has a place."""


def draw_entanglement(history: History, out: Path) -> None:
    """Write `entanglement.svg` and `.png`: entanglement over chance of every layer over epochs.

    Args:
        history: of a run with a probe; without one nothing is written, and pictures of a run before are removed.
        out: folder, made if missing.

    Raises:
        InvalidInputError: the folder cannot be written; pictures that were there stay.
    """
    probed = [epoch for epoch in history if epoch.get("probe")]
    try:
        if probed:
            _write(probed, out)
        elif out.is_dir():
            for ending in ENDINGS:
                (out / f"{PICTURE}.{ending}").unlink(missing_ok=True)
    except OSError as e:
        raise InvalidInputError(
            "out_dir", f"cannot write to {out} ({e.strerror}); the training is kept: {GO_ON}"
        ) from None


def _write(probed: History, out: Path) -> None:
    import matplotlib  # takes a second

    # Layers may be called anything: a dollar sign is no formula.
    with matplotlib.rc_context({"text.parse_math": False}):
        figure = drawn(probed)
    out.mkdir(parents=True, exist_ok=True)
    with written_together([out / f"{PICTURE}.{ending}" for ending in ENDINGS]) as temporaries:
        for ending, temporary in zip(ENDINGS, temporaries, strict=True):
            metadata = {"Date": None} if ending == "svg" else None  # equal runs leave equal files
            with matplotlib.rc_context({"svg.hashsalt": PICTURE}), warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Glyph .* missing from")
                figure.savefig(temporary, format=ending, dpi=120, metadata=metadata)


def drawn(probed: History) -> Figure:
    """The picture of epochs that have a probe. Its scale is logarithmic: many layers end at hundredths of chance."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.add_subplot()
    before = [(0, probed[0]["probe_untrained"])] if "probe_untrained" in probed[0] else []
    points = before + [(epoch["epoch"], epoch["probe"]) for epoch in probed]
    highest = 1.0
    for layer in probed[0]["probe"]:
        ratios = [(number, layers[layer]["ratio"]) for number, layers in points]
        highest = max([highest, *(r for _, r in ratios if r is not None)])
        # A leading underscore would hide the entry from the legend.
        label = f" {layer}" if layer.startswith("_") else layer
        axes.plot([n for n, _ in ratios], [r if r is not None else math.nan for _, r in ratios], "o-", label=label)
    axes.set_yscale("symlog", linthresh=LINEAR_BELOW, linscale=0.5)
    axes.set(xlabel="epoch (0: before training)", ylabel="entanglement (1: chance)", ylim=(0, 1.2 * highest))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(title="hidden layer, input to output")
    return figure

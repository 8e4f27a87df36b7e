"""Matplotlib figures as SVG text that lives inside an HTML page: in the page's colours, in light and dark alike."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, MUTED, GRID, PAPER = "#010101", "#010102", "#010103", "#010104"
SERIES = ("#010110", "#010111", "#010112", "#010113", "#010114", "#010115")
"""Stand-ins: each becomes a CSS variable of the page, so that one picture fits both colour schemes."""
VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--grid", PAPER: "--paper"} | {
    c: f"--series-{i}" for i, c in enumerate(SERIES)
}
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)))
"""Beside the colours, for those who do not see them apart."""

WIDTH, HEIGHT = 4.6, 3.2
"""In inches: the page scales pictures, so only their ratio and the size of their text beside them counts."""

STYLE: dict[Any, Any] = {
    "axes.edgecolor": MUTED,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.labelsize": 9,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "figure.facecolor": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "legend.fontsize": 8,
    "legend.edgecolor": "none",
    "legend.facecolor": PAPER,
    "legend.framealpha": 0.8,
    "savefig.facecolor": "none",
    "svg.fonttype": "none",
    "text.color": INK,
    "text.parse_math": False,  # names come from users; a dollar sign is no formula
    "text.usetex": False,
    "xtick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.color": MUTED,
    "ytick.labelcolor": INK,
}


class Picture:
    """A picture while it is drawn, and its SVG afterwards.

    Attributes:
        axes: to draw on.
        svg: an `<svg>` element without ids that could clash with those of other pictures; set when drawing ends.
    """

    def __init__(self, figure: Figure, axes: Axes) -> None:
        self._figure, self.axes, self.svg = figure, axes, ""

    def finish(self, name: str, label: str) -> None:
        """Set `svg`.

        Args:
            name: unique in the page: a letter, then letters and digits.
            label: what the picture shows, for those who do not see it.
        """
        buffer = io.BytesIO()
        with warnings.catch_warnings():
            # The page's own fonts write the text; that Matplotlib's lack a letter of a name only blurs its measures.
            warnings.filterwarnings("ignore", message="Glyph .* missing from")
            self._figure.savefig(buffer, format="svg")
        self.svg = _embeddable(buffer.getvalue().decode("utf-8"), name, label)


@contextmanager
def picture(name: str, label: str, *, lines_below: int = 2) -> Iterator[Picture]:
    """Draw one picture; see `Picture.finish`.

    Args:
        name: unique in the page: a letter, then letters and digits.
        label: what the picture shows, for those who do not see it.
        lines_below: lines of text below the horizontal axis.
    """
    with mpl.rc_context({**STYLE, "svg.hashsalt": name}):
        # Fixed margins: a layout engine would draw everything twice to measure it.
        figure = Figure(figsize=(WIDTH, HEIGHT))
        left, right, below, above = 0.62 / WIDTH, 0.22 / WIDTH, (0.26 + 0.15 * lines_below) / HEIGHT, 0.12 / HEIGHT
        drawn = Picture(figure, figure.add_axes((left, below, 1 - left - right, 1 - below - above)))
        drawn.axes.set_axisbelow(True)
        yield drawn
        drawn.finish(name, label)


def _embeddable(svg: str, name: str, label: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # Its style sheet would rule the whole page.
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = svg.replace("url(#", f"url(#{name}-").replace('href="#', f'href="#{name}-')
    for color, variable in VARIABLES.items():
        svg = svg.replace(color, f"var({variable})")
    head, rest = svg.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', head)
    assert box is not None
    return f'<svg xmlns="http://www.w3.org/2000/svg" {box[0]} role="img" aria-label="{escape(label)}">{rest.strip()}'

"""Reads a picture of a report as people do: the legend says which line is which, the axes' ticks what it says."""

from __future__ import annotations

import re
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np

SVG = "{http://www.w3.org/2000/svg}"
HREF = "{http://www.w3.org/1999/xlink}href"


class Drawn:
    """One picture.

    Args:
        svg: an `<svg>` element as `report_figures` makes it.
        log: which of its axes are logarithmic: "", "x" or "xy".
    """

    def __init__(self, svg: str, log: str = "") -> None:
        root = ElementTree.fromstring(svg.replace("<svg ", '<svg xmlns:xlink="http://www.w3.org/1999/xlink" ', 1))
        self._axes = next(g for g in root.iter(f"{SVG}g") if g.get("id", "").endswith("-axes_1"))
        self.title = root.get("aria-label")
        parts = {g.get("id", "").split("-", 1)[-1]: g for g in self._axes}
        self.ticks, self.labels, self._scales = {}, {}, {}
        for axis, key in (("x", "matplotlib.axis_1"), ("y", "matplotlib.axis_2")):
            self.ticks[axis] = dict(_tick(g, axis) for g in parts[key] if "tick_" in g.get("id", "") and _text(g))
            self.labels[axis] = "".join(_text(g) for g in parts[key] if "tick_" not in g.get("id", ""))
            self._scales[axis] = _scale(self.ticks[axis], logarithmic=axis in log)
        self._lines = [line for g in self._axes if "legend" not in g.get("id", "") for line in _lines(g)]
        box = _points(next(g for k, g in parts.items() if k == "patch_2")[0].get("d"))
        self.limits = {a: self._read(a, np.sort(box[:, i])[[0, -1]][:: 1 - 2 * i]) for i, a in enumerate("xy")}
        self.legend: dict[str, str] = {}
        """Style of each line by its name."""
        style = ""
        for g in parts.get("legend_1", ()):
            if text := _text(g):
                self.legend[text] = style
            elif lines := _lines(g, clipped=False):
                style = lines[0][0]
            elif (mark := next(g.iter(f"{SVG}use"), None)) is not None:
                style = re.search(r"fill: (\S+?);", mark.get("style"))[1]
        self.columns = len({round(float(g[0].get("x"))) for g in parts.get("legend_1", ()) if _text(g)})
        """Of the legend."""
        frame = next((path for g in parts.get("legend_1", ()) for path in g.findall(f"{SVG}path")), None)
        self.legend_box = None if frame is None else np.sort(self.read(_points(frame.get("d"))), axis=0)[[0, -1]]
        """`[2, 2]` corners of the legend's frame, in the units of the axes."""

    def styles(self) -> list[str]:
        """Colour and dashes of each line, in the order of drawing."""
        return [style for style, _, _ in self._lines]

    def line(self, name: str) -> np.ndarray:
        """`[n, 2]` points of the line that the legend calls so, in the units of the axes."""
        return self.styled(self.legend[name])

    def styled(self, style: str) -> np.ndarray:
        """`[n, 2]` points of the only line of a style."""
        (found,) = (points for s, _, points in self._lines if s == style)
        return self.read(found)

    def width(self, name: str) -> float:
        """Of a line's stroke."""
        return next(w for s, w, _ in self._lines if s == self.legend[name])

    def dots(self, name: str) -> np.ndarray:
        """`[n, 2]` marks of the colour that the legend gives a name."""
        color = self.legend[name].split()[0]
        groups = (g for g in self._axes if "legend" not in g.get("id", "") and "axis" not in g.get("id", ""))
        uses = [u for g in groups for u in g.iter(f"{SVG}use") if f"fill: {color}" in u.get("style")]
        at = [[float(u.get("x")), float(u.get("y"))] for u in uses if u.get("x") != "0"]  # 0: of an area
        return self.read(np.array(at).reshape(-1, 2))

    def filled(self, color: str) -> np.ndarray:
        """`[n, 2]` outline of the only area of a colour that lets others be seen through it."""
        (found,) = (points for g in self._axes for points in _areas(g, color))
        return self.read(found)

    def read(self, points: np.ndarray) -> np.ndarray:
        """From points of the page to units of the axes."""
        return np.stack([self._read(a, points[:, i]) for i, a in enumerate("xy")], axis=1)

    def _read(self, axis: str, at: np.ndarray) -> np.ndarray:
        (first, slope, logarithmic) = self._scales[axis]
        value = first + slope * at
        return 10**value if logarithmic else value


def heights(outline: np.ndarray, at: list[float]) -> list[float]:
    """Of steps: at each place the first level stretch that passes it."""
    found = []
    for x in at:
        level = (a[1] for a, b in pairwise(outline) if a[0] < x < b[0] and abs(a[1] - b[1]) < 1e-6)
        found.append(float(next(level)))
    return found


def value(text: str) -> float:
    """Of a tick's label."""
    return float(text[:-1]) / 100 if text.endswith("%") else float(text)


def _scale(ticks: dict[str, float], *, logarithmic: bool) -> tuple[float, float, bool]:
    (a, b), (p, q) = (list(ticks)[i] for i in (0, -1)), (list(ticks.values())[i] for i in (0, -1))
    a, b = (np.log10(value(t)) if logarithmic else value(t.split("\n")[0]) for t in (a, b))
    slope = (b - a) / (q - p)
    return a - slope * p, slope, logarithmic


def _tick(group: ElementTree.Element, axis: str) -> tuple[str, float]:
    use = next(group.iter(f"{SVG}use"))
    return _text(group), float(use.get(axis))


def _text(group: ElementTree.Element) -> str:
    return "\n".join(t.text for t in group.iter(f"{SVG}text"))


def _points(path: str) -> np.ndarray:
    return np.array([[float(x), float(y)] for x, y in re.findall(r"(-?[\d.]+) (-?[\d.]+)", path)])


def _lines(group: ElementTree.Element, *, clipped: bool = True) -> list[tuple[str, float, np.ndarray]]:
    """Style, width and points of the strokes of a group, ticks left out."""
    found = []
    for path in group.findall(f"{SVG}path"):
        style = dict(s.split(": ", 1) for s in path.get("style").split("; "))
        if "stroke" in style and style["fill"] == "none" and path.get("d") and (path.get("clip-path") or not clipped):
            name = f"{style['stroke']} {style.get('stroke-dasharray', '')}".strip()
            found.append((name, float(style.get("stroke-width", 1)), _points(path.get("d"))))
    return found


def _areas(group: ElementTree.Element, color: str) -> list[np.ndarray]:
    found = [
        _points(p.get("d"))
        for p in group.findall(f"{SVG}path")
        if f"fill: {color}" in p.get("style") and "opacity: 0." in p.get("style") and p.get("clip-path")
    ]
    if "Collection" in group.get("id", ""):
        (path,), (use,) = group.iter(f"{SVG}path"), group.iter(f"{SVG}use")
        if f"fill: {color}; fill-opacity: 0." in use.get("style"):
            found.append(_points(path.get("d")) + np.array([float(use.get("x")), float(use.get("y"))]))
    return found

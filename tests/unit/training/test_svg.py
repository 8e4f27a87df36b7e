"""Pictures as such: what is written on them can be read."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from softkin_training.svg import SERIES, picture

pytestmark = pytest.mark.training

SVG = "{http://www.w3.org/2000/svg}"


def drawn(**room):
    """A picture whose horizontal axis has as many lines below it as there is room for, two if nothing is said."""
    with picture("p", "a picture", **room) as p:
        p.axes.stairs([0.5, 1.0], [0.0, 1.0, 2.0], fill=True, color=SERIES[0])
        p.axes.set(xlim=(0, 2), ylim=(0, 1), xlabel="lagging y", ylabel="share")
        p.axes.set_xticks([0, 1, 2], ["0.0000" + "\nlagging y" * (room.get("lines_below", 2) - 2)] * 3)
        p.axes.set_yticks([0, 1], ["0.00", "1.00"])
    return ElementTree.fromstring(p.svg.replace("xlink:href", "href"))


def box(text):
    """Left, top, right and bottom of a text: letters are about half as wide as high, and few are higher than that."""
    size = float(re.search(r"font-size: ([\d.]+)px", text.get("style"))[1])
    x, y, length = float(text.get("x")), float(text.get("y")), 0.5 * size * len(text.text)
    if "rotate(-90" in text.get("transform"):
        return x - size, y - length / 2, x + 0.3 * size, y + length / 2
    left = x - length * (0.5 if "text-anchor: middle" in text.get("style") else 1.0)
    return left, y - size, left + length, y + 0.3 * size


@pytest.mark.parametrize("room", [{}, {"lines_below": 3}])
def test_no_text_is_cut_off_at_the_edge_of_a_picture(room):
    """Labels of the axes, their ticks, and what stands below these."""
    root = drawn(**room)
    _, _, width, height = map(float, root.get("viewBox").split())

    texts = [t for t in root.iter(f"{SVG}text") if t.get("x")]  # a label of two lines lies above others in any case

    assert {"lagging y", "share"} <= {t.text for t in texts}
    for text in texts:
        left, top, right, bottom = box(text)
        assert left >= 0, text.text
        assert top >= 0, text.text
        assert right <= width, text.text
        assert bottom <= height, text.text


def test_most_of_a_picture_is_what_it_shows():
    """Margins have room for what is written there, and for no more."""
    root = drawn()
    _, _, width, height = map(float, root.get("viewBox").split())

    area = next(g for g in root.iter(f"{SVG}g") if g.get("id") == "p-patch_2")[0]

    x, y = zip(*(map(float, point) for point in re.findall(r"([\d.]+) ([\d.]+)", area.get("d"))), strict=True)
    assert (max(x) - min(x)) * (max(y) - min(y)) > 0.6 * width * height


def test_bars_hide_the_grid_and_not_the_other_way_round():
    """Its lines would cross every bar."""
    (axes,) = (g for g in drawn().iter(f"{SVG}g") if g.get("id") == "p-axes_1")

    kinds = [g.get("id").removeprefix("p-") for g in axes]

    assert kinds.index("matplotlib.axis_2") < kinds.index("patch_3")

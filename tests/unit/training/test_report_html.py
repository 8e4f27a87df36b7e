"""The HTML report in a real browser, offline: nothing fails, every picture shows, and it fits a narrow screen."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from hostile_report import hostile_report
from softkin_training.report_html import html

pytestmark = pytest.mark.training

MEASURE = """<script>
addEventListener("load", () => {
  const size = e => { const r = e.getBoundingClientRect(); return [r.width, r.height]; };
  const found = {
    title: document.title,
    window: innerWidth,
    page: document.documentElement.scrollWidth,
    pictures: [...document.querySelectorAll("svg, img")].map(size),
    tables: [...document.querySelectorAll(".scroll")].map(e => [e.clientWidth, e.scrollWidth]),
    background: getComputedStyle(document.body).backgroundColor,
    text: getComputedStyle(document.body).color,
    curve: getComputedStyle(document.querySelector("svg [style*=series-0]")).stroke,
    lost: [...document.querySelectorAll("svg [*|href]")].filter(
      e => !document.getElementById((e.getAttribute("href") || e.getAttribute("xlink:href")).slice(1))).length,
  };
  parent.postMessage(JSON.stringify(found), "*");
});
</script>"""
FRAME = """<!DOCTYPE html><html><body style="margin: 0">
<iframe src="report.html" style="border: 0; width: {width}px; height: {height}px"></iframe>
<pre id="measured"></pre>
<script>addEventListener("message", e => {{ document.getElementById("measured").textContent = e.data; }});</script>
</body></html>"""
"""Chromium has no window below 500 pixels, but a frame may be as narrow as a phone."""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Runs headless Chromium on a file, cut off from every network; returns its output and its log."""
    program = next((p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None)
    assert program, "no Chromium on PATH: install Debian's package chromium"
    profile = tmp_path_factory.mktemp("profile")

    def run(file, *flags):
        command = [program, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"]
        command += [f"--user-data-dir={profile}", "--disable-background-networking", "--disable-component-update"]
        command += ["--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", "--log-level=0"]
        done = subprocess.run(
            [*command, *flags, file.as_uri()], capture_output=True, text=True, timeout=120, check=True
        )
        return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]

    return run


@pytest.fixture(scope="module")
def page(tiny):
    """The report with names that break careless pages."""
    return html(hostile_report(tiny))


@pytest.fixture(scope="module")
def file(page, tmp_path_factory):
    """The page on disk, as users open it."""
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def measure(page, browser, tmp_path_factory):
    """What the browser made of a copy that may run one script, which the page itself forbids."""
    copy = tmp_path_factory.mktemp("copy") / "report.html"
    without_policy = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
    copy.write_text(without_policy.replace("</body>", f"{MEASURE}</body>"), encoding="utf-8")

    def found(width, *flags):
        frame = copy.with_name("frame.html")
        frame.write_text(FRAME.format(width=width, height=900), encoding="utf-8")
        dom, log = browser(frame, "--dump-dom", f"--window-size={max(width, 500)},900", *flags)
        assert log == []
        text = re.search(r'<pre id="measured">(.*?)</pre>', dom, flags=re.DOTALL)[1]
        return json.loads(text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))

    return found


def test_the_browsers_complaints_would_be_heard(browser, tmp_path):
    """Or their absence would prove nothing: an error, a refused script and an unreachable picture each show."""
    bad = tmp_path / "bad.html"
    bad.write_text("<script>console.error('heard')</script>", encoding="utf-8")
    assert any("heard" in line for line in browser(bad, "--dump-dom")[1])
    policy = "<meta http-equiv=Content-Security-Policy content=\"default-src 'none'\">"
    bad.write_text(f"{policy}<script>1</script><img src=https://example.com/x.png>", encoding="utf-8")
    assert len(browser(bad, "--dump-dom")[1]) == 2


def test_the_page_opens_offline_without_a_complaint(browser, file):
    """No console message at all, the whole page in the DOM, and no script ran."""
    dom, log = browser(file, "--dump-dom")

    assert log == []
    assert "<title>Detection report: tiny 1</title>" in dom
    assert dom.rstrip().endswith("</html>")
    assert "<footer>" in dom


def test_all_pictures_show_and_the_page_fits_a_wide_window(measure):
    """Nonzero size, no lost reference, nothing wider than the window but what scrolls in itself."""
    found = measure(1200)

    assert found["title"] == "Detection report: tiny 1"
    assert len(found["pictures"]) == 2 * 4 + 2 + 2 + 2  # sets, p-values, classifier, corruptions
    assert all(width > 300 and height > 200 for width, height in found["pictures"])
    assert found["lost"] == 0
    assert found["page"] <= found["window"] == 1200


def test_tables_scroll_on_a_narrow_screen_and_the_page_does_not(measure):
    """A phone: pictures shrink, tables scroll in themselves."""
    found = measure(400)

    assert found["page"] <= found["window"] == 400
    assert any(inside > shown for shown, inside in found["tables"])
    assert all(shown <= found["window"] for shown, _ in found["tables"])
    assert all(200 < width <= found["window"] for width, _ in found["pictures"])


def luminance(color):
    """Relative luminance of `rgb(r, g, b)` (WCAG 2.2)."""
    channels = np.array([int(c) for c in re.findall(r"\d+", color)[:3]]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(a, b):
    """Contrast ratio (WCAG 2.2)."""
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize(("scheme", "dark"), [("1", False), ("0", True)])
def test_text_and_curves_are_legible_in_light_and_dark(measure, scheme, dark):
    """Contrast 7 for text and 3 for curves, which take the page's colours."""
    found = measure(1200, f"--blink-settings=preferredColorScheme={scheme}")

    assert (luminance(found["background"]) < 0.1) == dark
    assert contrast(found["background"], found["text"]) >= 7
    assert contrast(found["background"], found["curve"]) >= 3


@pytest.mark.parametrize("width", [1200, 400])
def test_a_screenshot_shows_the_page(browser, file, tmp_path, width):
    """Many colours and some ink, not a blank sheet."""
    frame, shot = file.with_name("frame.html"), tmp_path / "shot.png"
    frame.write_text(FRAME.format(width=width, height=3000), encoding="utf-8")
    browser(frame, f"--screenshot={shot}", f"--window-size={max(width, 500)},3000")

    image = np.asarray(Image.open(shot).convert("RGB"))[:, :width]
    assert image.shape == (3000, width, 3)
    assert len(np.unique(image.astype(np.int64) @ [1, 256, 65536])) > 50
    assert (image < 128).all(axis=2).mean() > 0.005

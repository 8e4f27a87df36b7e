"""docs/recipe.md lists every key of a recipe, with the default and the values that the code has."""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path

import pytest
from pydantic import BaseModel

from softkin_training.ablation_plan import load_plan
from softkin_training.config import Recipe
from softkin_training.recipe_faults import _schema_at, _words

pytestmark = pytest.mark.training

SECTIONS = {"Of the whole recipe": Recipe} | {
    f"[{name}]": field.annotation
    for name, field in Recipe.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
}
IN_WORDS = {
    ("[loss]", "weight"): "a number, or a table of one per layer",
    ("[detector]", "metric"): "'cosine' or 'squared_euclidean', or a table of one per layer",
}
"""Of keys that are checked by hand, so that no schema tells."""


@pytest.fixture
def page():
    """The page."""
    return (Path(__file__).parents[3] / "docs/recipe.md").read_text()


def expected(heading):
    """Key, default and allowed values of a section, in the order of the code."""
    section = SECTIONS[heading]
    for key, field in section.model_fields.items():
        if field.annotation in SECTIONS.values():
            continue
        default = "none" if field.is_required() else f"`{json.dumps(field.get_default(call_default_factory=True))}`"
        yield [f"`{key}`", default, IN_WORDS.get((heading, key)) or _words(_schema_at(section, [key]))]


@pytest.mark.parametrize("heading", SECTIONS)
def test_every_key_is_there_with_its_default_and_what_is_allowed(page, heading):
    """In the order of the code, each with a meaning."""
    text = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)[1]

    rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in text.splitlines() if line.startswith("| `")]

    assert [row[:3] for row in rows] == list(expected(heading))
    assert all(len(row) == 4 and row[3] for row in rows)


def test_every_section_is_there(page):
    """And none that does not exist."""
    assert re.findall(r"^## (\[.*\])$", page, re.MULTILINE) == [h for h in SECTIONS if h.startswith("[")]


def test_the_plan_can_be_read(page, tmp_path):
    """As it stands in the page."""
    example = page[page.index("    [train.plain]") :].split("\n\n")[0]
    (tmp_path / "plan.toml").write_text(textwrap.dedent(example))

    plan = load_plan(tmp_path / "plan.toml")

    assert list(plan.train) == ["plain", "entangled, -0.1"]
    assert list(plan.detect) == ["density", "posterior"]
    assert plan.families["trouser + bag"] == (1, 8)

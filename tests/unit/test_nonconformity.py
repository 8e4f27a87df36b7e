"""The joint form and its parts, against loops."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from softkin import conformal
from softkin.nonconformity import (
    CLASS_PARTS,
    PARTS,
    PRIOR_ROWS,
    Nonconformity,
    Outputs,
    class_units,
    fit_references,
    outlier_score,
)

WEIGHTS = np.array([1.0, 0.5, 2.0])


def outputs(seed, n, classes=4, layers=3):
    """Masses, logits and distances to boundaries as a network's."""
    rng = np.random.default_rng(seed)
    return Outputs(
        masses=rng.normal(-20, 8, size=(n, layers, classes)).astype(np.float32),
        logits=rng.normal(0, 3, size=(n, classes)).astype(np.float32),
        boundary=rng.normal(0, 2, size=(n, classes)).astype(np.float32),
    )


def plain(layers=3, **changes):
    """A form without references."""
    return Nonconformity(
        form="density", class_weights=np.array([50.0, 70.0, 20.0, 90.0]), layer_weights=WEIGHTS[:layers], **changes
    )


def surprise(part, values, references):
    """Of a tail 2.5 times what is beyond 2.5."""
    whole = conformal.tail_surprise(np.atleast_1d(values), references[part])
    return 2.5 * np.clip(whole - 2.5, 0, None) if part.endswith("_tail") else whole


@pytest.mark.parametrize("part", ["density_hidden", "class_density_hidden"])
def test_a_tail_speaks_where_one_reference_row_in_twelve_would(part):
    """Not of the rows among which it was fitted but for those, and the farther the louder."""
    reference = outputs(0, 400)
    parts = (f"{part}_tail", part)
    joint = replace(plain(), form="joint", parts=parts, references=fit_references(plain(), parts, reference))
    far = replace(reference, masses=reference.masses - np.float32(100))
    classes = reference.logits.argmax(axis=1)

    tail, whole = joint.terms(reference, classes).T
    far_tail, far_whole = joint.terms(far, classes).T

    assert (tail > 0).mean() == pytest.approx(math.exp(-2.5), abs=0.01)
    assert (tail[whole <= 2.5] == 0).all()
    assert (far_tail > far_whole).all()
    np.testing.assert_allclose(far_tail, 2.5 * (far_whole - 2.5), rtol=1e-12)


def test_the_joint_form_is_the_length_of_the_vector_of_surprises():
    """All parts, every row and class by hand."""
    reference, rows = outputs(0, 200), outputs(1, 20)
    references = fit_references(plain(), PARTS, reference)
    joint = Nonconformity(
        form="joint",
        class_weights=plain().class_weights,
        layer_weights=WEIGHTS,
        parts=PARTS,
        references=references,
    )

    found = joint(rows)

    for b in range(20):
        for j in range(4):
            squares = 0.0
            for part in PARTS:
                value = joint.part(part, rows)[b, j]
                squares += surprise(part, value, references).item() ** 2
            assert found[b, j] == pytest.approx(math.sqrt(squares), rel=1e-12)


def test_the_terms_of_a_joint_score_are_the_surprises_of_its_parts():
    """At the class that is asked for; their length is the nonconformity."""
    reference, rows = outputs(0, 200), outputs(1, 20)
    joint = replace(plain(), form="joint", parts=PARTS, references=fit_references(plain(), PARTS, reference))
    classes = np.random.default_rng(2).integers(0, 4, 20).astype(np.int32)

    found = joint.terms(rows, classes)

    assert found.shape == (20, len(PARTS))
    for p, part in enumerate(PARTS):
        values = [joint.part(part, rows)[b, j] for b, j in enumerate(classes)]
        np.testing.assert_allclose(found[:, p], surprise(part, values, joint.references), rtol=1e-12)
    np.testing.assert_allclose(np.sqrt((found**2).sum(axis=1)), outlier_score(joint(rows), classes), rtol=1e-12)


@pytest.mark.parametrize("form", ["density", "posterior"])
def test_the_terms_of_other_scores_are_those_of_the_layers(form):
    """Each with the layer's weight; they sum up to the nonconformity."""
    rows, several = outputs(1, 20), replace(plain(), form=form)
    classes = np.random.default_rng(2).integers(0, 4, 20).astype(np.int32)

    found = several.terms(rows, classes)

    for i, weight in enumerate(WEIGHTS):
        layer = replace(rows, masses=rows.masses[:, [i]])
        alone = replace(several, layer_weights=np.array([weight]))(layer)
        np.testing.assert_allclose(found[:, i], outlier_score(alone, classes), rtol=1e-12)
    np.testing.assert_allclose(found.sum(axis=1), outlier_score(several(rows), classes), rtol=1e-12)


@pytest.mark.parametrize("form", ["density", "joint"])
def test_a_row_that_is_not_finite_is_strange_in_every_term(form):
    """As its score is infinite; the rows beside it keep their terms, and there may be none beside it."""
    rows, parts = outputs(8, 5), ("density", "energy")
    scored = replace(plain(), form=form, parts=parts, references=fit_references(plain(), parts, rows))
    classes = rows.logits.argmax(axis=1).astype(np.int32)
    expected = scored.terms(rows, classes)
    expected[2] = math.inf
    rows.logits[2, 1] = math.nan

    np.testing.assert_array_equal(scored.terms(rows, classes), expected)
    alone = Outputs(masses=rows.masses[2:3], logits=rows.logits[2:3])
    np.testing.assert_array_equal(scored.terms(alone, classes[2:3]), expected[2:3])


@pytest.mark.parametrize("numbers", [1, 4, 7, 28, 1000])
def test_rows_in_several_blocks_are_the_same_as_in_one(monkeypatch, numbers):
    """However few fit a block, the last one is smaller, or a row is not finite."""
    rows = outputs(3, 7)
    rows.masses[4, 0, 1] = math.inf
    joint = replace(plain(), form="joint", parts=PARTS, references=fit_references(plain(), PARTS, outputs(0, 200)))
    classes = np.arange(7, dtype=np.int32) % 4
    expected = joint(rows), joint.terms(rows, classes)

    monkeypatch.setattr("softkin.nonconformity.BLOCK_NUMBERS", numbers)

    assert max(len(rows.take(block)) for block in rows.blocks()) == min(7, max(1, numbers // 4))  # of four classes
    np.testing.assert_array_equal(joint(rows), expected[0])
    np.testing.assert_array_equal(joint.terms(rows, classes), expected[1])
    assert np.isinf(expected[0][4]).all()


def test_class_density_is_density_in_units_of_the_class():
    """Center and spread of the reference rows predicted to be of that class, drawn towards those of all."""
    reference, rows = outputs(2, 300), outputs(3, 10)
    references = fit_references(plain(), ("class_density",), reference)
    joint = plain(references=references)

    found = joint.part("class_density", rows)

    scores = plain().part_score("density", reference)
    predicted = reference.logits.argmax(axis=1)
    density = plain().part("density", rows)
    for j in range(4):
        own = sorted(s for s, p in zip(scores, predicted, strict=True) if p == j)
        n, mean = len(own), sum(own) / len(own)
        median = (own[(n - 1) // 2] + own[n // 2]) / 2
        center = (n * median + PRIOR_ROWS * np.median(scores)) / (n + PRIOR_ROWS)
        variance = (sum((s - mean) ** 2 for s in own) + PRIOR_ROWS * scores.var()) / (n + PRIOR_ROWS)
        np.testing.assert_allclose(found[:, j], (density[:, j] - center) / math.sqrt(variance), rtol=1e-9)
    own_scores = outlier_score(joint.part("class_density", reference), predicted)
    np.testing.assert_allclose(references["class_density"], np.sort(own_scores), rtol=1e-12)


def test_a_class_without_reference_rows_gets_the_units_of_all():
    """And equal scores, which have no spread, keep their own scale."""
    rng = np.random.default_rng(4)
    scores, classes = rng.normal(3, 0.2, 50), rng.integers(0, 2, 50)

    center, scale = class_units(scores, classes.astype(np.int32), 3)

    assert center[2] == pytest.approx(np.median(scores))
    assert scale[2] == pytest.approx(scores.std())
    center, scale = class_units(np.full(6, 7.0), np.zeros(6, np.int32), 2)
    assert (center.tolist(), scale.tolist()) == ([7.0, 7.0], [1.0, 1.0])


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("part", [p for p in PARTS if p not in CLASS_PARTS and p != "boundary_distance"])
def test_a_part_is_its_definition(part, layers):
    """By loops over the layers that it looks at: all, all but the last one of several, or the last one alone."""
    rows, (kind, _, which) = outputs(5, 8, layers=layers), part.removesuffix("_tail").partition("_")
    looked_at = {"": range(layers), "hidden": range(max(1, layers - 1)), "last": [layers - 1]}[which]

    found = plain(layers).part(part, rows)

    for b in range(8):
        for j, n in enumerate(plain().class_weights):
            expected = -math.log(sum(map(math.exp, rows.logits[b].tolist()))) if kind == "energy" else 0.0
            for i in looked_at if kind != "energy" else ():
                m = rows.masses[b, i].tolist()
                most = math.log(sum(map(math.exp, m)) if kind == "posterior" else n)
                expected += (1.0 if which == "last" else WEIGHTS[i]) * (most - m[j])
            assert found[b, j] == pytest.approx(expected, rel=1e-9)


def test_far_from_the_boundaries_is_not_strange():
    """Of each class its own number, in float64: the network has worked it out."""
    rows = outputs(5, 8)

    found = plain().part("boundary_distance", rows)

    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, -rows.boundary.astype(np.float64))


def test_the_predicted_class_is_the_networks_own():
    """Or, without a network, the one in which the row is least strange."""
    rows = outputs(7, 20)
    a = plain()(rows)

    found, alone = plain().predict(rows, a), plain().predict(replace(rows, logits=None), a)

    assert found.tolist() == [max(range(4), key=row.__getitem__) for row in rows.logits.tolist()]
    assert alone.tolist() == [min(range(4), key=row.__getitem__) for row in a.tolist()]
    assert found.dtype == alone.dtype == np.int32


def test_references_do_not_look_at_labels():
    """Every part's reference scores are those at the predicted class."""
    reference = outputs(6, 100)

    found = fit_references(plain(), ("posterior", "density", "energy"), reference)

    for part in found:
        np.testing.assert_array_equal(found[part], np.sort(plain().part_score(part, reference)))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["masses", "logits", "boundary", "masses, no network"])
def test_one_number_that_is_not_finite_makes_its_row_the_strangest(where, value):
    """Whichever number of the row it is; the rows beside it keep what they have, and all rows may be such."""
    rows, name, parts = outputs(8, 5), where.partition(",")[0], ("density", "energy")
    if where == "masses, no network":
        rows, parts = replace(rows, logits=None, boundary=None), ("density",)
    joint = replace(plain(), form="joint", parts=parts, references=fit_references(plain(), parts, rows))
    expected = joint(rows)
    expected[2] = math.inf

    for place in np.ndindex(getattr(rows, name).shape[1:]):
        damaged = getattr(rows, name).copy()
        damaged[2][place] = value
        np.testing.assert_array_equal(joint(replace(rows, **{name: damaged})), expected)

    damaged[:] = value
    assert (joint(replace(rows, **{name: damaged})) == math.inf).all()

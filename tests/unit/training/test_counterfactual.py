"""Which columns of a flagged row would have to be otherwise: the ones that were made wrong."""

from __future__ import annotations

import numpy as np
import pytest

from softkin import Detector
from softkin.bundle import read_bundle
from softkin_training.counterfactual import Counterfactuals
from softkin_training.fit import fit_embeddings
from softkin_training.fit_config import vectors_config
from softkin_training.rows import ROWS_TOGETHER

pytestmark = pytest.mark.training

COLUMNS = 6


def table(n, seed=0):
    """Two classes; of each the last two columns follow from the first two, so that they may disagree within range."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    x = rng.normal(size=(n, COLUMNS)) + 3 * y[:, None]
    x[:, 4:] = x[:, :2] * [1, -1] + 0.1 * rng.normal(size=(n, 2))
    return x, y


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A detector of the table, the rows that it was made of, and which of them are in its bank."""
    folder = tmp_path_factory.mktemp("table")
    x, y = table(900)
    np.savez(folder / "t.npz", x_train=x, y_train=y)
    fit_embeddings(folder / "t.npz", folder, vectors_config(name="t", metric="squared_euclidean"))
    return Detector.load(folder / "bundle", device="cpu"), x, read_bundle(folder / "bundle").bank.examples


def explained(fitted, x, alpha=0.05):
    """Explanations of all flagged rows, by row."""
    detector, training, ids = fitted
    counterfactuals = Counterfactuals(detector, training[ids], ids, alpha=alpha)
    return {i: counterfactuals.of(x[i]) for i in np.flatnonzero(detector.score(x, alpha=alpha).is_outlier).tolist()}


def test_the_column_that_was_made_wrong_comes_first(fitted):
    """One value is replaced by one that is far off, or by one that is usual but not beside the others."""
    inliers = table(200, seed=1)[0]
    inliers = inliers[fitted[0].score(inliers).p_value > 0.3][:60]
    for column, wrong in ((2, 14.0), (5, None)):
        x = inliers.copy()
        x[:, column] = -x[:, 1] + np.where(x[:, 1] > 1.5, 3.0, -3.0) if wrong is None else wrong

        found = explained(fitted, x)

        assert len(found) > 40
        firsts = [e.changes[0].column for e in found.values()]
        # A column and the one that it should follow contradict each other: either may be at fault.
        assert np.isin(firsts, [column] if wrong else [1, 5]).mean() > 0.9


def test_after_the_last_change_a_row_is_none_that_is_flagged_and_no_change_is_needless(fitted):
    """The p-values are those of the row with the values replaced so far, each from one training row."""
    detector, training, _ = fitted
    x = table(120, seed=2)[0]
    x[np.arange(120), np.arange(120) % 4] += 9
    x[::3, 3] -= 9

    found = explained(fitted, x)

    assert any(len(e.changes) > 1 for e in found.values())
    for row, e in found.items():
        assert np.array_equal(e.values, training[e.example])
        now, columns = x[row].copy(), [c.column for c in e.changes]
        for change in e.changes:
            now[change.column] = e.values[change.column]
            again = detector.score(now[None])
            assert change.p_value == pytest.approx(float(again.p_value[0]))
        assert len(set(columns)) == len(columns)
        assert not again.is_outlier[0]
        for column in columns:
            now[column] = x[row, column]
            assert detector.score(now[None]).is_outlier[0], "this one was needless"
            now[column] = e.values[column]


def test_the_rate_decides_how_much_has_to_change(fitted):
    """At a larger alpha a row has to come nearer before it is none that is flagged."""
    x = table(60, seed=3)[0]
    x[:, 2] += 6

    few, many = (explained(fitted, x, alpha) for alpha in (0.02, 0.4))

    for row, e in few.items():
        assert e.changes[-1].p_value > 0.02
        assert many[row].changes[-1].p_value > 0.4
    assert sum(len(e.changes) for e in many.values()) / len(many) > sum(len(e.changes) for e in few.values()) / len(few)


def test_a_training_row_that_is_flagged_itself_ends_the_search(fitted):
    """Everything is replaced then, and the last p-value says that it was not enough."""
    detector, training, ids = fitted
    x = table(40, seed=4)[0]
    x[:, 2] += 6
    found = explained((detector, training + 40.0, ids), x)

    assert found
    for e in found.values():
        assert len(e.changes) == COLUMNS
        assert e.changes[-1].p_value <= 0.05


def test_a_row_that_overflows_is_explained_too(fitted):
    """It has no neighbours, but columns."""
    x = table(40, seed=5)[0]
    x = x[fitted[0].score(x).p_value > 0.3][:3]
    x[1, 4] = 1e38

    found = explained(fitted, x)

    assert not np.isfinite(fitted[0].score(x).outlier_score[1])
    assert [c.column for c in found[1].changes] == [4]


def test_a_column_that_never_varies_must_agree(tmp_path):
    """It counts as any other that is far off, and divides nothing by zero."""
    x, y = table(600)
    x[:, 3] = 7
    np.savez(tmp_path / "t.npz", x_train=x, y_train=y)
    fit_embeddings(tmp_path / "t.npz", tmp_path, vectors_config(name="t", metric="squared_euclidean"))
    wrong = x[:1].copy()
    wrong[0, 3] = 30

    found = explained((Detector.load(tmp_path / "bundle", device="cpu"), x, np.arange(600)), wrong)

    assert [(found[0].example, c.column) for c in found[0].changes] == [(0, 3)]


def test_the_training_row_is_the_one_most_alike_in_most_columns(fitted):
    """In deviations of each column, whatever its unit, three of which count as far: nothing far off decides."""
    detector, ids = fitted[0], np.arange(ROWS_TOGETHER + 800)
    rng = np.random.default_rng(6)
    rows = rng.standard_t(3, size=(len(ids), COLUMNS)) * [1e3, 1e-3, 1, 1, 1, 1]
    counterfactuals = Counterfactuals(detector, rows, ids, alpha=0.05)
    deviations = rows.std(axis=0)
    examples = []
    for x in rows[-12:] + deviations * rng.normal(size=(12, COLUMNS)) * (rng.random((12, COLUMNS)) < 0.5) * 4:
        apart = [sum(min(abs(a - b) / s, 3) for a, b, s in zip(row, x, deviations, strict=True)) for row in rows]
        examples.append(counterfactuals.of(x).example)
        assert examples[-1] == np.argmin(apart)
    assert max(examples) >= ROWS_TOGETHER


def test_nothing_has_to_change_in_a_training_row(fitted):
    """At a rate at which it is flagged, it is compared with itself."""
    detector, training, ids = fitted

    found = Counterfactuals(detector, training[ids], ids, alpha=0.99).of(training[ids[7]])

    assert (found.example, found.changes) == (ids[7], ())
    assert np.array_equal(found.values, training[ids[7]])

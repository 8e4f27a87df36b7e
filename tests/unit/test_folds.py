"""How tiles are summed to classes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from softkin.folds import FOLD, plan_folds


def folded(labels, num_classes, mass_T):
    """What the steps make of the masses of tiles, and how many numbers they gather."""
    columns, gathered = [*mass_T, 0.0], num_classes
    folds = plan_folds(np.array(labels, np.int64), num_classes)
    for step in folds.steps:
        columns += [sum(columns[i] for i in group) for groups in step for group in groups]
        gathered += sum(groups.size for groups in step)
    return [columns[i] for i in folds.where], gathered


@given(st.lists(st.integers(0, 5), max_size=3 * FOLD * FOLD), st.integers(6, 9))
@example([0] * (FOLD * FOLD + 1) + [1] * (FOLD + 1) + [2] * FOLD + [3], 6)
@settings(deadline=None)
def test_every_tile_counts_once_for_its_class(labels, num_classes):
    """In any order, also for classes of one tile, of none, and of more than two steps take."""
    mass_T = [float(i + 1) for i in range(len(labels))]

    found, _ = folded(labels, num_classes, mass_T)

    assert found == np.bincount(labels, mass_T, minlength=num_classes).tolist()


@pytest.mark.parametrize(
    ("labels", "all_of_them"),
    [([0, 0, 1, 1, 2, 2], True), ([0, 0, 1, 2, 2], False), ([0] * 2000 + [1] * 2000, True), ([0] * 2000 + [1], False)],
)
def test_where_the_last_step_gives_all_classes_nothing_is_gathered_again(labels, all_of_them):
    """As where every class has several tiles, all of like numbers."""
    folds = plan_folds(np.array(labels), max(labels) + 1)

    assert folds.last_gives_all == all_of_them
    if all_of_them:
        assert [len(groups) for groups in folds.steps[-1]] == [max(labels) + 1]


@pytest.mark.parametrize(("tiles", "gathers"), [([9, 9, 9], 1), ([5, 9, 17], 1), ([2, 2, 2, 2, 17], 2)])
def test_classes_of_like_sizes_are_summed_by_one_operator(tiles, gathers):
    """Each costs some time, however little it has to do; unlike sizes have one each."""
    [step] = plan_folds(np.repeat(np.arange(len(tiles)), tiles), len(tiles)).steps

    assert len(step) == gathers


@pytest.mark.parametrize(
    "tiles",
    [np.full(1000, 5), np.r_[np.full(900, 1), np.full(90, 4), np.full(9, 40), 2000], np.r_[np.full(5000, 2), 30_000]],
    ids=["alike", "long tail", "one large class"],
)
def test_few_numbers_are_gathered_whatever_the_sizes_of_classes(tiles):
    """Of the widest class each would be gathered a thousand times."""
    labels = np.repeat(np.arange(len(tiles)), tiles)

    _, gathered = folded(labels, len(tiles), np.ones(len(labels)))

    assert gathered <= 2.5 * len(labels) + len(tiles)

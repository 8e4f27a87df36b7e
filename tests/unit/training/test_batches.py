"""How an epoch is dealt into batches."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from softkin_training.batches import balanced_batches

pytestmark = pytest.mark.training


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(1, 50), st.integers(0, 99))
@settings(deadline=None)
def test_an_epoch_visits_every_row_once_with_a_partner(counts, batch_size, seed):
    """Each row exactly once; in every batch each class has none or at least 2 rows, unless it has only one in all."""
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    batches = list(balanced_batches(labels, batch_size, torch.Generator().manual_seed(seed)))

    assert torch.cat(batches).sort().values.tolist() == list(range(len(labels)))
    for batch in batches:
        for label, count in zip(*labels[batch].unique(return_counts=True), strict=True):
            assert count >= 2 or counts[label] == 1


@given(st.integers(2, 6), st.integers(5, 60), st.integers(2, 5), st.integers(0, 99))
@settings(deadline=None)
def test_batches_mirror_the_class_mix(num_classes, rows_per_class, rows_per_batch, seed):
    """Equal classes: every class in every batch, and batches of equal size, up to the remainder."""
    labels = torch.arange(num_classes).repeat(rows_per_class)
    batches = list(balanced_batches(labels, num_classes * rows_per_batch, torch.Generator().manual_seed(seed)))

    counts = torch.stack([labels[batch].bincount(minlength=num_classes) for batch in batches])
    sizes = counts.sum(dim=1)
    assert len(batches) == rows_per_class // rows_per_batch
    assert counts.min() >= 2
    assert counts.max() - counts.min() <= 1
    assert sizes.max() - sizes.min() <= 1


def test_many_rare_classes_share_the_batches_evenly():
    """200 classes of 6 rows in batches of 40: pairs or more of each, no batch far from its size."""
    labels = torch.arange(200).repeat(6)
    batches = list(balanced_batches(labels, 40, torch.Generator().manual_seed(0)))

    assert {len(batch) for batch in batches} <= {38, 39, 40, 41, 42}


def test_batches_follow_the_generator():
    """Equal seeds deal equal batches; another epoch deals others."""
    labels = torch.arange(4).repeat(25)
    generator = torch.Generator().manual_seed(3)
    first, second = (torch.cat(list(balanced_batches(labels, 20, generator))) for _ in range(2))
    again = torch.cat(list(balanced_batches(labels, 20, torch.Generator().manual_seed(3))))

    assert torch.equal(first, again)
    assert not torch.equal(first, second)

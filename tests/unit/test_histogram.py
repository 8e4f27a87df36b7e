"""The histogram against prometheus_client's own, which counts value by value."""

from __future__ import annotations

import threading
import weakref

import numpy as np
import prometheus_client
import pytest

from softkin.histogram import LARGE, Histogram

BOUNDS = (0.1, 0.5, 1.0, 2.5)


def samples(metric):
    """Every sample but the time of creation, which ours leaves out."""
    (family,) = metric.collect()
    return {(s.name, *sorted(s.labels.items())): s.value for s in family.samples if not s.name.endswith("_created")}


def theirs(labels=()):
    """prometheus_client's, on no registry."""
    return prometheus_client.Histogram("m", "Help.", labels, buckets=BOUNDS, registry=None)


def test_without_labels_it_shows_from_the_start():
    """Every bucket at 0; with labels nothing is known yet."""
    assert samples(Histogram("m", "Help.", (), BOUNDS)) == samples(theirs())
    assert samples(Histogram("m", "Help.", ("a",), BOUNDS)) == {}


def test_with_a_negative_bound_there_are_buckets_only():
    """As the exposition format asks."""
    histogram = Histogram("m", "Help.", (), (-1.0, 2.0))
    histogram.observe((), -1.0)

    assert samples(histogram) == {("m_bucket", ("le", le)): 1.0 for le in ("-1.0", "2.0", "+Inf")}


@pytest.mark.parametrize("batches", [1, 64, 131])
def test_counts_and_sums_are_those_of_the_original(batches):
    """Values one by one and in batches, on bounds and beyond them, scraped in between, per label."""
    rng = np.random.default_rng(batches)
    ours, expected = Histogram("m", "Help.", ("a",), BOUNDS), theirs(("a",))

    for _ in range(2):
        for i in range(batches):
            values, label = rng.choice([*BOUNDS, 0.0, 0.25, 7.0], 3), str(i % 2)
            ours.observe((label,), float(values[0]))
            ours.observe_all((label,), values)
            for value in (values[0], *values):
                expected.labels(label).observe(value)
        assert samples(ours) == pytest.approx(samples(expected))


def test_arrays_do_not_pile_up_between_scrapes():
    """A server that nobody scrapes keeps no rows."""
    histogram, seen, most = Histogram("m", "Help.", (), BOUNDS), [], 0

    for _ in range(1000):
        values = np.ones(2)
        seen.append(weakref.ref(values))
        histogram.observe_all((), values)
        seen = [ref for ref in seen if ref() is not None]
        most = max(most, len(seen))

    assert most < 100


def test_a_large_array_does_not_wait():
    """Neither for others nor for a scrape: sixty of those of a million rows would be half a gigabyte."""
    histogram, values = Histogram("m", "Help.", (), BOUNDS), np.ones(LARGE)
    seen = weakref.ref(values)
    histogram.observe_all((), values)
    del values

    assert seen() is None
    assert samples(histogram)[("m_count",)] == LARGE


def test_its_name_kind_and_help_are_those_of_the_original():
    """What a scrape shows above the samples."""
    ours, expected = (
        (m.name, m.type, m.documentation) for x in (Histogram("m", "Help.", (), BOUNDS), theirs()) for m in x.collect()
    )

    assert ours == expected


@pytest.mark.parametrize(
    "work",
    [
        lambda histogram: histogram.observe(("b",), 1.0),
        lambda histogram: histogram.observe_all(("b",), np.ones(3)),
        lambda histogram: histogram.begin(("b",)),
        lambda histogram: histogram.forget(("a",)),
        lambda histogram: samples(histogram),
    ],
    ids=["observe", "observe_all", "begin", "forget", "collect"],
)
def test_one_thread_at_a_time_is_at_the_counts(work):
    """Of two that add at once, one would be lost; and a scrape would find labels that come or go meanwhile."""
    histogram = Histogram("m", "Help.", ("a",), BOUNDS)
    histogram.observe(("a",), 1.0)
    working = threading.Thread(target=work, args=(histogram,))

    with histogram._lock:
        working.start()
        working.join(0.05)
        waits = working.is_alive()
    working.join(20)

    assert (waits, working.is_alive()) == (True, False)


def test_labels_begin_at_0_and_go_with_all_that_was_counted():
    """What waits to be counted, too: else they would come back with the next scrape."""
    histogram = Histogram("m", "Help.", ("a",), BOUNDS)
    histogram.begin(("x",))
    assert set(samples(histogram).values()) == {0.0}

    histogram.observe(("x",), 1.0)
    histogram.observe_all(("x",), np.ones(3))
    histogram.forget(("x",))

    assert samples(histogram) == {}

"""Several threads at the registry: those that read, and those that change it."""

from __future__ import annotations

import threading

import pytest

from softkin.registry import Registry
from standin import StandIn


def test_readers_never_see_a_change_half_made():
    """While versions take each other's place, a label and the default always lead to one of them."""
    registry = Registry()
    registry.add(StandIn(version="0"), ["stable", "canary"])
    ended, failures, seen = threading.Event(), [], set()

    def read():
        try:
            while not ended.is_set():
                found = registry.get(label="canary")
                seen.add(found.manifest.version)
                registry.get()
                assert len(list(registry)) == 1
        except Exception as e:
            failures.append(e)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for r in readers:
        r.start()
    detectors = [StandIn(version=str(v)) for v in range(1, 300)]
    for before, d in enumerate(detectors):
        registry.exchange(str(before), d)
    ended.set()
    for r in readers:
        r.join()

    assert failures == []
    assert seen


CHANGES = {
    "add": lambda registry: registry.add(StandIn(version="4")),
    "exchange": lambda registry: registry.exchange("2", StandIn(version="4")),
    "withdraw": lambda registry: registry.withdraw("standin", "2"),
    "remove": lambda registry: registry.remove("standin", "2"),
    "set_label": lambda registry: registry.set_label("standin", "2", "blue"),
    "remove_label": lambda registry: registry.remove_label("standin", "canary"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_that_begins_during_another_waits_for_it(change):
    """Each writes all versions and labels of a name: the one that ends last would undo the other."""
    found = []
    for together in (False, True):
        registry = Registry()
        for version in "123":
            registry.add(StandIn(version=version), ["canary"])
        second = threading.Thread(target=change, args=(registry,))

        def begin_another(detector, registry=registry, second=second):
            registry.check_default = lambda detector: None
            second.start()
            second.join(timeout=0.05)

        if together:
            registry.check_default = begin_another
        registry.set_label("standin", "1", "stable")
        if not together:
            second.start()
        second.join()
        versions = [(d.manifest.version, registry.labels_of(d)) for d in registry]
        found.append((versions, registry.withdrawn("standin", "2")))

    assert found[0] == found[1]

"""Names, versions, labels: which detector a request gets."""

from __future__ import annotations

import pytest

from softkin.errors import ConflictError, InvalidInputError, NotFoundError, PreconditionError, UnavailableError
from softkin.registry import Registry
from standin import StandIn


def registry_of(*detectors, **labels):
    """A registry of stand-ins; labels are given as label=version, for the first one's name."""
    registry = Registry()
    for d in detectors:
        registry.add(d)
    for label, version in labels.items():
        registry.set_label(detectors[0].manifest.name, version, label)
    return registry


def versions(registry):
    """All that is loaded."""
    return [(d.manifest.name, d.manifest.version) for d in registry]


def test_the_last_version_added_serves_until_one_is_labelled_stable():
    """And an explicit version or label gives that one, whatever serves."""
    one, two, three = (StandIn(version=v) for v in "123")
    registry = registry_of(one, three, two)

    assert registry.get() is registry.get("standin") is registry.default("standin") is two
    assert registry.get("standin", "1") is one

    registry.set_label("standin", "1", "stable")
    registry.set_label("standin", "3", "canary")

    assert registry.get() is registry.get(label="stable") is registry.default("standin") is one
    assert registry.get(label="canary") is three
    assert registry.get(version="2") is two


def test_a_label_is_moved_and_moved_back():
    """Promotion and rollback: whoever had it is named."""
    registry = registry_of(StandIn(version="1"), StandIn(version="2"))

    moved = [registry.set_label("standin", v, "stable") for v in ("1", "2", "1", "1")]

    assert moved == ["", "1", "2", "1"]
    assert registry.get().manifest.version == "1"


def test_several_labels_may_stand_on_one_version():
    """And are shown sorted."""
    one, two = StandIn(version="1"), StandIn(version="2")
    registry = registry_of(one, two, stable="1", canary="1", shadow="2")

    assert registry.labels_of(one) == ("canary", "stable")
    assert registry.labels_of(two) == ("shadow",)
    assert registry.labels_of(StandIn(version="1")) == ()
    assert registry.labels_of(StandIn("gone")) == ()
    assert registry.labelled("standin", "shadow") is two
    assert registry.labelled("standin", "other") is registry.labelled("other", "shadow") is None


def test_removing_stable_lets_the_last_version_added_serve_again():
    """The label's version is named; what has none is refused with those there are."""
    registry = registry_of(StandIn(version="1"), StandIn(version="2"), stable="1", canary="2")

    assert registry.remove_label("standin", "stable") == "1"
    assert registry.get().manifest.version == "2"
    with pytest.raises(NotFoundError, match=r"^no version carries the label 'stable'; labels: canary = 2$"):
        registry.remove_label("standin", "stable")
    with pytest.raises(
        NotFoundError, match=r"^no detector named 'other'; loaded: standin version 1, standin version 2$"
    ):
        registry.remove_label("other", "stable")


@pytest.mark.parametrize("label", ["", "a b", "é", "a" * 41, "a.b", "\n"])
def test_an_unfit_label_is_refused_before_anything_changes(label):
    """With what is allowed."""
    registry = registry_of(StandIn())

    with pytest.raises(InvalidInputError, match="1 to 40 letters, digits, '-' or '_' are allowed"):
        registry.set_label("standin", "1", label)
    with pytest.raises(InvalidInputError, match="1 to 40 letters"):
        registry.add(StandIn(version="2"), [label])

    assert versions(registry) == [("standin", "1")]
    assert registry.labels_of(registry.get()) == ()


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        ({"name": "c"}, NotFoundError, "no detector named 'c'; loaded: a version 1, a version 2, b version 1"),
        (
            {"name": "a", "version": "9"},
            NotFoundError,
            "no version '9' of that detector; loaded: a version 1, a version 2, b version 1",
        ),
        ({"name": "a", "label": "x"}, NotFoundError, "no version carries the label 'x'; labels: stable = 1"),
        ({}, InvalidInputError, "detector: empty, but several are loaded; name one of: a, b"),
        (
            {"name": "a", "version": "1", "label": "stable"},
            InvalidInputError,
            "label: got 'stable' beside a version; give one of them",
        ),
    ],
)
def test_what_is_not_there_is_refused_with_what_is(asked, error, message):
    """So that the caller can correct it."""
    registry = registry_of(StandIn("a", "1"), StandIn("a", "2"), StandIn("b", "1"), stable="1")

    with pytest.raises(error) as e:
        registry.get(**asked)

    assert str(e.value) == message


def test_an_empty_registry_answers_later():
    """Retrying may help: UNAVAILABLE on the wire."""
    with pytest.raises(UnavailableError, match="no detector is loaded"):
        Registry().get()


def test_a_version_is_loaded_once():
    """Two bundles of one name and version could not be told apart; labels stay where they are."""
    registry = registry_of(StandIn(version="1"), StandIn(version="2"), stable="1")

    message = "detector 'standin' version '2' is loaded already; give each bundle a name or a version of its own"
    with pytest.raises(ConflictError, match=message):
        registry.add(StandIn(version="2"), ["stable"])

    assert registry.get().manifest.version == "1"


def test_a_version_that_is_added_beside_the_default_can_leave_it_in_its_place():
    """Then the default gets the label that says so; where there is one, nothing is added to it."""
    registry = registry_of(StandIn(version="1"))

    registry.add(StandIn(version="2"), ["canary"], keep_default=True)
    registry.add(StandIn(version="3"), keep_default=True)
    registry.add(StandIn("other", "1"), keep_default=True)

    assert registry.get("standin").manifest.version == "1"
    assert registry.labels_of(registry.get("standin", "1")) == ("stable",)
    assert registry.labels_of(registry.get("standin", "2")) == ("canary",)
    assert registry.labels_of(registry.get("other")) == ()


def test_a_version_added_as_stable_serves_although_the_default_could_stay():
    """The label that is asked for wins."""
    registry = registry_of(StandIn(version="1"))

    registry.add(StandIn(version="2"), ["stable"], keep_default=True)

    assert registry.get().manifest.version == "2"


def test_a_version_is_removed_unless_something_points_to_it():
    """A label, or being the only one of its name."""
    one, two = StandIn(version="1"), StandIn(version="2")
    registry = registry_of(one, two, stable="2", canary="2")

    with pytest.raises(PreconditionError, match=r"^version '2' carries canary, stable; move its labels first$"):
        registry.remove("standin", "2")
    assert registry.remove("standin", "1") is one
    with pytest.raises(PreconditionError, match="carries canary, stable"):
        registry.remove("standin", "2")
    registry.remove_label("standin", "canary")
    registry.remove_label("standin", "stable")
    with pytest.raises(PreconditionError, match=r"^version '2' is the only one of 'standin'; load another one first$"):
        registry.remove("standin", "2")
    with pytest.raises(NotFoundError, match="no detector 'standin' version '1'; loaded: standin version 2"):
        registry.remove("standin", "1")

    assert versions(registry) == [("standin", "2")]


@pytest.mark.parametrize("label", ["1", "2", None])
@pytest.mark.parametrize("old", ["1", "2", "3"])
def test_what_takes_a_versions_place_gets_its_labels_and_its_turn(old, label):
    """Whoever served by default still does, or the one in its place."""
    registry = registry_of(*(StandIn(version=v) for v in "123"), canary=old)
    if label is not None:
        registry.set_label("standin", label, "stable")
    served = registry.get().manifest.version
    before = registry.get(version=old)
    new = StandIn(version="4")

    assert registry.exchange(old, new) is before

    assert registry.get().manifest.version == ("4" if served == old else served)
    assert registry.get(label="canary") is new
    assert versions(registry) == [("standin", v) for v in sorted({"1", "2", "3", "4"} - {old})]


@pytest.mark.parametrize("version", ["1", "2"])
def test_the_same_version_with_another_digest_takes_its_own_place(version):
    """Labels and turn stay."""
    registry = registry_of(StandIn(version="1"), StandIn(version="2"), canary=version)
    new = StandIn(version=version)

    registry.exchange(version, new)

    assert registry.get(label="canary") is registry.get(version=version) is new
    assert registry.get().manifest.version == "2"


@pytest.mark.parametrize(("old", "new", "served"), [("1", "2", "3"), ("1", "3", "3"), ("3", "2", "2"), ("3", "1", "1")])
@pytest.mark.parametrize("stays", [False, True])
def test_a_loaded_version_can_take_anothers_place(old, new, served, stays):
    """As when a canary's bundle comes by another way; without a stable label, the default stays or moves to it."""
    registry = registry_of(*(StandIn(version=v) for v in "123"), canary=old)
    taking = registry.get(version=new)

    registry.exchange(old, taking, labels=["canary"] if stays else None)

    assert registry.get().manifest.version == served
    assert registry.get(label="canary") is taking
    assert versions(registry) == [("standin", v) for v in "123" if stays or v != old]


def test_a_version_that_is_served_on_keeps_the_labels_that_do_not_move():
    """As one whose bundle another path holds too: what takes its place gets the labels of the path that changed."""
    one, three = StandIn(version="1"), StandIn(version="3")
    registry = registry_of(one, StandIn(version="2"), canary="1", blue="1", green="2")

    assert registry.exchange("1", three, labels=["canary", "green"]) is one

    assert (registry.labels_of(one), registry.labels_of(three)) == (("blue",), ("canary",))
    assert registry.get(label="green") is registry.get() is registry.get(version="2")


def test_nothing_takes_the_place_of_what_is_not_there():
    """And nothing has changed."""
    registry = registry_of(StandIn(version="1"))

    with pytest.raises(NotFoundError, match="no detector 'standin' version '7'"):
        registry.exchange("7", StandIn(version="2"))

    assert versions(registry) == [("standin", "1")]


def test_a_withdrawn_version_keeps_place_and_labels_and_tells_callers_to_retry():
    """Other versions answer; it is not listed; nothing can be labelled with it."""
    one, two = StandIn(version="1"), StandIn(version="2")
    registry = registry_of(one, two, canary="2")

    assert registry.withdraw("standin", "2") is two

    for asked in ({}, {"version": "2"}, {"label": "canary"}):
        with pytest.raises(UnavailableError, match=r"^version '2' is being replaced; retry after 2 s$") as e:
            registry.get(**asked)
        assert e.value.retry_after_seconds == 2.0
    assert registry.get(version="1") is one
    assert versions(registry) == [("standin", "1")]
    assert registry.loaded("standin", "2") is registry.default("standin") is None
    assert registry.has_place("standin", "2")
    assert [registry.withdrawn("standin", v) for v in "123"] == [False, True, False]
    for change in (registry.set_label, lambda *_: registry.withdraw("standin", "2")):
        with pytest.raises(NotFoundError, match="version '2' is withdrawn"):
            change("standin", "2", "stable")

    three = StandIn(version="3")
    assert registry.exchange("2", three) is None

    assert registry.get() is registry.get(label="canary") is three


def test_a_withdrawn_version_goes_with_its_labels_and_its_name():
    """Nobody can move labels of what is not there; and nobody is asked who may serve when nothing does."""
    one, other, asked = StandIn(version="1"), StandIn("other"), []
    registry = registry_of(one, other, canary="1", stable="1")
    registry.check_default = asked.append
    registry.withdraw("standin", "1")

    with pytest.raises(NotFoundError, match=r"^no detector named 'x'; loaded: other version 1$"):
        registry.get("x")
    assert registry.remove("standin", "1") is None

    assert not registry.has_place("standin", "1")
    assert registry.get() is other
    registry.withdraw("other", "1")
    with pytest.raises(NotFoundError, match=r"^no detector named 'x'; loaded: nothing$"):
        registry.get("x")
    assert asked == []
    registry.add(one, ["canary"])
    registry.add(StandIn(version="2"))
    assert registry.labels_of(one) == ("canary",)
    registry.withdraw("standin", "1")
    registry.remove("standin", "1")
    assert registry.labelled("standin", "canary") is None


def test_detectors_and_labels_are_told_in_their_order_however_they_came():
    """Name, then version; a caller's own words are cut where they would fill the message."""
    registry = registry_of(StandIn("b"), StandIn("a", "2"), StandIn("a", "1"), stable="1", canary="1")

    assert versions(registry) == [("a", "1"), ("a", "2"), ("b", "1")]
    for asked, message in (
        ({"name": "b", "label": "x"}, "no version carries the label 'x'; labels: canary = 1, stable = 1"),
        ({"name": "a", "label": "x"}, "no version carries the label 'x'; labels: none"),
        ({"name": "b", "version": "v" * 80}, f"no version '{'v' * 80}' of that detector; loaded: "),
        ({"name": "b", "version": "v" * 81}, f"no version '{'v' * 77}...' of that detector; loaded: "),
    ):
        with pytest.raises(NotFoundError) as e:
            registry.get(**asked)
        assert str(e.value).startswith(message)


@pytest.mark.parametrize(
    "change", [lambda r: r.set_label("gone", "1", "stable"), lambda r: r.remove("gone", "1")], ids=["label", "unload"]
)
def test_of_a_name_that_is_not_there_nothing_is_changed(change):
    """It may have been unloaded by somebody else a moment ago."""
    registry = registry_of(StandIn())

    with pytest.raises(NotFoundError, match=r"^no detector 'gone' version '1'; loaded: standin version 1$"):
        change(registry)

    assert versions(registry) == [("standin", "1")]


def test_whoever_must_agree_is_asked_about_another_default_alone_and_before_it_serves():
    """Reloads that keep the version, and labels that move elsewhere, change nothing for callers who name none."""
    asked = []
    registry = registry_of(StandIn(version="1"), StandIn(version="2"))

    def refuse(detector):
        asked.append((detector.manifest.version, registry.get().manifest.version))
        raise PreconditionError("no")

    registry.check_default = refuse
    registry.set_label("standin", "1", "canary")
    registry.set_label("standin", "2", "stable")
    registry.remove_label("standin", "stable")
    registry.exchange("1", StandIn(version="3"))
    assert asked == []

    registry.remove_label("standin", "canary")
    with pytest.raises(PreconditionError, match=r"^without version '2' another one serves by default: no$"):
        registry.remove("standin", "2")
    with pytest.raises(PreconditionError, match=r"^no$"):
        registry.set_label("standin", "3", "stable")
    with pytest.raises(PreconditionError, match=r"^no$"):
        registry.exchange("2", StandIn(version="4"))
    assert asked == [("3", "2"), ("3", "2"), ("4", "2")]
    assert versions(registry) == [("standin", "2"), ("standin", "3")]

    assert registry.set_label("standin", "3", "stable", force=True) == ""
    assert registry.get().manifest.version == "3"

"""Detectors by name, version and label."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from softkin.errors import ConflictError, InvalidInputError, NotFoundError, PreconditionError, UnavailableError
from softkin.scoring_detector import ScoringDetector

STABLE = "stable"
"""The label whose version serves when a request names neither version nor label."""
SHADOW = "shadow"
"""The label whose version scores a share of the live traffic silently."""
RETRY_AFTER_SECONDS = 2.0
"""What callers of a withdrawn version are told to wait."""
_LABEL = re.compile(r"[A-Za-z0-9_-]{1,40}")


@dataclass(frozen=True)
class _Named:
    """The versions of one name, in the order they came, and where its labels are. Never changed, only replaced."""

    versions: Mapping[str, ScoringDetector | None] = field(default_factory=dict)
    """None: withdrawn."""
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def default(self) -> str:
        return self.labels.get(STABLE) or list(self.versions)[-1]


class Registry:
    """The loaded detectors, by name, version and label.

    The version that serves by default is the one labelled `stable`; without that label, the last one added. Readers in
    other threads see the detectors before a change or after it, never between.

    Attributes:
        check_default: given the version that a change would make the default, before it does; raises PreconditionError
            where it may not.
    """

    def __init__(self) -> None:
        self.check_default: Callable[[ScoringDetector], None] = lambda detector: None
        self._lock = threading.Lock()
        self._named: dict[str, _Named] = {}

    def add(self, detector: ScoringDetector, labels: Iterable[str] = (), *, keep_default: bool = False) -> None:
        """Serve a detector, and move labels to it.

        Args:
            detector: of a name and version that are not loaded.
            labels: that it shall carry.
            keep_default: whether a version that serves by default, though none is labelled stable, gets that label, so
                that this one does not take its place.

        Raises:
            InvalidInputError: a label is unfit.
            ConflictError: that name and version is loaded already.
        """
        labels = tuple(map(check_label, labels))
        name, version = detector.manifest.name, detector.manifest.version
        with self._lock:
            named = self._named.get(name, _Named())
            self.refuse_loaded(name, version)
            pinned = {STABLE: named.default} if keep_default and named.versions else {}
            moved = dict.fromkeys(labels, version)
            self._put(name, {**named.versions, version: detector}, {**pinned, **named.labels, **moved})

    def refuse_loaded(self, name: str, version: str) -> None:
        """Check, before much work, what `add` will check.

        Raises:
            ConflictError: that name and version is loaded already.
        """
        if self.loaded(name, version) is not None:
            raise ConflictError(
                f"detector {name!r} version {version!r} is loaded already; give each bundle a name or a version of its "
                "own (--name and --version of fit), or unload that one first"
            )

    def exchange(
        self, version: str, detector: ScoringDetector, *, labels: Collection[str] | None = None
    ) -> ScoringDetector | None:
        """Serve a detector in the place of a version of its name: it gets its labels, and its turn as the default.

        Args:
            version: the one to serve no longer; calls that hold it finish on it.
            detector: of the same or another version, loaded already or not.
            labels: where that version shall be served on, beside the detector: those of its labels that move. When
                None, all do.

        Returns:
            What was in that place; None if it had been withdrawn.

        Raises:
            NotFoundError: there is no such version of the detector's name.
            PreconditionError: by `check_default`.
        """
        name, new = detector.manifest.name, detector.manifest.version
        with self._lock:
            before = self._version(name, version)
            named = self._named[name]
            order = list(named.versions)
            # One that is loaded already keeps its own turn, which may be a later one, unless it becomes the default.
            if new != version and (new not in order or version == named.default):
                order = [v for v in order if v != new]
                order.insert(order.index(version) + 1, new)
            if labels is None and new != version:
                order.remove(version)
            versions = {v: detector if v == new else named.versions[v] for v in order}
            moved = named.labels.keys() if labels is None else labels
            labelled = {k: new if v == version and k in moved else v for k, v in named.labels.items()}
            self._put(name, versions, labelled)
        return before

    def withdraw(self, name: str, version: str) -> ScoringDetector:
        """Serve a version no longer, but keep its place and labels for what `exchange` will put there.

        Meanwhile, requests for it are told to retry.

        Raises:
            NotFoundError: no such name or version, or it is withdrawn already.
        """
        with self._lock:
            found = self._loaded_version(name, version)
            named = self._named[name]
            self._put(name, {**named.versions, version: None}, named.labels)
        return found

    def remove(self, name: str, version: str) -> ScoringDetector | None:
        """Serve a version no longer; calls that hold it finish on it.

        Returns:
            The version; None if it had been withdrawn: then its labels go with it, and the name if there is no other.

        Raises:
            NotFoundError: no such name or version.
            PreconditionError: it carries a label, or is the only one of its name, or by `check_default`.
        """
        with self._lock:
            found = self._version(name, version)
            named = self._named[name]
            carried = sorted(k for k, v in named.labels.items() if v == version)
            others = {v: d for v, d in named.versions.items() if v != version}
            if found is not None and carried:
                raise PreconditionError(f"version {version!r} carries {', '.join(carried)}; move its labels first")
            if found is not None and all(d is None for d in others.values()):
                raise PreconditionError(f"version {version!r} is the only one of {name!r}; load another one first")
            try:
                self._put(name, others, {k: v for k, v in named.labels.items() if v != version})
            except PreconditionError as e:
                raise PreconditionError(f"without version {version!r} another one serves by default: {e}") from None
        return found

    def set_label(self, name: str, version: str, label: str, *, force: bool = False) -> str:
        """Move a label to a loaded version; returns the version that had it, empty if none.

        Args:
            name: of the detector.
            version: that shall carry the label.
            label: which one.
            force: whether the version may become the default whatever `check_default` says.

        Raises:
            InvalidInputError: the label is unfit.
            NotFoundError: no such name or version.
            PreconditionError: by `check_default`.
        """
        check_label(label)
        with self._lock:
            self._loaded_version(name, version)
            named = self._named[name]
            self._put(name, named.versions, {**named.labels, label: version}, force=force)
            return named.labels.get(label, "")

    def remove_label(self, name: str, label: str) -> str:
        """Take a label away; returns the version that had it.

        Raises:
            NotFoundError: no such name, or no version carries it.
            PreconditionError: by `check_default`.
        """
        with self._lock:
            named = self._named.get(name)
            if named is None:
                raise NotFoundError(f"no detector named {_shown(name)}; loaded: {self._loaded()}")
            if label not in named.labels:
                raise _no_label(named, label)
            self._put(name, named.versions, {k: v for k, v in named.labels.items() if k != label})
            return named.labels[label]

    def get(self, name: str = "", version: str = "", label: str = "") -> ScoringDetector:
        """Find a detector.

        Args:
            name: empty for the only one loaded.
            version: empty for the one that carries the label, or serves by default.
            label: instead of a version.

        Raises:
            InvalidInputError: no name given and there are several, or both version and label are given.
            NotFoundError: no such name, version or label; the message lists what is loaded.
            UnavailableError: nothing is loaded, or the version is being replaced.
        """
        named = self._name(name)
        if label:
            if version:
                raise InvalidInputError("label", f"got {_shown(label)} beside a version; give one of them")
            if label not in named.labels:
                raise _no_label(named, label)
            version = named.labels[label]
        version = version or named.default
        if version not in named.versions:
            raise NotFoundError(f"no version {_shown(version)} of that detector; loaded: {self._loaded()}")
        found = named.versions[version]
        if found is None:
            raise UnavailableError(
                f"version {version!r} is being replaced; retry after {RETRY_AFTER_SECONDS:g} s", RETRY_AFTER_SECONDS
            )
        return found

    def loaded(self, name: str, version: str) -> ScoringDetector | None:
        """A version, if it is loaded."""
        named = self._named.get(name)
        return None if named is None else named.versions.get(version)

    def has_place(self, name: str, version: str) -> bool:
        """Whether a version is loaded or withdrawn."""
        return version in self._named.get(name, _Named()).versions

    def withdrawn(self, name: str, version: str) -> bool:
        """Whether a version has a place with nothing in it."""
        return self.has_place(name, version) and self.loaded(name, version) is None

    def labelled(self, name: str, label: str) -> ScoringDetector | None:
        """The version that carries a label, if one does."""
        named = self._named.get(name)
        return None if named is None or label not in named.labels else named.versions[named.labels[label]]

    def default(self, name: str) -> ScoringDetector | None:
        """The version of a name that serves by default, if there is one."""
        named = self._named.get(name)
        return None if named is None else named.versions[named.default]

    def labels_of(self, detector: ScoringDetector) -> tuple[str, ...]:
        """The labels that a detector carries, sorted."""
        named = self._named.get(detector.manifest.name, _Named())
        return tuple(sorted(k for k, v in named.labels.items() if named.versions[v] is detector))

    def __iter__(self) -> Iterator[ScoringDetector]:
        """All detectors, in order of name, then version."""
        named = self._named
        for name in sorted(named):
            yield from (d for _, d in sorted(named[name].versions.items()) if d is not None)

    def _put(
        self,
        name: str,
        versions: Mapping[str, ScoringDetector | None],
        labels: Mapping[str, str],
        *,
        force: bool = False,
    ) -> None:
        named = _Named(versions, labels)
        default = versions[named.default] if versions else None
        if default is not None and default is not self.default(name) and not force:
            self.check_default(default)
        changed = {**self._named, name: named}
        self._named = {k: v for k, v in changed.items() if v.versions}

    def _name(self, name: str) -> _Named:
        named = self._named
        if not named:
            raise UnavailableError("no detector is loaded; retry when the health service reports SERVING")
        if not name and len(named) > 1:
            raise InvalidInputError(
                "detector", f"empty, but several are loaded; name one of: {', '.join(sorted(named))}"
            )
        found = named.get(name) if name else next(iter(named.values()))
        if found is None:
            raise NotFoundError(f"no detector named {_shown(name)}; loaded: {self._loaded()}")
        return found

    def _version(self, name: str, version: str) -> ScoringDetector | None:
        versions = self._named.get(name, _Named()).versions
        if version not in versions:
            raise NotFoundError(f"no detector {_shown(name)} version {_shown(version)}; loaded: {self._loaded()}")
        return versions[version]

    def _loaded_version(self, name: str, version: str) -> ScoringDetector:
        found = self._version(name, version)
        if found is None:
            raise NotFoundError(f"detector {name!r} version {version!r} is withdrawn; loaded: {self._loaded()}")
        return found

    def _loaded(self) -> str:
        # With the word "version" between, because readers of "a 1" would give that as the name.
        return ", ".join(f"{d.manifest.name} version {d.manifest.version}" for d in self) or "nothing"


def _no_label(named: _Named, label: str) -> NotFoundError:
    carried = ", ".join(f"{k} = {v}" for k, v in sorted(named.labels.items())) or "none"
    return NotFoundError(f"no version carries the label {_shown(label)}; labels: {carried}")


def check_label(label: str, field: str = "label") -> str:
    """Return the label if it is fit to be one.

    Args:
        label: what was asked for.
        field: where it stands in the request.

    Raises:
        InvalidInputError: empty, too long, or with other characters than letters, digits, '-' and '_'.
    """
    if not _LABEL.fullmatch(label):
        raise InvalidInputError(field, f"got {_shown(label)}; 1 to 40 letters, digits, '-' or '_' are allowed")
    return label


def _shown(text: str) -> str:
    """A caller's text for a message: quoted and cut, because status messages travel in small headers."""
    return repr(text if len(text) <= 80 else text[:77] + "...")

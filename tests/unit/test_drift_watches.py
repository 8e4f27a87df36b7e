"""A server's drift watches: one per detector, saved so that a restart goes on."""

from __future__ import annotations

import errno
import fcntl
import logging
import shutil
import threading

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from softkin.drift import MOST_WAITING_ROWS, DriftWatch
from softkin.drift_watches import RANKED_TOGETHER, DriftWatches
from softkin.errors import NotFoundError, StateError
from standin import StandIn


def rows(n, value=1.0):
    """Rows whose stand-in scores are 6 times their value."""
    return np.full((n, 2, 3), value, np.float32)


def watching(folder, detector, **options):
    """Watches that have this detector."""
    watches = DriftWatches(folder=folder, **options)
    watches.add(detector)
    return watches


def files(folder):
    """Names of everything in the folder."""
    return sorted(p.name for p in folder.iterdir())


def state_file(folder, detector):
    """Where the state of a detector is kept."""
    m = detector.manifest
    return folder / f"{m.name}-{m.version}-{detector.digest[:16]}.safetensors"


def test_a_restart_goes_on_where_the_last_one_ended(tmp_path):
    """Rows, evidence and recent p-values; what is saved is a plain safetensors file, and no other file stays."""
    detector, folder = StandIn(), tmp_path / "a" / "state"
    first = watching(folder, detector)
    with first.watching():
        first.observe(detector.score(rows(7, 50.0)))
    before = first.report(detector, 0.05)

    second = watching(folder, detector)

    after = second.report(detector, 0.05)
    assert (before.rows, before.max_log10_martingale > 1) == (7, True)
    assert vars(after) | {"histogram": None} == vars(before) | {"histogram": None}
    assert after.histogram.tolist() == before.histogram.tolist()
    assert files(folder) == [".lock", state_file(folder, detector).name]
    assert load_file(state_file(folder, detector))["counters"][0] == 7


def test_several_restarts_add_up(tmp_path):
    """Each goes on from the one before it."""
    detector = StandIn()
    for k in range(1, 5):
        watches = watching(tmp_path, detector)
        with watches.watching():
            watches.observe(detector.score(rows(100 * k)))

    assert watching(tmp_path, detector).report(detector, 0.05).rows == 1000


def test_without_a_folder_nothing_is_kept(tmp_path, monkeypatch):
    """And nothing is written anywhere."""
    monkeypatch.chdir(tmp_path)
    detector = StandIn()
    watches = watching(None, detector)

    with watches.watching():
        watches.observe(detector.score(rows(7)))
        watches.save()

    assert watches.report(detector, 0.05).rows == 7
    assert watching(None, detector).report(detector, 0.05).rows == 0
    assert list(tmp_path.iterdir()) == []


def test_rows_belong_to_the_detector_that_scored_them(tmp_path):
    """One watch per detector and version, one file each."""
    detectors = [StandIn("a"), StandIn("a", "2"), StandIn("b")]
    watches = DriftWatches(folder=tmp_path, level=0.25)
    for d in detectors:
        watches.add(d)

    with watches.watching():
        for n, d in enumerate(detectors, start=1):
            watches.observe(d.score(rows(n)))
        assert watches.add(detectors[2]).report().rows == 3  # which is watched already, and goes on

    assert [watches.report(d, 0.05).rows for d in detectors] == [1, 2, 3]
    assert {watches.report(d, 0.05).level for d in detectors} == {0.25}
    assert watches.report(detectors[0], 0.2).alpha == 0.2
    assert files(tmp_path) == sorted([".lock", *(state_file(tmp_path, d).name for d in detectors)])


def test_another_digest_starts_anew_and_leaves_the_old_state_alone(tmp_path):
    """A new version has its own calibration rows; the old one can come back."""
    old, new = StandIn(version="1"), StandIn(version="2")
    watches = watching(tmp_path, old)
    with watches.watching():
        watches.observe(old.score(rows(5)))

    other = watching(tmp_path, new)
    with other.watching():
        other.observe(new.score(rows(2)))

    assert [watching(tmp_path, d).report(d, 0.05).rows for d in (new, old)] == [2, 5]


def test_a_watch_that_is_removed_is_saved_and_rows_that_come_late_are_left_out(tmp_path):
    """Requests in flight outlive the detector that they hold; the others' rows still count."""
    gone, kept = StandIn(version="1"), StandIn(version="2")
    watches = watching(tmp_path, gone)
    watches.add(kept)
    with watches.watching():
        watches.observe(gone.score(rows(5)))

        watches.remove(gone.digest)
        saved = load_file(state_file(tmp_path, gone))["counters"][0]
        watches.observe(gone.score(rows(3)))
        watches.observe(kept.score(rows(2)))
        with pytest.raises(NotFoundError, match="detector 'standin' version '1' has just been unloaded"):
            watches.report(gone, 0.05)
        again = watches.add(gone).report()

    assert (saved, again.rows, watches.report(kept, 0.05).rows) == (5, 5, 2)


def _cut(file):
    file.write_bytes(file.read_bytes()[:-1])


def _text(file):
    file.write_text("not safetensors")


def _folder(file):
    file.unlink()
    file.mkdir()


def _other_arrays(file):
    save_file({"x": np.zeros(3)}, file)


def _other_counts(file):
    save_file(load_file(file) | {"counters": np.array([6, 0])}, file)


@pytest.mark.parametrize("damage", [_cut, _text, _folder, _other_arrays, _other_counts])
def test_a_damaged_state_is_refused_with_the_file_and_the_remedy(tmp_path, damage):
    """Beginning anew would lose evidence silently: that is for a person to decide. The file stays as it is."""
    detector, other = StandIn(), StandIn("b")
    watches = watching(tmp_path, detector)
    with watches.watching():
        watches.observe(detector.score(rows(5)))
    file = state_file(tmp_path, detector)
    damage(file)
    content = None if file.is_dir() else file.read_bytes()

    again = DriftWatches(folder=tmp_path)
    with again.watching():
        again.add(other)
        with pytest.raises(StateError) as e:
            again.add(detector)

    assert str(e.value).startswith(f"{file}: cannot go on from this drift state (")
    assert str(e.value).endswith("); remove the file to begin anew")
    assert content == (None if file.is_dir() else file.read_bytes())
    assert state_file(tmp_path, other).exists()

    shutil.rmtree(file) if file.is_dir() else file.unlink()
    assert watching(tmp_path, detector).report(detector, 0.05).rows == 0


def test_rows_are_ranked_in_a_thread_of_their_own_while_it_watches(monkeypatch):
    """Whoever brings them goes on at once, even while a ranking takes long; all are ranked before a report."""
    ranked, go_on = [], threading.Event()
    catch_up = DriftWatch.catch_up

    def noting(watch):
        ranked.append(threading.current_thread().name)
        assert go_on.wait(20)
        catch_up(watch)

    monkeypatch.setattr(DriftWatch, "catch_up", noting)
    detector = StandIn()
    watches = DriftWatches()
    watches.add(detector)
    with watches.watching():
        for _ in range(5):
            watches.observe(detector.score(rows(RANKED_TOGETHER)))
        go_on.set()
        assert watches.report(detector, 0.05).rows == 5 * RANKED_TOGETHER
    watches.observe(detector.score(rows(RANKED_TOGETHER)))

    assert ranked == ["drift", threading.current_thread().name]  # once for all five


def test_what_waits_to_be_ranked_is_bounded(monkeypatch):
    """A thread that falls behind must not let memory grow: then whoever brings rows ranks them."""
    waiting, go_on = [], threading.Event()
    note, catch_up = DriftWatch.note, DriftWatch.catch_up

    def noting(watch, scores):
        waiting.append(note(watch, scores))
        return waiting[-1]

    def slow(watch):
        if threading.current_thread().name == "drift":
            assert go_on.wait(20)
        catch_up(watch)

    monkeypatch.setattr(DriftWatch, "note", noting)
    monkeypatch.setattr(DriftWatch, "catch_up", slow)
    detector = StandIn()
    watches = DriftWatches()
    watches.add(detector)
    with watches.watching():
        for _ in range(3 * MOST_WAITING_ROWS // 1000):
            watches.observe(detector.score(rows(1000)))
        go_on.set()

    assert MOST_WAITING_ROWS <= max(waiting) < MOST_WAITING_ROWS + 1000


def test_a_folder_has_one_holder_at_a_time(tmp_path):
    """Two servers would overwrite each other's evidence; once the first has gone, the next may have it."""
    detector = StandIn()
    first, second = watching(tmp_path, detector), watching(tmp_path, detector)

    with first.watching():
        first.observe(detector.score(rows(3)))
        with pytest.raises(StateError) as e, second.watching():
            raise AssertionError("held twice")
    with second.watching():
        pass

    assert str(e.value) == f"{tmp_path}: another server keeps its drift state here; give each its own"


def test_a_folder_that_cannot_be_locked_is_refused_as_such(tmp_path, monkeypatch):
    """As on some network file systems: there is no other server, and none is to be looked for."""

    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)

    with pytest.raises(StateError) as e, DriftWatches(folder=tmp_path).watching():
        raise AssertionError("cannot be held")

    assert str(e.value) == (
        f"{tmp_path}: cannot be locked (No locks available); choose another --drift-state, on a file system with locks"
    )


def test_what_a_killed_server_left_half_written_goes(tmp_path):
    """The next holder of the folder removes it, and nothing else."""
    kept = {".lock", "other.txt", ".hidden", "toy-1-0123456789abcdef.safetensors"}
    for name in {*kept, ".toy-1-0123456789abcdef.safetensors.4711", ".toy-2-0123456789abcdef.safetensors.4711"}:
        (tmp_path / name).touch()

    with DriftWatches(folder=tmp_path).watching():
        assert {file.name for file in tmp_path.iterdir()} == kept


@pytest.mark.parametrize("below", ["", "deeper"])
def test_a_folder_that_cannot_be_written_is_refused(tmp_path, below):
    """A file stands where a folder is needed."""
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / below

    with pytest.raises(StateError) as e, DriftWatches(folder=folder).watching():
        raise AssertionError("cannot be held")

    reason = "Not a directory" if below else "File exists"
    assert str(e.value) == f"{folder}: cannot be written ({reason}); choose another --drift-state"


def test_a_save_that_fails_is_logged_and_scoring_goes_on(tmp_path, caplog):
    """The disk may come back: the next save tries again."""
    detector, folder = StandIn(), tmp_path / "state"
    watches = watching(folder, detector)

    with watches.watching():
        shutil.rmtree(folder)
        with caplog.at_level(logging.ERROR, "softkin.server"):
            watches.save()
        watches.observe(detector.score(rows(4)))
        folder.mkdir()

    [record] = caplog.records
    assert record.getMessage().startswith(f'event=drift_state_not_saved file={state_file(folder, detector)} error="')
    assert files(folder) == [state_file(folder, detector).name]
    assert watching(folder, detector).report(detector, 0.05).rows == 4


def test_a_failed_save_leaves_the_old_state_whole_and_no_other_file(tmp_path, monkeypatch):
    """Written beside it, synced, then renamed."""
    from softkin import staging

    detector = StandIn()
    watches = watching(tmp_path, detector)
    with watches.watching():
        watches.observe(detector.score(rows(3)))
    watches.observe(detector.score(rows(1)))

    def no_space(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(staging.os, "fsync", no_space)
    watches.save()

    assert files(tmp_path) == [".lock", state_file(tmp_path, detector).name]
    assert watching(tmp_path, detector).report(detector, 0.05).rows == 3


def test_the_state_is_saved_again_and_again_while_it_is_held(tmp_path):
    """So a process that is killed loses the rows of a few seconds only; the thread ends with the block."""
    detector = StandIn()
    watches = watching(tmp_path, detector, save_seconds=0.01)
    file = state_file(tmp_path, detector)

    def saved():
        return load_file(file)["counters"][0] if file.exists() else -1

    def wait_for(n):
        for _ in range(1000):
            if saved() == n:
                return True
            threading.Event().wait(0.005)
        return False

    with watches.watching():
        reached = [wait_for(0)]
        for n in (3, 10):
            watches.observe(detector.score(rows(n - watches.report(detector, 0.05).rows)))
            reached.append(wait_for(n))
        named = [t.name for t in threading.enumerate()]

    assert reached == [True, True, True]
    assert "drift-state" in named
    assert "drift-state" not in [t.name for t in threading.enumerate()]
    assert files(tmp_path) == [".lock", file.name]


@pytest.mark.parametrize("what", ["save", "remove"])
def test_one_at_a_time_saves(tmp_path, what):
    """Of two the older state could be the last that is written."""
    detector = StandIn()
    watches = watching(tmp_path, detector)
    arguments = () if what == "save" else (detector.digest,)
    saving = threading.Thread(target=getattr(watches, what), args=arguments)

    with watches._saving:
        saving.start()
        saving.join(0.05)
        meanwhile = saving.is_alive(), files(tmp_path)
    saving.join(20)

    assert meanwhile == (True, [])
    assert files(tmp_path) == [state_file(tmp_path, detector).name]


def test_saves_while_rows_come_in_are_always_whole(tmp_path):
    """Every file that was ever in place can be gone on from: its counts belong together."""
    detector = StandIn()
    watches = watching(tmp_path, detector)
    ended, seen = threading.Event(), []

    def observe():
        while not ended.is_set():
            watches.observe(detector.score(rows(40)))

    thread = threading.Thread(target=observe)
    with watches.watching():
        thread.start()
        try:
            for _ in range(60):
                watches.save()
                seen.append(watching(tmp_path, detector).report(detector, 0.05).rows)
        finally:
            ended.set()
            thread.join()

    assert seen == sorted(seen)
    assert seen[-1] > 0
    assert watching(tmp_path, detector).report(detector, 0.05).rows == watches.report(detector, 0.05).rows

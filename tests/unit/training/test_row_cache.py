"""Rows decoded once: when they are made again, and when not."""

from __future__ import annotations

import os

import datasets
import numpy as np
import pytest

from softkin.errors import DataError, RecipeError
from softkin_training import row_cache
from softkin_training.row_cache import cached_rows, optional_package

pytestmark = pytest.mark.training


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


class Made:
    """Rows that tell how often they had to be made."""

    times = 0

    def __call__(self, *files, **settings):
        """Which making of them the rows of these files come from."""

        def rows():
            self.times += 1
            yield np.array([[self.times]])

        return int(cached_rows(files, settings, rows)[np.array([0])][0, 0])


def write(path, content=b"four", seconds=1000):
    """A file that was changed last at a given time."""
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    os.utime(path, ns=(0, seconds * 10**9))
    return path


def test_rows_are_made_once_as_long_as_nothing_has_changed(tmp_path, monkeypatch):
    """In whatever order the settings are named, and by whatever path the file is."""
    made, file = Made(), write(tmp_path / "a")

    assert made(file, size=[3, 4], mode="L") == made(file, mode="L", size=[3, 4]) == 1
    monkeypatch.chdir(tmp_path)
    assert made(file.relative_to(tmp_path), size=[3, 4], mode="L") == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda file: write(file, seconds=1001),
        lambda file: os.utime(file, ns=(0, 1000 * 10**9 + 1)),
        lambda file: write(file, b"fives"),
    ],
    ids=["later", "a nanosecond later", "longer"],
)
def test_a_file_that_has_changed_is_read_again_and_the_rows_of_the_old_one_stay(tmp_path, change):
    """Told by its time and its size: either is enough."""
    made, file = Made(), write(tmp_path / "a")
    assert made(file) == 1

    change(file)
    assert made(file) == 2
    write(file)
    assert made(file) == 1


def test_files_that_look_alike_are_told_apart_by_their_folders(tmp_path, monkeypatch):
    """By relative paths from different folders, too, and by their order."""
    made = Made()
    a, b = (write(tmp_path / name / "x") for name in "ab")

    assert (made(a), made(b), made(a, b), made(b, a)) == (1, 2, 3, 4)
    for folder, times in ((a.parent, 1), (b.parent, 2)):
        monkeypatch.chdir(folder)
        assert made(a.relative_to(a.parent)) == times


def test_rows_of_other_settings_are_others(tmp_path):
    """Every setting that decides them."""
    made, file = Made(), write(tmp_path / "a")

    assert [made(file, mode=m, size=s) for m in ("L", "RGB") for s in ([], [1, 2], [2, 1])] == [1, 2, 3, 4, 5, 6]


def test_rows_that_an_older_version_made_another_way_are_made_again(tmp_path, monkeypatch):
    """Whoever changes how sources become rows counts it, and upgrades mix nothing."""
    made, file = Made(), write(tmp_path / "a")
    assert made(file) == 1

    monkeypatch.setattr(row_cache, "FORMAT", row_cache.FORMAT + 1)

    assert made(file) == 2


def test_a_file_that_is_gone_is_named(tmp_path):
    """It may have been there when the folder was listed."""
    with pytest.raises(DataError) as e:
        Made()(write(tmp_path / "a"), tmp_path / "b")

    assert str(e.value) == f"{tmp_path / 'b'}: cannot be read (No such file or directory)"


def test_a_package_that_is_not_there_is_named_with_the_extra_that_brings_it():
    """And with what needs it, and why it failed: it may be there, but broken."""
    with pytest.raises(RecipeError) as e:
        optional_package("softkin_nowhere", "datasets", "data.source = 'csv'")

    assert str(e.value) == (
        "data.source = 'csv' needs the package softkin_nowhere (No module named 'softkin_nowhere'); pip install "
        "'softkin[datasets]'"
    )
    assert optional_package("json", "none", "nothing").loads("1") == 1

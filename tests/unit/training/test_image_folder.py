"""Images in folders, one per class."""

from __future__ import annotations

import sys

import datasets
import numpy as np
import pytest
from PIL import Image

from softkin import Detector
from softkin.errors import DataError, RecipeError
from softkin_training.cli import main
from softkin_training.config import load_recipe
from softkin_training.data import load_dataset

pytestmark = pytest.mark.training

RECIPE = """
name = "folder"
[data]
source = "folder"
calibration_rows = 40
[model]
kind = "cnn"
channels = [4, 8]
dense = 16
[training]
epochs = 3
batch_size = 16
learning_rate = 5e-3
accelerator = "cpu"
cpu_threads = 1
probe_rows = 0
[detector]
layers = ["conv2", "dense"]
bank_rows = 100
"""
CLASSES = ("blue", "green", "red")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of the test's own."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache" / "softkin"


def paint(folder, rows, *, size=(8, 8), seed=0):
    """Images of noise with one strong channel a class."""
    rng = np.random.default_rng(seed)
    for channel, name in enumerate(reversed(CLASSES)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(rows):
            x = rng.integers(0, 120, size=(*size, 3), dtype=np.uint8)
            x[..., channel] += 120
            Image.fromarray(x).save(folder / name / f"{i:03}.png")


@pytest.fixture
def folder(tmp_path):
    """40 training and 12 test images of three classes."""
    paint(tmp_path / "images" / "train", 40)
    paint(tmp_path / "images" / "test", 12, seed=1)
    return tmp_path / "images"


def recipe(tmp_path, path, *overrides):
    """The recipe above over a folder."""
    file = tmp_path / "folder.toml"
    file.write_text(RECIPE)
    return load_recipe(file, [f"data.path={path}", *overrides])


def test_classes_are_the_folders_in_order(folder, tmp_path):
    """Labels, ids and pixels are those of the files."""
    dataset = load_dataset(recipe(tmp_path, folder))

    assert dataset.class_names == CLASSES
    assert (dataset.train.dtype, dataset.train.row_shape) == (np.uint8, (8, 8, 3))
    assert (len(dataset.train), len(dataset.calibration), len(dataset.test)) == (80, 40, 36)
    files = [p for name in CLASSES for p in sorted((folder / "train" / name).iterdir())]
    for rows in (dataset.train, dataset.calibration):
        for x, y, i in zip(rows.x, rows.y, rows.ids, strict=True):
            assert files[i].parent.name == CLASSES[y]
            assert np.array_equal(x, np.asarray(Image.open(files[i])))
    assert dataset.test.ids.tolist() == list(range(120, 156))
    assert dataset.naming(np.array([119, 0])) == ["train/red/039.png", "train/blue/000.png"]


def test_a_folder_without_a_test_split_sets_rows_aside(folder, tmp_path):
    """data.test_rows of them, disjoint from the others."""
    dataset = load_dataset(recipe(tmp_path, folder / "train", "data.test_rows=20", "data.known_classes=[2, 0]"))

    ids = [i for part in (dataset.train, dataset.calibration, dataset.test) for i in part.ids.tolist()]
    assert (len(dataset.test), len(ids), len(set(ids))) == (20, 80, 80)
    assert {name.partition("/")[0] for name in dataset.naming(dataset.train.ids)} == {"red", "blue"}
    assert dataset.class_names == ("red", "blue")
    assert len(dataset.outliers["held-out classes"]) == 40


def test_links_to_folders_are_followed_and_hidden_folders_left_out(folder, tmp_path):
    """Images behind a link were silently missing, copies that Jupyter keeps silently there."""
    (tmp_path / "elsewhere").mkdir()
    hidden = folder / "train" / "red" / ".ipynb_checkpoints"
    hidden.mkdir()
    for seed, file in enumerate((tmp_path / "elsewhere" / "x.png", tmp_path / "elsewhere" / "y.png", hidden / "x.png")):
        Image.fromarray(np.random.default_rng(seed).integers(0, 255, (8, 8, 3), np.uint8)).save(file)
    (folder / "train" / "red" / "more").symlink_to(tmp_path / "elsewhere")
    (folder / "train" / "red" / "round").symlink_to(folder / "train" / "red")

    dataset = load_dataset(recipe(tmp_path, folder))

    assert len(dataset.train) + len(dataset.calibration) == 122


def test_images_are_decoded_once_and_again_when_they_change(folder, tmp_path, cache):
    """The cache is used as long as files and settings stay."""
    first = load_dataset(recipe(tmp_path, folder)).train
    made = sorted((p.name, p.stat().st_mtime_ns) for p in cache.iterdir())
    again = load_dataset(recipe(tmp_path, folder)).train
    assert np.array_equal(first.x, again.x)
    assert sorted((p.name, p.stat().st_mtime_ns) for p in cache.iterdir()) == made

    Image.fromarray(np.full((8, 8, 3), 7, np.uint8)).save(folder / "train" / "red" / "000.png")
    changed = load_dataset(recipe(tmp_path, folder))
    grey = load_dataset(recipe(tmp_path, folder, "data.image_mode=L"))

    everything = np.concatenate([changed.train.x, changed.calibration.x])
    assert bool((everything == 7).all(axis=(1, 2, 3)).any())
    assert grey.train.row_shape == (8, 8)
    assert len(list(cache.iterdir())) == len(made) + 1 + 2


def test_mixed_sizes_are_refused_and_resized_on_request(folder, tmp_path):
    """The message names both files and both sizes; the remedy it gives works."""
    Image.fromarray(np.zeros((9, 8, 3), np.uint8)).save(folder / "train" / "green" / "odd.png")

    words = r"green/odd\.png is 9 x 8 pixels, .*blue/000\.png is 8 x 8; .* data\.image_size = \[8, 8\]"
    with pytest.raises(DataError, match=words):
        load_dataset(recipe(tmp_path, folder))

    dataset = load_dataset(recipe(tmp_path, folder, "data.image_size=[6, 4]"))
    assert dataset.train.row_shape == dataset.test.x.shape[1:] == (6, 4, 3)


@pytest.mark.parametrize("suffix", ["png", "pgm"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_sixteen_bits_keep_their_picture(tmp_path, mode, suffix):
    """The upper 8 of them, as of an 8-bit image of the same picture; cut at 255 every image would be white."""
    rng = np.random.default_rng(0)
    for name in CLASSES[:2]:
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(40):
            x = rng.integers(0, 2**16, (8, 8), dtype=np.uint16)
            Image.fromarray(x).save(tmp_path / "images" / name / f"{i:02}.{suffix}")
    first = np.asarray(Image.open(tmp_path / "images" / CLASSES[0] / f"00.{suffix}"))

    dataset = load_dataset(recipe(tmp_path, tmp_path / "images", "data.test_rows=10", f"data.image_mode={mode}"))

    parts = (dataset.train, dataset.calibration, dataset.test)
    found = np.concatenate([part.x for part in parts])[np.concatenate([part.ids for part in parts]).argmin()]
    expected = (first >> 8).astype(np.uint8)
    np.testing.assert_array_equal(found, expected if mode == "L" else np.stack([expected] * 3, axis=-1))


@pytest.mark.parametrize(("dtype", "words"), [(np.int32, "32-bit integers"), (np.float32, "floating point")])
def test_an_image_whose_range_nobody_knows_is_refused(folder, tmp_path, dtype, words):
    """Which value is white cannot be told."""
    Image.fromarray(np.full((8, 8), 70_000, dtype)).save(folder / "train" / "red" / "wide.tif")

    with pytest.raises(DataError, match=rf"red/wide\.tif: its pixels are {words}.*convert it to 8 or 16 bits"):
        load_dataset(recipe(tmp_path, folder))


def test_nothing_half_made_stays_after_a_broken_image(folder, tmp_path, cache):
    """The message names the file; mending it is enough."""
    broken = folder / "train" / "red" / "020.png"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:40])

    with pytest.raises(DataError, match=r"red/020\.png: cannot be read as an image"):
        load_dataset(recipe(tmp_path, folder))
    assert list(cache.iterdir()) == []

    broken.write_bytes(whole)
    assert len(load_dataset(recipe(tmp_path, folder)).train) == 80


def test_a_cache_that_cannot_be_written_is_refused(folder, tmp_path, monkeypatch):
    """With the way to another."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", "/dev/null/cache")

    with pytest.raises(DataError, match=r"cannot write the rows .*HF_HOME"):
        load_dataset(recipe(tmp_path, folder))


@pytest.mark.parametrize(
    ("edit", "overrides", "error", "words"),
    [
        (lambda f: None, ["data.test_rows=5"], RecipeError, "must be 0: .* brings its own test folder"),
        (lambda f: paint(f / "test" / "new", 1), [], DataError, r"test: has 'new', .*classes of train"),
        (lambda f: [p.unlink() for p in f.glob("train/*/*.png")], [], DataError, "train: holds no images.*png"),
        (lambda f: (f / "test").rename(f / "validation"), [], RecipeError, "no folders train and test"),
        (
            lambda f: (f / "test").rename(f / "Val"),
            ["data.test_rows=5"],
            DataError,
            r"the folders 'Val', 'train', which are splits and no classes; call them train and test",
        ),
        (lambda f: f.rename(f.parent / "moved"), ["data.test_rows=5"], DataError, "is no folder"),
        (lambda f: f.rename(f.parent / "moved"), [], DataError, "is no folder"),
        (lambda f: paint(f / "train" / "caf\udce9", 1), [], DataError, "class 'caf.udce9', which UTF-8"),
    ],
    ids=[
        "both test",
        "unknown class",
        "no images",
        "no test",
        "other splits",
        "no folder",
        "no folder, no test rows",
        "no Unicode",
    ],
)
def test_a_folder_that_does_not_fit_is_refused(folder, tmp_path, edit, overrides, error, words):
    """The message says what is there and what is needed."""
    edit(folder)

    with pytest.raises(error, match=words):
        load_dataset(recipe(tmp_path, folder, *overrides))


def test_one_class_is_not_enough(tmp_path):
    """A folder of images alone is none of classes."""
    (tmp_path / "images" / "only").mkdir(parents=True)

    with pytest.raises(DataError, match=r"has 'only' for classes; .*at least 2"):
        load_dataset(recipe(tmp_path, tmp_path / "images", "data.test_rows=5"))


def test_an_empty_path_is_refused_with_the_remedy(tmp_path):
    """As for every source."""
    with pytest.raises(RecipeError, match=r"data\.path is empty; name the folder of images"):
        load_dataset(recipe(tmp_path, ""))


def test_without_the_library_the_extra_is_named(folder, tmp_path, monkeypatch):
    """With the command that installs it."""
    monkeypatch.setitem(sys.modules, "datasets", None)

    with pytest.raises(RecipeError, match=r"'folder' needs the package datasets.*pip install 'softkin\[datasets\]'"):
        load_dataset(recipe(tmp_path, folder))


@pytest.mark.slow
def test_folders_go_all_the_way(folder, tmp_path):
    """Images and a folder of outliers in, a bundle and a report out."""
    (tmp_path / "grey").mkdir()
    for i in range(20):
        Image.fromarray(np.full((8, 8, 3), 12 * i, np.uint8)).save(tmp_path / "grey" / f"{i}.png")
    recipe(tmp_path, folder)
    settings = [f"data.path={folder}", f"data.outliers.grey={tmp_path / 'grey'}", "augmentation.horizontal_flip=0.5"]
    arguments = [a for s in settings for a in ("--set", s)]

    assert main(["run", str(tmp_path / "folder.toml"), "--out", str(tmp_path / "out"), "--quiet", *arguments]) == 0

    detector = Detector.load(tmp_path / "out" / "bundle")
    assert detector.manifest.classes == CLASSES
    assert detector.score(np.zeros((1, 8, 8, 3), np.uint8)).is_outlier.all()

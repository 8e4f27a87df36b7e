"""Sources, splits and fingerprints."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from softkin.errors import DataError, RecipeError
from softkin_training.config import load_recipe
from softkin_training.data import SHUFFLED, load_dataset
from softkin_training.row_contents import fingerprint, row_digests

pytestmark = pytest.mark.training


@pytest.fixture(scope="module")
def digits():
    """The data of the digits recipe: classes 0 to 7 known."""
    return load_dataset(load_recipe("digits"))


def arrays(num_train=60, num_test=20, num_classes=3, dtype=np.uint8):
    """Contents of an npz whose rows are all different."""
    rng = np.random.default_rng(0)
    x = rng.permutation(256 * 4)[: num_train + num_test]
    x = np.stack([x // 256, x % 256, x % 7, x % 11], axis=1).reshape(-1, 2, 2).astype(dtype)
    y = np.arange(num_train + num_test, dtype=np.uint8) % num_classes
    return {
        "x_train": x[:num_train],
        "y_train": y[:num_train],
        "x_test": x[num_train:],
        "y_test": y[num_train:],
        "class_names": np.array([f"class {c}" for c in range(num_classes)]),
    }


def npz_recipe(tmp_path, contents, *overrides):
    """The MNIST recipe over a small file."""
    path = tmp_path / "rows.npz"
    np.savez(path, **contents)
    return load_recipe("mnist", [f"data.path={path}", "data.calibration_rows=20", "detector.alpha=0.1", *overrides])


def digests(*parts):
    """All row digests of some arrays."""
    return [d for x in parts for d in row_digests(x)]


def test_digits_are_integer_images_relabelled_from_zero(digits):
    """8x8 values 0..16, labels 0..K-1, names of the digits."""
    assert (digits.train.x.dtype, digits.train.x.shape[1:], digits.train.x.max()) == (np.uint8, (8, 8), 16)
    assert sorted(set(digits.train.y.tolist())) == list(range(8))
    assert digits.class_names == tuple("01234567")


def test_labels_follow_the_order_of_known_classes():
    """known_classes = [9, 4] makes nine class 0 and four class 1."""
    few = ["data.calibration_rows=8", "data.test_rows=1", "detector.alpha=0.5"]
    everything = load_dataset(load_recipe("digits", ["data.known_classes=[]", *few]))
    some = load_dataset(load_recipe("digits", ["data.known_classes=[9, 4]", *few]))

    true_label = dict(zip(everything.train.ids.tolist(), everything.train.y.tolist(), strict=True))
    pairs = {
        (true_label[i], y)
        for i, y in zip(some.train.ids.tolist(), some.train.y.tolist(), strict=True)
        if i in true_label
    }
    assert pairs == {(9, 0), (4, 1)}
    assert some.class_names == ("9", "4")


@pytest.mark.parametrize("source", ["digits", "npz"])
def test_no_row_stands_in_two_parts(source, tmp_path):
    """Ids and contents of train, calibration and test are disjoint."""
    recipe = load_recipe("digits") if source == "digits" else npz_recipe(tmp_path, arrays())
    dataset = load_dataset(recipe)
    parts = [dataset.train, dataset.calibration, dataset.test]

    ids = [i for part in parts for i in part.ids.tolist()]
    contents = digests(*(part.x for part in parts))
    assert len(set(ids)) == len(ids)
    assert len(set(contents)) == len(contents)


def test_parts_have_the_sizes_asked_for_and_lose_nothing(digits):
    """Calibration and test as the recipe says, the rest trains."""
    recipe = load_recipe("digits")

    sizes = (len(digits.calibration), len(digits.test))
    assert sizes == (recipe.data.calibration_rows, recipe.data.test_rows)
    known = len(digits.train) + sum(sizes) + digits.duplicates_dropped
    assert known + len(digits.outliers["unknown digits"]) == 1797


def test_the_split_follows_the_seed():
    """Equal seeds, equal splits; another seed, another split."""
    ids = [load_dataset(load_recipe("digits", [f"seed={s}"])).calibration.ids.tolist() for s in (1, 1, 2)]

    assert ids[0] == ids[1]
    assert ids[0] != ids[2]


def test_digits_bring_four_kinds_of_outliers(digits):
    """Near, textured, structureless and inverted; all in the range of the inliers."""
    assert set(digits.outliers) == {"unknown digits", "photo patches", "noise", "inverted digits"}
    for x in digits.outliers.values():
        assert (x.dtype, x.shape[1:]) == (np.uint8, (8, 8))
        assert x.max() <= 16
    assert np.array_equal(digits.outliers["inverted digits"], 16 - digits.test.x)


def test_no_digit_is_an_outlier_when_all_are_known():
    """The set would be empty, so it is not made."""
    dataset = load_dataset(load_recipe("digits", ["data.known_classes=[]"]))

    assert "unknown digits" not in dataset.outliers


def test_an_npz_keeps_its_test_split_and_dtype(tmp_path):
    """x_test comes through untouched; ids continue after the training rows."""
    contents = arrays()
    dataset = load_dataset(npz_recipe(tmp_path, contents))

    assert np.array_equal(dataset.test.x, contents["x_test"])
    assert dataset.test.ids.tolist() == list(range(60, 80))
    assert dataset.train.x.dtype == np.uint8
    assert np.array_equal(dataset.calibration.x, contents["x_train"][dataset.calibration.ids])


def test_rows_in_foreign_byte_order_are_read(tmp_path):
    """Files written on another machine train here."""
    contents = arrays(dtype=">f4")
    dataset = load_dataset(npz_recipe(tmp_path, contents))

    assert dataset.test.x.dtype.isnative
    assert np.array_equal(dataset.test.x, contents["x_test"])


def test_classes_left_out_become_outliers(tmp_path):
    """Their test rows are the set `held-out classes`; their training rows are not used."""
    contents = arrays()
    dataset = load_dataset(npz_recipe(tmp_path, contents, "data.known_classes=[2, 0]"))

    assert np.array_equal(dataset.outliers["held-out classes"], contents["x_test"][contents["y_test"] == 1])
    assert set(contents["y_train"][dataset.train.ids].tolist()) == {0, 2}
    assert dataset.class_names == ("class 2", "class 0")


def test_repeated_rows_are_kept_once_and_counted(tmp_path):
    """A twin in train and calibration, or of a test row, would make that row look too familiar."""
    contents = arrays()
    contents["x_train"][1] = contents["x_train"][0]
    contents["x_train"][3] = contents["x_train"][0]
    contents["x_train"][5] = contents["x_test"][7]
    dataset = load_dataset(npz_recipe(tmp_path, contents))

    kept = digests(dataset.train.x, dataset.calibration.x)
    assert dataset.duplicates_dropped == 3
    assert len(kept) == len(set(kept)) == 57
    assert not set(kept) & set(digests(dataset.test.x))
    assert len(dataset.test) == 20


def test_named_outlier_files_are_read(tmp_path):
    """x_test of each file, under the name that the recipe gives."""
    other = tmp_path / "other.npz"
    np.savez(other, x_test=np.full((4, 2, 2), 9, dtype=np.uint8))
    dataset = load_dataset(npz_recipe(tmp_path, arrays(), f"data.outliers.nines={other}"))

    assert dataset.outliers["nines"].tolist() == np.full((4, 2, 2), 9).tolist()


def test_without_any_outliers_features_are_shuffled(tmp_path):
    """Every column keeps its numbers, rows do not; any other set takes its place."""
    contents = arrays()
    dataset = load_dataset(npz_recipe(tmp_path, contents))
    x = dataset.outliers[SHUFFLED]

    assert list(dataset.outliers) == [SHUFFLED]
    assert np.array_equal(np.sort(x, axis=0), np.sort(contents["x_test"], axis=0))
    assert not set(row_digests(x)) <= set(row_digests(contents["x_test"]))
    assert SHUFFLED not in load_dataset(npz_recipe(tmp_path, contents, "data.known_classes=[2, 0]")).outliers


def change(**changes):
    """An edit of the npz contents."""
    return lambda contents: contents | {k: f(contents[k]) for k, f in changes.items()}


def as_float(x):
    """The rows as another dtype."""
    return x.astype(np.float32)


def with_nan(x):
    """One bad row."""
    x = as_float(x)
    x[3] = np.nan
    return x


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (
            lambda c: {k: v for k, v in c.items() if k != "y_test"},
            ["lacks 'y_test'", "it holds 'class_names', 'x_", "; write it by"],
        ),
        (change(y_train=lambda y: y[:-1]), ["60 rows", "59"]),
        (change(y_train=lambda y: y + 1), ["y_train[2] is 3", "0 to 2"]),
        (change(y_test=lambda y: y.astype(float)), ["y_test is float64", "integer"]),
        (
            change(x_train=lambda x: with_nan(x.astype(np.float32)), x_test=lambda x: x.astype(np.float32)),
            ["train has 1 rows with NaN", "first row 3;"],
        ),
        (change(x_test=as_float), ["test are float32 (2, 2)", "uint8 (2, 2)"]),
        (change(x_test=lambda x: x[:, :1]), ["test are uint8 (1, 2)", "uint8 (2, 2)"]),
        (change(x_test=lambda x: x[:0], y_test=lambda y: y[:0]), ["test has no rows"]),
        (change(x_train=lambda x: x.astype(str), x_test=lambda x: x.astype(str)), ["must be one of", "uint8"]),
        (change(y_train=lambda y: np.where(np.arange(60) == 8, 2, y % 2)), ["'class 2'", "at least 2"]),
        (change(x_train=lambda x: x[:20], y_train=lambda y: y[:20]), ["data.calibration_rows = 20", "there are 20"]),
        (
            change(class_names=lambda n: np.array(list(n), dtype=object)),
            ["not an .npz file of plain arrays", "class_names"],
        ),
        (
            change(class_names=lambda n: n[:1], y_train=lambda y: 0 * y, y_test=lambda y: 0 * y),
            ["of classes it has 'class 0'", "at least 2"],
        ),
        (
            change(x_train=lambda x: np.arange(60.0), x_test=lambda x: np.arange(60.0, 80.0)),
            ["train is float64 (40,)", "rows of 1 to 3 axes"],
        ),
    ],
    ids=[
        "array missing",
        "lengths differ",
        "label out of range",
        "labels not integer",
        "not a number",
        "dtypes differ",
        "shapes differ",
        "no test rows",
        "text for rows",
        "class of one row",
        "too few rows",
        "pickled object",
        "one class",
        "no axes",
    ],
)
def test_unfit_rows_are_refused_before_training(tmp_path, edit, words):
    """The message says what is wrong and what is needed."""
    with pytest.raises(DataError) as refusal:
        load_dataset(npz_recipe(tmp_path, edit(arrays())))

    message = str(refusal.value)
    assert [
        word
        for word in ["data.calibration_rows" if "there are" in message else "rows.npz", *words]
        if word not in message
    ] == []


@pytest.mark.parametrize("content", [None, b"", b"not an archive"], ids=["missing", "empty", "garbage"])
def test_a_file_that_is_no_npz_is_refused_by_name(tmp_path, content):
    """Whatever numpy raises, the error is ours and names the file."""
    path = tmp_path / "broken.npz"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(DataError, match=r"broken\.npz"):
        load_dataset(load_recipe("mnist", [f"data.path={path}"]))


@pytest.mark.parametrize(
    ("x", "words"),
    [(np.uint8(3), r"outliers 'new' is uint8 \(\)"), (np.zeros((0, 2, 2), np.uint8), "outliers 'new' has no rows")],
    ids=["a number", "no rows"],
)
def test_outliers_that_are_no_rows_are_refused(tmp_path, x, words):
    """A single number is not taken for rows, nor is nothing."""
    np.savez(tmp_path / "new.npz", x_test=x)

    with pytest.raises(DataError, match=words):
        load_dataset(npz_recipe(tmp_path, arrays(), f"data.outliers.new={tmp_path / 'new.npz'}"))


def test_two_rows_of_a_class_are_enough(tmp_path):
    """A row alone has no partner; how many are left is for the split to say."""
    taken, refused = [], []
    for rows in range(1, 9):
        y = np.arange(60) % 2
        y[:rows] = 2
        try:
            found = load_dataset(npz_recipe(tmp_path, {**arrays(), "y_train": y}))
            taken.append(int(np.bincount(found.train.y)[2]))
        except DataError as e:
            refused.append(str(e))

    assert min(taken) == 2
    assert refused
    assert all(re.search(r"train holds [01] of 'class 2'; each class needs at least 2 rows", e) for e in refused)


def test_outliers_that_are_not_finite_are_refused_before_training(tmp_path):
    """Evaluation would refuse them, hours later."""
    x = arrays(dtype=np.float32)["x_test"]
    x[[4, 6], 1] = np.inf
    np.savez(tmp_path / "new.npz", x_test=x)
    overrides = f"data.outliers.new={tmp_path / 'new.npz'}"

    with pytest.raises(DataError, match="outliers 'new' has 2 rows with NaN or infinity, first row 4; remove them"):
        load_dataset(npz_recipe(tmp_path, arrays(dtype=np.float32), overrides))


def test_training_rows_of_classes_left_out_may_hold_anything(tmp_path):
    """Beside a test split they are never used; a chosen row that is unfit is still named by its place in the file."""
    contents = arrays(dtype=np.float32)
    contents["x_train"][5] = np.nan  # of class 2
    known = "data.known_classes=[0, 1]"
    assert np.isfinite(load_dataset(npz_recipe(tmp_path, contents, known)).train.x).all()

    contents["x_train"][7] = np.nan  # of class 1
    with pytest.raises(DataError, match="train has 1 rows with NaN or infinity, first row 7;"):
        load_dataset(npz_recipe(tmp_path, contents, known))


def test_rows_that_all_stand_among_the_test_rows_say_so(tmp_path):
    """They are left out of training, so the message must not only say that too few are distinct."""
    twins = arrays()
    twins["x_train"] = np.repeat(twins["x_test"], 3, axis=0)

    with pytest.raises(DataError, match="there are 0 distinct ones beside the test rows"):
        load_dataset(npz_recipe(tmp_path, twins))


def test_outliers_of_another_shape_are_refused(tmp_path):
    """They must fit the model's input; the message names the set."""
    other = tmp_path / "other.npz"
    np.savez(other, x_test=np.zeros((4, 3, 3), dtype=np.uint8))

    with pytest.raises(DataError, match=r"'wide'.*\(3, 3\).*\(2, 2\)"):
        load_dataset(npz_recipe(tmp_path, arrays(), f"data.outliers.wide={other}"))


@pytest.mark.parametrize(
    ("name", "overrides", "word"),
    [
        ("mnist", [], "--set data.path="),
        ("digits", ["data.known_classes=[1, 10]"], "classes 0 to 9"),
        ("digits", ["data.outliers.noise=x.npz"], "another name"),
    ],
    ids=["no path", "no such class", "name taken"],
)
def test_a_recipe_that_does_not_fit_its_source_is_refused(name, overrides, word):
    """The remedy stands in the message."""
    with pytest.raises(RecipeError, match=word):
        load_dataset(load_recipe(name, overrides))


def test_digits_refuse_splits_larger_than_the_data():
    """The message says how many rows there are, and nothing of a test split that the digits do not have."""
    said = r"data.calibration_rows = 2000 need 2250 rows.* 14\d\d distinct ones; lower data\.test_rows or data\.calib"
    with pytest.raises(DataError, match=said):
        load_dataset(load_recipe("digits", ["data.calibration_rows=2000"]))


@given(st.lists(st.integers(0, 5), min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_fingerprint_ignores_order_and_repetition(values, random):
    """It tells sets of rows apart, nothing else."""
    x = np.array(values, dtype=np.int32).reshape(-1, 1)
    shuffled = values + values[:1]
    random.shuffle(shuffled)

    assert fingerprint(np.array(shuffled, dtype=np.int32).reshape(-1, 1)) == fingerprint(x)
    assert fingerprint(np.append(x, [[9]], axis=0).astype(np.int32)) != fingerprint(x)


def test_digest_depends_on_values_shape_and_dtype_alone():
    """Memory layout and byte order are no content."""
    x = np.arange(12, dtype=np.int32).reshape(2, 2, 3)

    assert row_digests(x) == row_digests(np.asfortranarray(x)) == row_digests(x.astype(">i4"))
    assert not set(row_digests(x)) & set(row_digests(x.reshape(2, 3, 2)))
    assert not set(row_digests(x)) & set(row_digests(x.astype(np.uint32)))

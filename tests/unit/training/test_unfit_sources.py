"""What an npz file must not hold: names that name nothing or two things, numbers too large for any network."""

from __future__ import annotations

import numpy as np
import pytest

from softkin.errors import DataError
from softkin_training.config import load_recipe
from softkin_training.data import load_dataset

pytestmark = pytest.mark.training


def load(folder, **changes):
    """The data of a recipe over 90 rows of three classes; its file differs by `changes`."""
    rng = np.random.default_rng(0)
    arrays = {f"x_{split}": rng.normal(size=(n, 4, 4)) for split, n in (("train", 90), ("test", 30))}
    arrays |= {"y_train": np.arange(90) % 3, "y_test": np.arange(30) % 3, "class_names": np.array(["a", "b", "c"])}
    np.savez(folder / "rows.npz", **(arrays | changes))
    overrides = [f"data.path={folder / 'rows.npz'}", "data.calibration_rows=20", "detector.alpha=0.1"]
    return load_dataset(load_recipe("mnist", overrides))


def rows(n, at, value):
    """`[n, 4, 4]` of which one number is `value`."""
    x = np.random.default_rng(1).normal(size=(n, 4, 4))
    x[at, 2, 1] = value
    return x


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["a", "b", "a"], "has the class 'a' twice; rename one"),
        (["a", "", "c"], "class 1 has the name ''; give it another"),
        (["a", "b", " \t"], "class 2 has the name ' \\t'; give it another"),
    ],
)
def test_a_class_has_a_name_of_its_own(tmp_path, names, told):
    """Answers and reports would call two classes alike, or one nothing."""
    with pytest.raises(DataError) as refusal:
        load(tmp_path, class_names=np.array(names))

    assert str(refusal.value) == f"{tmp_path / 'rows.npz'}: {told}"


def test_names_in_bytes_are_read_as_text(tmp_path):
    """As CIFAR's pickles have them; they came out as b'a'. What is no UTF-8 is refused."""
    assert load(tmp_path, class_names=np.array(["a", "b", "é".encode()], "S")).class_names == ("a", "b", "é")
    with pytest.raises(DataError, match=r"rows\.npz: has the class '\\udce9', which UTF-8 cannot spell; rename it"):
        load(tmp_path, class_names=np.array([b"a", b"b", b"\xe9"]))


@pytest.mark.parametrize("value", [1e300, -1e39])
def test_numbers_that_no_network_can_hold_are_refused_before_training(tmp_path, value):
    """They were infinite in its first layer, and the learning rate was told to be too high."""
    with pytest.raises(DataError) as refusal:
        load(tmp_path, x_train=rows(90, [7, 50], value))

    assert str(refusal.value) == (
        f"{tmp_path / 'rows.npz'}, train has 2 rows with numbers beyond 3.4e+38, the largest of float32, in which "
        "networks compute, first row 7; remove them, or scale the numbers"
    )


def test_numbers_that_a_network_can_just_hold_are_left_alone(tmp_path):
    """And test rows may hold any: they are scored as they come."""
    found = load(tmp_path, x_train=rows(90, 7, 3.4e38), x_test=rows(30, 3, 1e300))

    assert found.test.x.max() == 1e300
    assert max(found.train.x.max(), found.calibration.x.max()) == 3.4e38

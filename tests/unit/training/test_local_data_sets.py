"""Folders that are named where the hub's name of a data set may stand."""

from __future__ import annotations

import datasets
import pytest

from softkin.errors import DataError
from softkin_training.config import load_recipe
from softkin_training.data import load_dataset

pytestmark = pytest.mark.training


@pytest.mark.parametrize("there", [True, False])
def test_a_folder_that_holds_no_data_set_is_not_looked_for_on_the_hub(tmp_path, monkeypatch, there):
    """The connection has no part in it; what the folder should hold is said."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "pets"
    if there:
        folder.mkdir()

    with pytest.raises(
        DataError, match=r"pets: is no folder in the layout of the hub \(.*\); it holds data/train-\*"
    ) as e:
        load_dataset(load_recipe("cifar10", ["data.source=hub", f"data.path={folder}"]))
    assert "connection" not in str(e.value)

"""Folders that are named where the hub's name of a data set may stand."""

from __future__ import annotations

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from softkin.errors import DataError
from softkin_training.config import load_recipe
from softkin_training.data import load_dataset
from softkin_training.data_config import DataConfig
from softkin_training.sources import read_source

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


@pytest.mark.parametrize("source", ["parquet", "hub"])
def test_two_tables_of_equal_columns_are_two_where_the_library_would_keep_them_in_memory(tmp_path, monkeypatch, source):
    """Rows in memory have no file that the cache could tell them by: the second table came out as the first."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "IN_MEMORY_MAX_SIZE", 1e9)
    means = []
    for value in (1.0, 2.0):
        folder = tmp_path / f"{value:g}"
        (folder / "data").mkdir(parents=True)
        file = folder / "data" / "train-00000-of-00001.parquet"
        pq.write_table(pa.table({"a": np.full(20, value), "label": ["x", "y"] * 10}), file)
        path = str(file if source == "parquet" else folder)
        data = DataConfig(
            source=source, path=path, calibration_rows=5, test_rows=5, **({"test_split": ""} if source == "hub" else {})
        )
        means.append(read_source(data).train.x.mean())

    assert means == [1.0, 2.0]

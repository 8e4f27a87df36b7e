"""Rows on disk: the same results as in memory, without the memory."""

from __future__ import annotations

import dataclasses
import pickle
import resource
import tracemalloc
from pathlib import Path

import numpy as np
import onnx
import pyarrow as pa
import pytest
import torch

from softkin.errors import DataError
from softkin.scorer import Network
from softkin.scorer_graph import representation_output
from softkin_training.config import load_recipe
from softkin_training.data import Dataset, load_dataset
from softkin_training.models import input_statistics
from softkin_training.representations import extract
from softkin_training.row_contents import digests64, fingerprint, refuse_overlap, row_digests
from softkin_training.rows import Rows, block_rows
from softkin_training.run import build_step, export_step
from softkin_training.split import choose_bank_rows, first_of_each
from softkin_training.stored_rows import RowFile, rows_of, write_rows
from softkin_training.train import train

pytestmark = pytest.mark.training

SMALL = [
    "model.channels=[4, 8]",
    "model.dense=16",
    "training.epochs=2",
    "training.accelerator=cpu",
    "training.cpu_threads=1",
    "training.probe_rows=0",
]
WIDE = (64, 64, 3)


def stored(rows, path, batch=7):
    """The same rows on disk, written in small parts."""
    parts = (rows.x[start : start + batch] for start in range(0, len(rows), batch))
    return dataclasses.replace(rows, source=write_rows(path, parts), positions=None)


@pytest.fixture
def images():
    """Enough rows for three batches of a file."""
    rng = np.random.default_rng(0)
    n = 2 * block_rows(np.dtype(np.uint8), WIDE) + 5
    x = rng.integers(0, 256, size=(n, *WIDE), dtype=np.uint8)
    return Rows(x, np.arange(n) % 3, np.arange(n) + 100)


@pytest.mark.parametrize("dtype", ["uint8", "int64", "float16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(5,), (4, 3), (2, 3, 3)])
def test_what_is_written_is_read(tmp_path, dtype, shape):
    """Every dtype and row shape that a network may take."""
    x = np.random.default_rng(0).normal(0, 50, size=(11, *shape)).astype(dtype)
    file = write_rows(tmp_path / "x.arrow", [x[:4], x[4:4], x[4:]])

    assert (len(file), file.dtype, file.shape) == (11, np.dtype(dtype), (11, *shape))
    assert np.array_equal(file[np.array([10, 0, 3, 3])], x[[10, 0, 3, 3]])


def test_rows_are_read_from_any_batch_in_any_order(images, tmp_path):
    """By slice and by index, before and after rows are taken."""
    rows = stored(images, tmp_path / "x.arrow")
    order = np.random.default_rng(1).permutation(len(images))
    taken, expected = rows.take(order[:-9]), images.take(order[:-9])

    assert np.array_equal(rows.read(slice(3, 170, 31)), images.x[3:170:31])
    assert np.array_equal(taken.read(np.array([5, 0, 160])), expected.x[[5, 0, 160]])
    assert np.array_equal(np.concatenate(list(taken.blocks())), expected.x)
    assert (taken.ids.tolist(), taken.y.tolist()) == (expected.ids.tolist(), expected.y.tolist())
    assert np.array_equal(taken.x, expected.x)


def test_digests_statistics_and_choices_are_those_in_memory(images, tmp_path):
    """Nothing tells the two kinds of rows apart."""
    images.x[7] = images.x[2]
    rows = stored(images, tmp_path / "x.arrow")

    assert row_digests(rows) == row_digests(images.x)
    assert fingerprint(rows) == fingerprint(images.x)
    assert np.array_equal(digests64(rows), digests64(images.x))
    assert first_of_each(rows).ids.tolist() == first_of_each(images).ids.tolist()
    assert choose_bank_rows(rows, 50, seed=0).ids.tolist() == choose_bank_rows(images, 50, seed=0).ids.tolist()
    for a, b in zip(input_statistics(rows), input_statistics(images.x), strict=True):
        assert np.array_equal(a, b)
    with pytest.raises(DataError, match="1 rows whose content also stands in"):
        refuse_overlap(rows.take(np.array([2])), rows.take(np.array([7])), "bank", "calibration")


def test_rows_are_read_once_for_all_digests(images, tmp_path, monkeypatch):
    """Splitting, checkpoints, exports and bundles all ask for them, of rows that may be larger than memory."""
    rows = stored(images, tmp_path / "x.arrow")
    reads, read = [], RowFile.__getitem__
    positions = np.arange(len(images))
    monkeypatch.setattr(RowFile, "__getitem__", lambda file, which: reads.extend(positions[which]) or read(file, which))

    train = first_of_each(rows).take(np.arange(100, 20, -1))
    found = fingerprint(train), digests64(train).tolist(), row_digests(choose_bank_rows(train, 50, seed=0))
    refuse_overlap(train.labelled(train.y[::-1]), rows.take(np.arange(5)), "bank", "calibration")

    assert reads == list(range(len(images)))
    x = images.x[100:20:-1]
    assert found[:2] == (fingerprint(x), digests64(x).tolist())
    assert set(found[2]) < set(row_digests(x))


def test_large_rows_go_through_a_network_few_at_a_time(images, tmp_path, monkeypatch):
    """They are not read together either: 256 photographs may be more than there is memory."""
    proto = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 21]>'
        "half (uint8[B, 64, 64, 3] inputs) => (float[B, 64, 64, 3] z) {z = Cast<to: int = 1>(inputs)}"
    )
    proto.graph.node[0].output[0] = proto.graph.output[0].name = representation_output("all")
    onnx.save(proto, tmp_path / "model.onnx")
    network = Network(tmp_path / "model.onnx", device="cpu")
    reads, read = [], Rows.read
    monkeypatch.setattr(Rows, "read", lambda rows, which: reads.append(which) or read(rows, which))
    monkeypatch.setattr("softkin.chunks.SLICE_NUMBERS", 7 * images.x[0].size + 5)
    reads.clear()

    extract(network, images.take(np.arange(16)), ["all"], 3, tmp_path)

    assert reads == [slice(0, 7), slice(7, 14), slice(14, 21)]


def test_statistics_are_numpys(images, tmp_path):
    """Over blocks as over the whole."""
    mean, std = input_statistics(images)

    assert mean == pytest.approx(images.x.mean(axis=(0, 1, 2)), rel=1e-12)
    assert std == pytest.approx(images.x.std(axis=(0, 1, 2)), rel=1e-12)


def test_another_process_gets_the_file_not_the_rows(images, tmp_path):
    """Pickled rows are small, and read the same."""
    rows = stored(images, tmp_path / "x.arrow")
    sent = pickle.dumps(rows)

    assert len(sent) < images.x.nbytes / 100
    assert np.array_equal(pickle.loads(sent).read(np.array([4, 2])), images.x[[4, 2]])


def test_a_file_appears_whole_or_not_at_all(images, tmp_path):
    """Whatever goes wrong while rows are made, nothing stays behind, and what stood there stays."""

    def broken():
        yield images.x[:3]
        raise DataError("the third image is broken")

    path = tmp_path / "folder" / "x.arrow"
    with pytest.raises(DataError, match="third image"):
        write_rows(path, broken())
    assert list(path.parent.iterdir()) == []
    write_rows(path, [images.x[:5]])
    with pytest.raises(DataError, match="third image"):
        write_rows(path, broken())
    assert [p.name for p in path.parent.iterdir()] == ["x.arrow"]
    assert len(RowFile(path)) == 5


def test_a_file_with_another_number_of_rows_than_labels_is_refused_by_name(images, tmp_path):
    """It was made of other files, or cut."""
    file = write_rows(tmp_path / "x.arrow", [images.x])

    with pytest.raises(DataError, match=rf"x\.arrow: {len(images)} rows, 3 labels; they must be equally many"):
        rows_of(file, images.y[:3], 0)


@pytest.mark.parametrize("content", [None, b"", b"not Arrow"], ids=["missing", "empty", "garbage"])
def test_a_file_that_is_no_arrow_is_refused_by_name(tmp_path, content):
    """Whatever pyarrow raises, the error is ours and says what to do."""
    path = tmp_path / "x.arrow"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(DataError, match=r"x\.arrow: cannot be read.*made again"):
        RowFile(path)


@pytest.mark.parametrize("metadata", [None, {"x": "float32"}, {"softkin": "{}"}], ids=["none", "another's", "no dtype"])
def test_an_arrow_file_of_something_else_is_refused_by_name(tmp_path, metadata):
    """Whoever put it there."""
    path = tmp_path / "x.arrow"
    table = pa.table({"x": [[1.0]]}).replace_schema_metadata(metadata)
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)

    with pytest.raises(DataError, match=r"x\.arrow: cannot be read as rows in Arrow.*made again"):
        RowFile(path)


def test_no_rows_are_refused_but_for_a_part_without_any(tmp_path):
    """A source that yields nothing has no dtype either."""
    path = tmp_path / "x.arrow"
    with pytest.raises(DataError, match="there are no rows to write"):
        write_rows(path, [])
    assert not path.exists()

    assert write_rows(path, [np.zeros((0, 3), np.uint8)]).shape == (0, 3)


def test_a_folder_that_cannot_be_written_is_refused_by_name(images):
    """With the remedy."""
    with pytest.raises(DataError, match=r"/dev/null/x\.arrow: cannot write the rows.*HF_HOME"):
        write_rows(Path("/dev/null/x.arrow"), [images.x])


def test_a_full_disk_is_a_clear_error_and_leaves_nothing(images, tmp_path):
    """While rows are stored, and while representations are written."""
    x = images.x.reshape(len(images), -1).astype(np.float32)
    proto = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 21]>'
        "all (float[B, 12288] inputs) => (float[B, 12288] z) {z = Identity(inputs)}"
    )
    proto.graph.node[0].output[0] = proto.graph.output[0].name = representation_output("all")
    onnx.save(proto, tmp_path / "model.onnx")
    network = Network(tmp_path / "model.onnx", device="cpu")
    (tmp_path / "made").mkdir()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))  # files cannot grow past it, as on a full disk
    try:
        with pytest.raises(DataError, match=r"x\.arrow: cannot write the rows .*make room"):
            write_rows(tmp_path / "made" / "x.arrow", [images.x])
        with pytest.raises(DataError, match=r"cannot write the representations .*TMPDIR"):
            extract(network, Rows(x, images.y, images.ids), ["all"], 3, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert list((tmp_path / "made").iterdir()) == []


@pytest.mark.slow
def test_training_and_bundle_are_those_of_rows_in_memory(tmp_path):
    """Weights and every file of the bundle, byte for byte."""
    recipe = load_recipe("digits", [*SMALL, "detector.bank_rows=300"])
    dataset = load_dataset(recipe)
    on_disk = dataclasses.replace(dataset, train=stored(dataset.train, tmp_path / "x.arrow"))

    found = {}
    for name, data in {"memory": dataset, "disk": on_disk}.items():
        model = train(recipe, data, tmp_path / name, progress=False).model
        export_step(recipe, data, tmp_path / name, model)
        found[name] = model.state_dict(), build_step(recipe, data, tmp_path / name).files

    assert all(torch.equal(v, found["disk"][0][k]) for k, v in found["memory"][0].items())
    assert found["disk"][1] == found["memory"][1]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_rows(tmp_path):
    """80 MB of rows are stored, trained on and put into a bank: at no time a third of them in memory."""
    rng = np.random.default_rng(0)
    n = 6600

    def parts():
        for _ in range(0, n, 100):
            noise = rng.integers(0, 100, size=(100, *WIDE), dtype=np.uint8)
            noise[1::2] += 100
            yield noise

    file, written = most_memory(lambda: write_rows(tmp_path / "x.arrow", parts()))
    everything = rows_of(file, np.arange(n) % 2, 0)
    few = [everything.take(np.arange(start, start + 100)) for start in (0, 100)]
    calibration, test = (Rows(rows.x, rows.y, rows.ids) for rows in few)
    dataset = Dataset(everything.take(np.arange(200, n)), calibration, test, {"test": test.x}, ("dark", "light"))
    settings = ["model.kind=mlp", "model.channels=[]", "model.dense=0", "model.hidden=[4]", "training.epochs=1"]
    layers = ['loss.layers=["dense1"]', 'detector.layers=["dense1"]']
    recipe = load_recipe("digits", [*SMALL, *settings, *layers, "model.dropout=0"])

    model, trained = most_memory(lambda: train(recipe, dataset, tmp_path, progress=False).model)
    export_step(recipe, dataset, tmp_path, model)
    manifest, built = most_memory(lambda: build_step(recipe, dataset, tmp_path))
    _, whole = most_memory(lambda: dataset.train.x)

    assert manifest.bank_size == n - 200
    assert whole > 75e6
    assert max(written, trained, built) < whole / 3


def most_memory(work):
    """The result, and the largest number of bytes that Python and NumPy held at once; maps of files are not counted."""
    tracemalloc.start()
    try:
        return work(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

"""Entanglement over training: what is measured, what is written, and that it changes nothing."""

from __future__ import annotations

import json
import threading
from html import escape

import numpy as np
import pytest
import torch

from softkin.errors import InvalidInputError
from softkin_training.config import load_recipe
from softkin_training.data import load_dataset
from softkin_training.entanglement_plot import draw_entanglement, drawn
from softkin_training.history import Recorder, scalars
from softkin_training.losses import entanglement
from softkin_training.models import build_model
from softkin_training.probe import Probe, choose_probe_rows
from softkin_training.rows import Rows
from softkin_training.train import train

pytestmark = pytest.mark.training

LAYERS = ["conv1", "conv2", "dense"]
SMALL = ["model.channels=[4, 8]", "model.dense=16", "training.epochs=2", "training.accelerator=cpu"]


@pytest.fixture(scope="module")
def dataset():
    """The embedded digits."""
    return load_dataset(load_recipe("digits"))


def run(dataset, out, *overrides):
    """Train the small variant of the digits recipe."""
    return train(load_recipe("digits", [*SMALL, *overrides]), dataset, out, progress=False)


def rows_of(counts):
    """Rows of classes that occur so often; the row's value is its id."""
    y = np.repeat(np.arange(len(counts)), counts)
    return Rows(np.arange(len(y), dtype=np.float32)[:, None], y, np.arange(len(y)))


def test_probe_rows_are_balanced_and_follow_the_seed():
    """Equal numbers of each class, none twice, in the order of the source."""
    rows = rows_of([50, 80, 200])
    chosen, again, other = (choose_probe_rows(rows, 60, seed) for seed in (3, 3, 4))

    assert np.bincount(chosen.y).tolist() == [20, 20, 20]
    assert len(set(chosen.ids.tolist())) == 60
    assert chosen.ids.tolist() == sorted(again.ids.tolist())
    assert chosen.ids.tolist() != other.ids.tolist()


@pytest.mark.parametrize(("counts", "expected"), [([5, 300], [5, 50]), ([1, 30], [1, 30])])
def test_a_rare_class_brings_what_it_has(counts, expected):
    """The other classes stay as they would be."""
    assert np.bincount(choose_probe_rows(rows_of(counts), 100, 0).y).tolist() == expected


def test_a_class_has_a_partner_however_few_rows_are_asked_for():
    """Two of each class at least."""
    assert np.bincount(choose_probe_rows(rows_of([9, 9, 9]), 1, 0).y).tolist() == [2, 2, 2]


def test_a_probe_measures_every_hidden_layer(dataset):
    """The values are those of `entanglement` on the layer's activations in eval mode."""
    recipe = load_recipe("digits", SMALL)
    model = build_model(recipe.model, dataset.train.x.shape[1:], 8, 8.0, 6.0)
    rows = choose_probe_rows(dataset.test, 80, 0)
    found = Probe(rows, "cosine").measure(model.train())

    _, hidden = model.eval().forward_with_hidden(torch.from_numpy(rows.x))
    assert list(found) == LAYERS
    for layer, z in hidden.items():
        e = entanglement(z.detach(), torch.from_numpy(rows.y), metric="cosine")
        expected = {"value": e.value, "chance": e.chance, "ratio": e.ratio, "temperature": e.temperature}
        assert found[layer] == expected


def test_each_epoch_records_the_probe(dataset, tmp_path):
    """Also of layers without SNNL, and once before training; the chance level is the same throughout."""
    history = run(dataset, tmp_path, 'loss.layers=["conv2"]').history
    written = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]

    assert written == history
    assert [list(epoch["probe"]) for epoch in history] == [LAYERS, LAYERS]
    assert ["probe_untrained" in epoch for epoch in history] == [True, False]
    measured = [history[0]["probe_untrained"], *(epoch["probe"] for epoch in history)]
    assert len({layer["chance"] for probe in measured for layer in probe.values()}) == 1
    assert all(0 < layer["ratio"] < 1.05 for probe in measured for layer in probe.values())
    assert measured[0] != measured[1] != measured[2]


@pytest.mark.parametrize("overrides", [[], ["loss.layers=[]"]], ids=["entangled", "plain"])
def test_the_probe_does_not_change_the_weights(dataset, tmp_path, overrides):
    """Bit for bit, with dropout: it draws no random numbers."""
    with_probe = run(dataset, tmp_path / "with", "model.dropout=0.3", *overrides)
    without = run(dataset, tmp_path / "without", "model.dropout=0.3", "training.probe_rows=0", *overrides)

    a, b = with_probe.model.state_dict(), without.model.state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert "probe" not in without.history[0]
    assert not (tmp_path / "without" / "report").exists()


def test_a_run_without_a_probe_leaves_no_old_picture(dataset, tmp_path):
    """An older run in the folder is overwritten."""
    run(dataset, tmp_path)
    run(dataset, tmp_path, "training.probe_rows=0")

    assert list((tmp_path / "report").iterdir()) == []


def test_a_picture_is_drawn(dataset, tmp_path):
    """As SVG and PNG, the same bytes for the same history."""
    history = run(dataset, tmp_path).history
    draw_entanglement(history, tmp_path / "again")

    for name, start in {"entanglement.svg": b"<?xml", "entanglement.png": b"\x89PNG"}.items():
        content = (tmp_path / "report" / name).read_bytes()
        assert content.startswith(start)
        assert content == (tmp_path / "again" / name).read_bytes()


@pytest.mark.parametrize("probed", [True, False])
def test_a_folder_that_cannot_be_written_is_refused_in_a_line(tmp_path, probed):
    """After training, which is kept: here a file stands in the place of the report's folder."""
    (tmp_path / "report").write_text("mine")
    measured = {"dense": {"value": 0.5, "chance": 1.0, "ratio": 0.5, "temperature": 1.0}}

    if not probed:
        draw_entanglement([{"epoch": 1}], tmp_path / "report")  # there is nothing to write
    else:
        with pytest.raises(InvalidInputError, match=r"report \(File exists\); the training is kept: make room, then"):
            draw_entanglement([{"epoch": 1, "probe": measured}], tmp_path / "report")
    assert (tmp_path / "report").read_text() == "mine"


def test_a_ratio_that_is_not_defined_leaves_a_gap(tmp_path):
    """One class has no chance level to compare with; neither JSON nor picture hold a NaN."""
    model = build_model(load_recipe("digits", SMALL).model, (8, 8), 2, 8.0, 6.0)
    rows = Rows(np.zeros((4, 8, 8), np.uint8), np.zeros(4, np.int64), np.arange(4))
    probe = Probe(rows, "cosine").measure(model)
    draw_entanglement([{"epoch": 1, "probe": probe}], tmp_path)

    assert {layer["ratio"] for layer in probe.values()} == {None}
    assert (tmp_path / "entanglement.svg").exists()


@pytest.mark.parametrize("ratios", [(0.004, 0.008, 0.1), (0.1, 0.5, 1.3), (0.0, 0.01, 0.02)])
def test_ratios_can_be_told_apart_wherever_they_lie(ratios):
    """Trained layers lie at hundredths of chance, entangled ones near it; chance is always in the picture."""
    measured = {f"l{i}": {"value": r, "chance": 1.0, "ratio": r, "temperature": 1.0} for i, r in enumerate(ratios)}

    axes = drawn([{"epoch": 1, "probe": measured}]).axes[0]

    def height(ratio):
        return axes.transAxes.inverted().transform(axes.transData.transform((1, ratio)))[1]

    heights = [height(r) for r in (*ratios, 1.0)]
    assert all(0 <= h <= 1 for h in heights)
    assert min(np.diff(sorted(heights))) > 0.03


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("layer", ["_stem", "a$b^{$", "x/y <z>", "\u5c64"])
def test_a_layer_is_drawn_whatever_it_is_called(tmp_path, layer):
    """Names come from a network of the user's own; after training is no time to stumble over one."""
    measured = {layer: {"value": 0.5, "chance": 1.0, "ratio": 0.5, "temperature": 1.0}}

    draw_entanglement([{"epoch": 1, "probe": measured}], tmp_path)

    # Text is drawn as paths, which the file names in comments.
    assert f"{escape(layer, quote=False)} -->" in (tmp_path / "entanglement.svg").read_text(encoding="utf-8")


def test_tensorboard_gets_the_same_numbers(dataset, tmp_path):
    """Also where a folder is used again."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run(dataset, tmp_path, "seed=1")
    history = run(dataset, tmp_path).history
    events = reader.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()

    assert set(events.Tags()["scalars"]) == {name for epoch in history for name, _ in scalars(epoch)}
    assert {"ce", "snnl/conv1", "probe/dense/ratio", "temperature/conv2"} <= set(events.Tags()["scalars"])
    for name, key in (("ce", lambda e: e["ce"]), ("probe/dense/value", lambda e: e["probe"]["dense"]["value"])):
        found = {scalar.step: scalar.value for scalar in events.Scalars(name)}
        assert found == pytest.approx({epoch["epoch"]: key(epoch) for epoch in history}, rel=1e-6)


def test_tensorboard_gets_each_number_once(tmp_path):
    """Those of before, too, where a run goes on; which epoch it is, and how long it took, are no figures of it."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    epochs = [{"epoch": n, "ce": n / 8, "snnl": {"a": n / 4}, "b": None, "seconds": 2.0} for n in (1, 2, 3)]
    for before in (0, 2):
        recorder = Recorder(tmp_path)
        recorder.start(epochs[:before])
        for n in range(before + 1, 4):
            recorder.add(epochs[:n])
        recorder.close()
    events = reader.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()

    found = {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}
    assert found == {"ce": [(1, 0.125), (2, 0.25), (3, 0.375)], "snnl/a": [(1, 0.25), (2, 0.5), (3, 0.75)]}


def test_tensorboard_shows_each_epoch_while_the_run_goes_on(tmp_path):
    """Its writer would keep them for two minutes."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    recorder = Recorder(tmp_path)
    recorder.start([])
    recorder.add([{"epoch": 1, "ce": 0.5}])

    events = reader.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    recorder.close()

    assert [(e.step, e.value) for e in events.Scalars("ce")] == [(1, 0.5)]


def test_a_recorder_that_is_closed_leaves_no_thread(tmp_path):
    """An ablation has one after the other, in one process."""
    pytest.importorskip("tensorboard")
    before = set(threading.enumerate())
    recorder = Recorder(tmp_path)
    recorder.start([])

    recorder.close()

    assert set(threading.enumerate()) <= before


def test_without_tensorboard_the_history_is_still_written(tmp_path, monkeypatch):
    """It is an extra."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    recorder = Recorder(tmp_path)
    recorder.start([])
    recorder.add([{"epoch": 1, "ce": 0.5}])
    recorder.close()

    assert [p.name for p in tmp_path.iterdir()] == ["history.jsonl"]
    assert json.loads((tmp_path / "history.jsonl").read_text()) == {"epoch": 1, "ce": 0.5}

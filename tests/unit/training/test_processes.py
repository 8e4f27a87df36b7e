"""Two real processes over gloo equal one."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from gloo_workers import MODES, in_two_processes, steps, train_in_turn
from snnl_reference import METRICS
from softkin.errors import DataError, InvalidInputError, RecipeError
from softkin_training.config import load_recipe
from softkin_training.data import load_dataset
from softkin_training.launch import launch, make_fabric
from softkin_training.processes import Failure, num_processes, on_first, rank
from softkin_training.rows import Rows
from softkin_training.train import load_checkpoint, train
from warm_processes import WarmProcess, warm_spawning

pytestmark = pytest.mark.training

SMALL = [
    "model.channels=[4, 8]",
    "model.dense=16",
    "training.epochs=2",
    "training.accelerator=cpu",
    "training.cpu_threads=1",
    "training.probe_rows=0",
]
TEMPERATURES = {
    "minimized": [],
    "fixed": ["loss.temperature=fixed", "loss.fixed_temperature=0.1"],
    "learned": ["loss.temperature=learned", "loss.initial_temperature=0.1"],
}
WITHOUT_DROPOUT = {
    mode: [*settings, "model.dropout=0", 'loss.layers=["conv1", "conv2", "dense"]']
    for mode, settings in TEMPERATURES.items()
}

TORCHRUN = [str(Path(sys.executable).with_name("torchrun")), "--no-python", "--standalone", "--nproc-per-node", "2"]


@pytest.fixture(scope="module")
def dataset():
    """The embedded digits."""
    return load_dataset(load_recipe("digits"))


@pytest.fixture(scope="module")
def trained(dataset, tmp_path_factory):
    """Folder of two processes' runs, recipes by run, and the error of the last run, which has a bad row."""
    folder = tmp_path_factory.mktemp("trained")
    x = dataset.train.x.astype(np.float32)
    x[5] = np.nan
    bad = dataclasses.replace(dataset, train=Rows(x, dataset.train.y, dataset.train.ids))
    recipes = {name: small(2, *settings) for name, settings in {**WITHOUT_DROPOUT, "as it is": []}.items()}
    runs = [*((recipe, dataset, folder / name) for name, recipe in recipes.items()), (small(2), bad, folder / "bad")]

    with pytest.MonkeyPatch.context() as patch:
        warm_spawning(patch)
        with pytest.raises(DataError) as e:
            launch(make_fabric(small(2).training), train_in_turn, runs)
    return folder, recipes, str(e.value)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """What each of two processes found."""
    return in_two_processes(tmp_path_factory.mktemp("gloo"))


@pytest.mark.slow
def test_a_command_that_is_stopped_ends_its_processes(tmp_path):
    """SIGTERM to the first one alone, as by kill: waiting for the others would last as long as training."""
    arguments = ["train", "digits", "--out", tmp_path / "out", "--quiet"]
    for override in (*SMALL, "training.epochs=100000", "training.devices=2"):
        arguments += ["--set", override]
    history, deadline = tmp_path / "out" / "history.jsonl", time.monotonic() + 120
    with WarmProcess(arguments) as process:
        while not (history.exists() and history.read_text()):
            assert process.status is None, process.finish(60)
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGTERM)

        printed, errors = process.finish(60)  # comes when the last process has closed its output

    assert process.status == 130
    assert errors.endswith("softkin-train: interrupted; run again with --resume to go on from the last checkpoint\n")
    assert printed == ""


def wait_and_clean_up(fabric, folder):
    """Stands for training that is stopped while it writes."""
    try:
        (folder / f"{fabric.global_rank}.half").touch()  # in here: the interrupt may come as soon as it is there
        time.sleep(300)
    finally:
        (folder / f"{fabric.global_rank}.half").unlink()


def test_an_interrupt_lets_spawned_processes_clean_up(tmp_path, monkeypatch, pytestconfig):
    """Their finally blocks run, where half-written files are removed; processes of somebody else go on."""
    monkeypatch.syspath_prepend(pytestconfig.rootpath)  # where spawned processes find this module
    monkeypatch.setattr("softkin_training.launch.GRACE_S", 120.0)  # a busy machine may take long to let them run
    warm_spawning(monkeypatch)
    fabric = make_fabric(load_recipe("digits", ["training.accelerator=cpu", "training.devices=2"]).training)
    other = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(300,))
    other.start()
    begun, over = [], threading.Event()

    def interrupt():
        while len(begun) < 2 and not over.wait(0.05):
            begun[:] = tmp_path.iterdir()
        if not over.is_set():
            os.kill(os.getpid(), signal.SIGINT)

    interrupting = threading.Thread(target=interrupt)
    interrupting.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            launch(fabric, wait_and_clean_up, tmp_path)

        assert len(begun) == 2
        assert list(tmp_path.iterdir()) == []
        assert multiprocessing.active_children() == [other]
    finally:
        over.set()
        interrupting.join()
        other.kill()
        other.join()


def small(devices, *overrides):
    """A recipe of a small digits network."""
    return load_recipe("digits", [*SMALL, f"training.devices={devices}", *overrides])


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("mode", MODES)
def test_two_processes_take_the_loss_and_the_gradients_of_the_whole_batch(both, mode, metric):
    """Whatever the shares: unequal ones, and one process without any row; in float64."""
    expected = steps(mode, metric)
    for found, *_ in both:
        for (losses, temperatures, gradients), one in zip(found[mode, metric], expected, strict=True):
            assert losses == pytest.approx(one[0], rel=1e-12)
            assert temperatures == pytest.approx(one[1], rel=1e-9)
            for g, whole in zip(gradients, one[2], strict=True):
                assert torch.allclose(g, whole, rtol=1e-9, atol=1e-12)


def test_every_process_has_the_rows_of_all(both):
    """In order of rank; and what the first one made."""
    for _, gathered, made, ranks in both:
        assert gathered[:, 0].tolist() == [0.0, 1.0, 1.0]
        assert made == "made by 0"
        assert ranks.tolist() == [[0], [1]]


def test_a_process_alone_sends_nothing():
    """Without a group there is one process, the first."""
    assert (num_processes(), rank(), on_first(lambda: 3)) == (1, 0, 3)


def test_an_error_survives_the_way_to_another_process():
    """Kind, text and attributes, also where pickle alone would lose them."""
    again = pickle.loads(pickle.dumps(Failure(InvalidInputError("x", "is bad")))).error()

    assert (type(again), str(again), again.field) == (InvalidInputError, "x: is bad", "x")


@pytest.mark.slow
@pytest.mark.parametrize("mode", TEMPERATURES)
def test_training_in_two_processes_gives_the_weights_of_one(dataset, trained, tmp_path, mode):
    """Without dropout, which each process draws for itself: the same losses, temperatures and weights."""
    folder, recipes, _ = trained
    one = train(small(1, *WITHOUT_DROPOUT[mode]), dataset, tmp_path, progress=False)
    history = [json.loads(line) for line in (folder / mode / "history.jsonl").read_text().splitlines()]

    for a, b in zip(one.history, history, strict=True):
        for key in ("loss", "ce", "train_accuracy", "test_accuracy"):
            assert b[key] == pytest.approx(a[key], rel=1e-5)
        assert b["snnl"] == pytest.approx(a["snnl"], rel=1e-5)
        assert b["temperature"] == pytest.approx(a["temperature"], rel=1e-4)
    weights = load_checkpoint(recipes[mode], dataset, folder / mode).state_dict()
    for name, value in one.model.state_dict().items():
        assert torch.allclose(weights[name], value, rtol=1e-4, atol=1e-5), name


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_every_process_with_our_error(trained):
    """Only one process sees the bad row at first; the message is that of one process alone."""
    folder, _, message = trained

    assert message.startswith("cross-entropy is nan in epoch 1, step 0; no checkpoint was written yet")
    assert not (folder / "bad" / "checkpoint.pt").exists()


@pytest.mark.slow
def test_under_torchrun_one_process_writes_and_reports(dataset, trained, tmp_path):
    """The weights of spawned processes, one line of output, and no file of the other process."""
    settings = [argument for s in (*SMALL, "training.devices=2") for argument in ("--set", s)]
    command = [*TORCHRUN, "softkin-train", "train", "digits", "--out", str(tmp_path), "--quiet", *settings]

    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=300)

    assert done.returncode == 0, done.stderr
    assert done.stdout.count("test accuracy") == 1
    files = sorted(p.name for p in tmp_path.iterdir())
    assert [f for f in files if f != "tensorboard"] == ["checkpoint.pt", "history.jsonl"]
    folder, recipes, _ = trained
    recipe = recipes["as it is"]
    spawned, torchrun = (load_checkpoint(recipe, dataset, run).state_dict() for run in (folder / "as it is", tmp_path))
    assert all(torch.equal(spawned[name], torchrun[name]) for name in spawned)


def test_torchrun_and_recipe_must_name_the_same_number(monkeypatch):
    """Or each process would train a run of its own into the same files."""
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)

    with pytest.raises(RecipeError, match=r"devices is 1, but torchrun started 2 .* --set training.devices=2"):
        make_fabric(load_recipe("digits", ["training.accelerator=cpu"]).training)


def test_devices_that_are_not_there_are_refused():
    """The message names what was asked for, and where to change it."""
    if torch.cuda.is_available():
        pytest.skip("needs a machine without a GPU")

    with pytest.raises(RecipeError, match=r"accelerator = 'cuda', devices = 1, .*cannot be had here.*--set") as e:
        make_fabric(load_recipe("digits", ["training.accelerator=cuda"]).training)

    assert ".;" not in str(e.value)


def environment():
    """With the commands of this interpreter first."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

"""Two real processes over gloo equal one."""

from __future__ import annotations

import dataclasses
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

from gloo_workers import MODES, in_two_processes, steps
from snnl_reference import METRICS
from softkin.errors import DataError, InvalidInputError, RecipeError
from softkin_training.config import load_recipe
from softkin_training.data import load_dataset
from softkin_training.launch import launch, make_fabric
from softkin_training.processes import Failure, num_processes, on_first, rank
from softkin_training.train import load_checkpoint, train

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

TORCHRUN = [str(Path(sys.executable).with_name("torchrun")), "--no-python", "--standalone", "--nproc-per-node", "2"]


@pytest.fixture(scope="module")
def dataset():
    """The embedded digits."""
    return load_dataset(load_recipe("digits"))


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """What each of two processes found."""
    return in_two_processes(tmp_path_factory.mktemp("gloo"))


@pytest.mark.slow
def test_a_command_that_is_stopped_ends_its_processes(tmp_path):
    """SIGTERM to the first one alone, as by kill: waiting for the others would last as long as training."""
    command = [str(Path(sys.executable).with_name("softkin-train")), "train", "digits", "--out", str(tmp_path / "out")]
    for override in (*SMALL, "training.epochs=100000", "training.devices=2"):
        command += ["--set", override]
    process = subprocess.Popen([*command, "--quiet"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    history, deadline = tmp_path / "out" / "history.jsonl", time.monotonic() + 120
    try:
        while not (history.exists() and history.read_text()):
            assert process.poll() is None, process.stdout.read()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.terminate()

        printed, _ = process.communicate(timeout=60)  # ends when the last process has closed its output
    finally:
        process.kill()

    assert process.returncode == 1
    assert printed.endswith("softkin-train: interrupted; run again with --resume to go on from the last checkpoint\n")


def wait_and_clean_up(fabric, folder):
    """Stands for training that is stopped while it writes."""
    (folder / f"{fabric.global_rank}.half").touch()
    try:
        time.sleep(300)
    finally:
        (folder / f"{fabric.global_rank}.half").unlink()


def test_an_interrupt_lets_spawned_processes_clean_up(tmp_path, monkeypatch, pytestconfig):
    """Their finally blocks run, where half-written files are removed; processes of somebody else go on."""
    monkeypatch.syspath_prepend(pytestconfig.rootpath)  # where spawned processes find this module
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


def run(dataset, out, *overrides, devices=2, resume=False):
    """Train a small digits network."""
    recipe = load_recipe("digits", [*SMALL, f"training.devices={devices}", *overrides])
    return train(recipe, dataset, out, resume=resume, progress=False)


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
def test_training_in_two_processes_gives_the_weights_of_one(dataset, tmp_path, mode):
    """Without dropout, which each process draws for itself: the same losses, temperatures and weights."""
    settings = [*TEMPERATURES[mode], "model.dropout=0", 'loss.layers=["conv1", "conv2", "dense"]']
    one, two = (run(dataset, tmp_path / str(n), *settings, devices=n) for n in (1, 2))

    for a, b in zip(one.history, two.history, strict=True):
        for key in ("loss", "ce", "train_accuracy", "test_accuracy"):
            assert b[key] == pytest.approx(a[key], rel=1e-5)
        assert b["snnl"] == pytest.approx(a["snnl"], rel=1e-5)
        assert b["temperature"] == pytest.approx(a["temperature"], rel=1e-4)
    weights = two.model.state_dict()
    for name, value in one.model.state_dict().items():
        assert torch.allclose(weights[name], value, rtol=1e-4, atol=1e-5), name


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_every_process_with_our_error(dataset, tmp_path):
    """Only one process sees the bad row at first; the message is that of one process alone."""
    x = dataset.train.x.astype(np.float32)
    x[5] = np.nan
    bad = dataclasses.replace(dataset, train=dataclasses.replace(dataset.train, x=x))

    with pytest.raises(DataError, match=r"cross-entropy is nan in epoch 1, step 0; no checkpoint was written yet"):
        run(bad, tmp_path)


@pytest.mark.slow
def test_under_torchrun_one_process_writes_and_reports(tmp_path):
    """The weights of spawned processes, one line of output, and no file of the other process."""
    settings = [argument for s in (*SMALL, "training.devices=2") for argument in ("--set", s)]
    command = [*TORCHRUN, "softkin-train", "train", "digits", "--out", str(tmp_path / "run"), "--quiet", *settings]

    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=300)

    assert done.returncode == 0, done.stderr
    assert done.stdout.count("test accuracy") == 1
    files = sorted(p.name for p in (tmp_path / "run").iterdir())
    assert [f for f in files if f != "tensorboard"] == ["checkpoint.pt", "history.jsonl"]
    recipe = load_recipe("digits", [*SMALL, "training.devices=2"])
    spawned = train(recipe, load_dataset(recipe), tmp_path / "spawned", progress=False).model.state_dict()
    torchrun = load_checkpoint(recipe, load_dataset(recipe), tmp_path / "run").state_dict()
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

    with pytest.raises(RecipeError, match=r"accelerator = 'cuda', devices = 1, .*cannot be had here.*--set"):
        make_fabric(load_recipe("digits", ["training.accelerator=cuda"]).training)


def environment():
    """With the commands of this interpreter first."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

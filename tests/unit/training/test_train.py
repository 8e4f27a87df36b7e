"""The training loop: reproducible, resumable, and clear when it stops."""

from __future__ import annotations

import dataclasses
import io
import json
import resource

import numpy as np
import pytest
import torch
from rich.console import Console

from small_runs import interrupted_after, need, run
from softkin.errors import DataError, InvalidInputError, RecipeError
from softkin_training import train as train_module
from softkin_training.config import load_recipe
from softkin_training.data import load_dataset
from softkin_training.rows import Rows
from softkin_training.train import _progress_bar, accuracy, learning_rate_at, train

pytestmark = pytest.mark.training


@pytest.fixture(scope="module")
def dataset():
    """The embedded digits."""
    return load_dataset(load_recipe("digits"))


def weights(result):
    """All parameters and buffers."""
    return result.model.state_dict()


def same(a, b):
    """Whether two state dicts agree bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_the_digits_recipe_learns_its_digits(dataset, tmp_path):
    """The recipe that ships reaches 97 % on held-out rows of the known classes."""
    recipe = load_recipe("digits", ["training.accelerator=cpu", "training.probe_rows=0"])  # it changes no weight
    result = train(recipe, dataset, tmp_path, progress=False)

    assert accuracy(result.model, dataset.test) >= 0.97


def test_equal_seeds_give_equal_weights(dataset, tmp_path):
    """On CPU bit for bit, whatever the caller's random state; another seed gives others."""
    torch.manual_seed(1)
    first = run(dataset, tmp_path / "a")
    torch.manual_seed(2)
    again, other = run(dataset, tmp_path / "b"), run(dataset, tmp_path / "c", "seed=1")

    assert same(weights(first), weights(again))
    assert not same(weights(first), weights(other))


def test_training_leaves_the_callers_random_state(dataset, tmp_path):
    """No global seed is set behind the caller's back."""
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    run(dataset, tmp_path, "training.epochs=1")

    assert torch.equal(torch.rand(3), expected)


def test_threads_are_set_for_training_only(dataset, tmp_path, monkeypatch):
    """The recipe's count holds inside the loop, the caller's afterwards."""
    seen = []
    original = train_module.balanced_batches
    monkeypatch.setattr(
        train_module, "balanced_batches", lambda *args: seen.append(torch.get_num_threads()) or original(*args)
    )
    # No probe: two threads that wait for each other take ten times as long where other work has the cores.
    run(dataset, tmp_path, "training.epochs=1", "training.cpu_threads=2", "training.probe_rows=0")

    assert (set(seen), torch.get_num_threads()) == ({2}, 1)


@pytest.mark.parametrize(("torchs_own", "allowed", "expected"), [(4, 3, 3), (2, 3, 2)])
def test_threads_that_nobody_chose_are_no_more_than_the_process_may_use(monkeypatch, torchs_own, allowed, expected):
    """torch knows no quota; where it takes fewer by itself, as it does of cores with two threads each, so it may."""
    monkeypatch.setattr(train_module, "available_threads", lambda: allowed)
    torch.set_num_threads(torchs_own)

    with train_module._cpu_threads(0):
        assert torch.get_num_threads() == expected
    assert torch.get_num_threads() == torchs_own


@pytest.mark.parametrize("epochs", [1, 3])
def test_resuming_gives_the_weights_of_an_uninterrupted_run(dataset, tmp_path, monkeypatch, epochs):
    """Dropout, shuffling, optimiser, schedule and temperatures all go on where they were."""
    whole = run(dataset, tmp_path / "whole")
    interrupted_after(epochs, monkeypatch, dataset, tmp_path / "cut")
    resumed = run(dataset, tmp_path / "cut", resume=True)

    assert same(weights(resumed), weights(whole))
    untimed = [[{k: v for k, v in epoch.items() if k != "seconds"} for epoch in r.history] for r in (resumed, whole)]
    assert untimed[0] == untimed[1]


def test_resuming_repeats_epochs_after_the_last_checkpoint(dataset, tmp_path, monkeypatch):
    """With a checkpoint every 2 epochs, the third is trained again and stands in the history once."""
    every = "training.checkpoint_every_epochs=2"
    whole = run(dataset, tmp_path / "whole", every)
    interrupted_after(3, monkeypatch, dataset, tmp_path / "cut", every)
    resumed = run(dataset, tmp_path / "cut", every, resume=True)

    lines = (tmp_path / "cut" / "history.jsonl").read_text().splitlines()
    assert same(weights(resumed), weights(whole))
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3, 4]


def test_resuming_a_finished_run_trains_no_further(dataset, tmp_path):
    """It hands back the finished model: the last epoch has a checkpoint, whichever others have."""
    every = "training.checkpoint_every_epochs=3"
    first = run(dataset, tmp_path, every)
    again = run(dataset, tmp_path, every, resume=True)

    assert same(weights(first), weights(again))
    assert again.history == first.history


def test_resuming_without_a_checkpoint_starts_afresh(dataset, tmp_path):
    """So that a job that restarts itself can always pass resume."""
    assert len(run(dataset, tmp_path, "training.epochs=1", resume=True).history) == 1


def test_resuming_with_another_recipe_is_refused(dataset, tmp_path):
    """The message names key, old and new value; it is that of the steps after training too, which resume nothing."""
    run(dataset, tmp_path, "training.epochs=1")

    found = r"checkpoint\.pt is another recipe's: training\.epochs: 1 -> 4; undo that, or run the train step again,"
    with pytest.raises(RecipeError, match=found):
        run(dataset, tmp_path, resume=True)


def test_resuming_with_another_detector_is_allowed(dataset, tmp_path):
    """The detector is built after training and does not touch the weights."""
    first = run(dataset, tmp_path, "training.epochs=1")
    again = run(dataset, tmp_path, "training.epochs=1", "detector.alpha=0.2", resume=True)

    assert same(weights(first), weights(again))


def test_resuming_on_other_rows_is_refused(dataset, tmp_path):
    """Equal recipes over changed files are not the same run."""
    run(dataset, tmp_path, "training.epochs=1")
    fewer = dataclasses.replace(dataset, train=dataset.train.take(np.arange(800)))

    with pytest.raises(RecipeError, match="the training rows have changed; run the train step again, without --resume"):
        run(fewer, tmp_path, "training.epochs=1", resume=True)


@pytest.mark.parametrize("content", [b"", b"garbage"], ids=["empty", "garbage"])
def test_a_damaged_checkpoint_is_refused_by_name(dataset, tmp_path, content):
    """The remedy stands in the message."""
    (tmp_path / "checkpoint.pt").write_bytes(content)

    with pytest.raises(DataError, match=r"checkpoint\.pt.*; run the train step again, without --resume"):
        run(dataset, tmp_path, resume=True)


class Opener:
    """What creates a file as it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_a_checkpoint_runs_no_code(dataset, tmp_path):
    """Whoever is given one need not trust who made it."""
    torch.save({"recipe": Opener(tmp_path / "ran")}, tmp_path / "checkpoint.pt")

    with pytest.raises(DataError, match=r"checkpoint\.pt: damaged, or no checkpoint of softkin"):
        run(dataset, tmp_path, resume=True)
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_that_cannot_be_read_is_not_called_damaged(dataset, tmp_path):
    """As without the right to read it; here a folder stands in its place."""
    (tmp_path / "checkpoint.pt").mkdir()

    with pytest.raises(
        DataError, match=r"/checkpoint\.pt: cannot be read \(Is a directory\); make it readable, or run"
    ):
        run(dataset, tmp_path, resume=True)


def test_history_tells_each_epoch(dataset, tmp_path):
    """One JSON object per epoch, the same as in the result; the objective is made of its parts."""
    result = run(dataset, tmp_path, 'loss.layers=["conv1", "conv2"]', "loss.weight={conv1=-0.5, conv2=2.0}")
    written = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]

    assert written == result.history
    for epoch in written:
        assert epoch.keys() >= {
            "epoch",
            "loss",
            "ce",
            "snnl",
            "temperature",
            "train_accuracy",
            "test_accuracy",
            "seconds",
        }
        assert epoch["loss"] == pytest.approx(epoch["ce"] - 0.5 * epoch["snnl"]["conv1"] + 2 * epoch["snnl"]["conv2"])
        assert min(epoch["temperature"].values()) > 0
    assert written[-1]["test_accuracy"] == accuracy(result.model, dataset.test)


def test_a_negative_weight_entangles_and_a_positive_one_separates(dataset, tmp_path):
    """The sign of the weight moves the loss of the layer its way."""
    final = {
        w: run(dataset, tmp_path / w, f"loss.weight={w}").history[-1]["snnl"]["conv2"] for w in ("-1.0", "0.0", "1.0")
    }

    assert final["1.0"] < final["0.0"] < final["-1.0"]


def test_the_loss_of_averaged_maps_is_another(dataset, tmp_path):
    """As `loss.max_side` asks for; the network before the first step is the same."""
    first = {n: run(dataset, tmp_path / n, f"loss.max_side={n}").history[0]["snnl"]["conv2"] for n in "019"}

    assert first["0"] == first["9"] != first["1"]


def test_a_recipe_without_snnl_layers_trains_on_cross_entropy_alone(dataset, tmp_path):
    """The plain network is one key away."""
    history = run(dataset, tmp_path, "loss.layers=[]").history

    assert history[-1]["snnl"] == {}
    assert history[-1]["loss"] == history[-1]["ce"]


@pytest.mark.parametrize("accelerator", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("layers", ['["conv1"]', "[]"], ids=["entangled", "plain"])
def test_a_loss_that_is_not_finite_stops_training_and_keeps_the_checkpoint(dataset, tmp_path, layers, accelerator):
    """The message names the term, the epoch and the step; the last good checkpoint still loads."""
    need(accelerator)
    settings = ("training.epochs=1", f"loss.layers={layers}", f"training.accelerator={accelerator}")
    good = run(dataset, tmp_path, *settings)
    rows = dataset.train
    x = rows.x.astype(np.float32)
    x[5] = np.nan
    bad = dataclasses.replace(dataset, train=Rows(x, rows.y, rows.ids))

    with pytest.raises(DataError, match=r"cross-entropy is nan in epoch 1, step 0; the checkpoint in .* is kept"):
        run(bad, tmp_path, *settings)
    assert same(weights(run(dataset, tmp_path, *settings, resume=True)), weights(good))


def test_the_layer_whose_loss_is_not_finite_is_named(dataset, tmp_path):
    """The published temperature may cross 0, where its loss overflows; the message says layer, epoch and step."""
    settings = ("training.epochs=1", 'loss.layers=["conv1", "conv2"]', "training.batch_size=256")
    good = run(dataset, tmp_path, *settings)
    learned = ("loss.temperature=learned", "loss.initial_temperature=1e-3", "loss.temperature_step=1e6")

    with pytest.raises(DataError, match=r"SNNL of conv[12] is (nan|inf) in epoch 1, step \d+; the checkpoint .* kept"):
        run(dataset, tmp_path, *settings, *learned)
    assert same(weights(run(dataset, tmp_path, *settings, resume=True)), weights(good))


def test_weights_that_are_not_finite_never_replace_a_checkpoint(dataset, tmp_path, monkeypatch):
    """The last step of an epoch may break them behind a loss that was still finite."""
    good = run(dataset, tmp_path, "training.epochs=1")

    def break_weights(self, closure=None):
        for group in self.param_groups:
            group["params"][0].data.fill_(np.inf)

    monkeypatch.setattr(torch.optim.AdamW, "step", break_weights)
    one_step = ("training.epochs=1", "training.batch_size=5000", "seed=1")
    with pytest.raises(
        DataError, match=r"blocks\.conv1\.0\.weight is not finite after epoch 1; the checkpoint .* is kept"
    ):
        run(dataset, tmp_path, *one_step)
    monkeypatch.undo()
    assert same(weights(run(dataset, tmp_path, "training.epochs=1", resume=True)), weights(good))


def test_a_checkpoint_of_an_older_version_can_be_resumed(dataset, tmp_path):
    """Keys that its recipe did not have are at their defaults, and its random state was of one process."""
    first = run(dataset, tmp_path, "training.epochs=1")
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    del state["recipe"]["loss"]["initial_temperature"], state["recipe"]["training"]["probe_rows"]
    state["rng"]["torch"] = state["rng"]["torch"][0]
    torch.save(state, tmp_path / "checkpoint.pt")

    assert same(weights(run(dataset, tmp_path, "training.epochs=1", resume=True)), weights(first))


def test_resuming_with_another_probe_is_allowed(dataset, tmp_path):
    """It does not touch the weights."""
    first = run(dataset, tmp_path, "training.epochs=1")
    again = run(dataset, tmp_path, "training.epochs=1", "training.probe_rows=0", resume=True)

    assert same(weights(first), weights(again))


@pytest.mark.parametrize("temperature", ["fixed", "learned"])
def test_every_temperature_mode_resumes(dataset, tmp_path, monkeypatch, temperature):
    """The published t and its temperature are part of the checkpoint."""
    settings = (f"loss.temperature={temperature}", "loss.initial_temperature=0.1", "loss.fixed_temperature=0.1")
    whole = run(dataset, tmp_path / "whole", *settings)
    interrupted_after(2, monkeypatch, dataset, tmp_path / "cut", *settings)
    resumed = run(dataset, tmp_path / "cut", *settings, resume=True)

    assert same(weights(resumed), weights(whole))
    moved = {t for epoch in resumed.history for t in epoch["temperature"].values()}
    assert (len(moved) == 1) == (temperature == "fixed")


def test_a_full_disk_keeps_the_old_checkpoint(dataset, tmp_path):
    """A write that fails half-way: a clear error, the old checkpoint byte for byte, no litter, and resume goes on."""
    good = run(dataset, tmp_path, "training.epochs=1", "training.probe_rows=0")
    files = sorted(p.name for p in tmp_path.iterdir())
    before = (tmp_path / "checkpoint.pt").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))  # files cannot grow past it, as on a full disk
    try:
        with pytest.raises(
            InvalidInputError, match=r"cannot write .*checkpoint\.pt \(.+\), the one before is kept; make"
        ):
            run(dataset, tmp_path, "training.epochs=1", "training.probe_rows=0", "seed=1")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == files
    again = run(dataset, tmp_path, "training.epochs=1", "training.probe_rows=0", resume=True)
    assert same(weights(again), weights(good))


def test_a_full_disk_under_the_history_is_a_clear_error(dataset, tmp_path):
    """The first file of an epoch; what stood there is whole."""
    run(dataset, tmp_path, "training.epochs=1")
    before = (tmp_path / "history.jsonl").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(InvalidInputError, match=r"out_dir: cannot write to .*make room"):
            run(dataset, tmp_path, "training.epochs=1", resume=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert (tmp_path / "history.jsonl").read_bytes() == before


def test_an_unwritable_folder_is_refused_before_training(dataset, tmp_path):
    """A file stands where the folder should be."""
    (tmp_path / "file").write_text("")

    with pytest.raises(InvalidInputError, match=r"out_dir: cannot write to .*file.*choose another"):
        run(dataset, tmp_path / "file" / "run")


def test_learning_rate_rises_then_falls_to_zero():
    """A tenth of the steps up to the peak, the rest down half a cosine."""
    rates = [learning_rate_at(step, 100, 0.5) for step in range(100)]

    assert max(rates) == rates[9] == 0.5
    assert rates[:10] == sorted(rates[:10])
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert 0 < rates[-1] < 0.001


def test_a_run_of_one_step_has_a_learning_rate():
    """The shortest run trains at the peak."""
    assert learning_rate_at(0, 1, 0.1) == 0.1


def test_the_progress_bar_keeps_count_and_time_on_a_narrow_terminal():
    """The figures of losses give way: they are in the history too."""
    bar = _progress_bar("fashion_mnist", 2110, shown=True)
    note = "loss 0.304 acc 0.889 | SNNL conv1 0.236 conv2 0.264 dense 0.123"
    bar.add_task("fashion_mnist", total=2110, completed=39, note=note)
    console = Console(width=80, file=io.StringIO())

    console.print(bar.get_renderable())

    [line] = console.file.getvalue().splitlines()
    assert line.startswith("fashion_mnist ")
    assert "   39/2110 -:--:-- loss 0.304 acc 0.889" in line


def test_a_progress_bar_that_is_not_shown_writes_nothing(capsys):
    """Not even the empty line with which older versions of rich end one that is disabled."""
    with _progress_bar("digits", 3, shown=False) as bar:
        bar.add_task("digits", total=3, note="")

    assert capsys.readouterr() == ("", "")

"""How far a run is, and what it tells: rates, the progress bar, losses, where it begins and what it leaves behind."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from small_runs import SMALL, interrupted_after, run
from softkin_training import train as train_module
from softkin_training.config import load_recipe
from softkin_training.data import load_dataset
from softkin_training.losses import soft_nearest_neighbor_loss
from softkin_training.rows import Rows
from softkin_training.train import accuracy, learning_rate_at, train

pytestmark = pytest.mark.training

SHORT = ("training.epochs=3", "training.batch_size=256", "training.probe_rows=0")
RECIPE = load_recipe("digits", [*SMALL, *SHORT])


@pytest.fixture(scope="module")
def dataset():
    """The embedded digits."""
    return load_dataset(RECIPE)


def test_rates_follow_the_steps_of_the_whole_run(dataset, tmp_path):
    """An epoch's is that of its last step."""
    each = len(dataset.train) // 256
    assert each > 2

    history = run(dataset, tmp_path, *SHORT).history

    peak = RECIPE.training.learning_rate
    expected = [learning_rate_at(epoch * each - 1, 3 * each, peak) for epoch in (1, 2, 3)]
    assert [epoch["learning_rate"] for epoch in history] == expected


def test_the_bar_of_a_resumed_run_counts_the_steps_of_all_epochs(dataset, tmp_path, monkeypatch):
    """It begins where the run was stopped, so that it ends full."""
    interrupted_after(1, monkeypatch, dataset, tmp_path, *SHORT)
    bars, original = [], train_module._progress_bar

    def kept(*arguments, **options):
        bars.append(original(*arguments, **options))
        return bars[-1]

    monkeypatch.setattr(train_module, "_progress_bar", kept)
    run(dataset, tmp_path, *SHORT, resume=True)

    [task] = bars[0].tasks
    steps = 3 * (len(dataset.train) // 256)
    assert (task.description, task.completed, task.total) == ("digits", steps, steps)
    assert task.fields["note"].startswith("loss ")


def test_a_bar_that_is_shown_is_written(capsys, monkeypatch):
    """Where there is no terminal, as it stands at the end."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    with train_module._progress_bar("digits", 3, shown=True) as bar:
        bar.update(bar.add_task("digits", total=3, note="loss 0.5"), advance=3)

    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith("digits ━━━━")
    assert "3/3 0:00:00 loss 0.5" in line


def test_an_older_run_is_overwritten_by_a_run_that_is_not_asked_to_go_on(dataset, tmp_path):
    """Another recipe in the same folder begins at its first epoch; the folder and those above it are made."""
    out = tmp_path / "of" / "mine"
    run(dataset, out, *SHORT)
    other = load_recipe("digits", [*SMALL, *SHORT, "training.epochs=1"])

    history = train(other, dataset, out, progress=False).history

    assert [epoch["epoch"] for epoch in history] == [1]
    assert len((out / "history.jsonl").read_text().splitlines()) == 1
    assert not list(out.glob(".*"))  # by which it was tried whether the folder can be written
    assert len(train(other, dataset, out, resume=True, progress=False).history) == 1


def test_checkpoints_are_written_as_often_as_the_recipe_says(dataset, tmp_path, monkeypatch):
    """After every epoch they would take longer than a short one; the last epoch always has one."""
    rarely = (*SHORT, "training.checkpoint_every_epochs=2")

    interrupted_after(1, monkeypatch, dataset, tmp_path, *rarely)
    assert not (tmp_path / "checkpoint.pt").exists()

    interrupted_after(2, monkeypatch, dataset, tmp_path, *rarely)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["epoch"] == 2

    run(dataset, tmp_path, *rarely)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["epoch"] == 3


def test_the_losses_of_an_epoch_are_means_over_all_rows(dataset, tmp_path):
    """Every one is trained on: against one pass over them, of weights that hardly move."""
    still = (*SHORT, "training.epochs=1", "training.learning_rate=1e-12", "model.dropout=0")

    trained = run(dataset, tmp_path, *still)

    [epoch] = trained.history
    rows = dataset.train
    with torch.inference_mode():
        ce = torch.nn.functional.cross_entropy(trained.model(torch.from_numpy(rows.x)), torch.from_numpy(rows.y))
    assert epoch["ce"] == pytest.approx(float(ce), rel=1e-5)
    assert epoch["train_accuracy"] == pytest.approx(accuracy(trained.model, rows), abs=0.002)


@pytest.mark.parametrize("metric", ["cosine", "squared_euclidean"])
def test_the_loss_of_a_layer_is_taken_in_the_metric_of_the_recipe(dataset, tmp_path, metric):
    """And at its temperature: against the loss of all rows in one batch, of weights that hardly move."""
    still = ("training.epochs=1", "training.batch_size=5000", "training.learning_rate=1e-12", "model.dropout=0")
    loss = (f"loss.metric={metric}", "loss.temperature=fixed", "loss.fixed_temperature=0.7", "loss.max_side=0")

    trained = run(dataset, tmp_path, *still, *loss, "training.probe_rows=0")

    rows = dataset.train
    with torch.inference_mode():
        _, hidden = trained.model.forward_with_hidden(torch.from_numpy(rows.x))
    for layer, value in trained.history[0]["snnl"].items():
        z = hidden[layer].flatten(1)
        expected = soft_nearest_neighbor_loss(z, torch.from_numpy(rows.y), temperature=0.7, metric=metric)
        assert value == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 9])
def test_accuracy_is_the_share_of_rows_whose_largest_logit_is_their_label(batch_size):
    """However they are dealt into batches."""
    model = torch.nn.Linear(3, 3, bias=False)
    model.weight.data = torch.eye(3)
    rows = Rows(np.eye(3, dtype=np.float32)[[0, 1, 2, 0, 1]], np.array([0, 1, 2, 1, 1]), np.arange(5))

    assert accuracy(model, rows, batch_size=batch_size) == 0.8
    assert not model.training

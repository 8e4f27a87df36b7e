"""The file that training goes on from: what is said where it cannot be written, or is of other processes."""

from __future__ import annotations

import resource

import pytest
import torch

from small_runs import SMALL, interrupted_after, run
from softkin.errors import InvalidInputError, RecipeError
from softkin_training import checkpoint
from softkin_training.config import load_recipe
from softkin_training.data import load_dataset
from softkin_training.train import load_checkpoint

pytestmark = pytest.mark.training
ONE_EPOCH = ("training.epochs=1", "training.probe_rows=0", "training.batch_size=256")


@pytest.fixture(scope="module")
def dataset():
    """The embedded digits."""
    return load_dataset(load_recipe("digits", SMALL))


def test_a_full_disk_under_the_first_checkpoint_says_that_there_is_none(dataset, tmp_path):
    """Nobody looks for one that was kept; the history, a small file, was written before."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))  # files cannot grow past it, as on a full disk
    try:
        with pytest.raises(
            InvalidInputError, match=r"cannot write .*checkpoint\.pt \(.+\), there is none yet; make room"
        ):
            run(dataset, tmp_path, *ONE_EPOCH)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert not (tmp_path / "checkpoint.pt").exists()


def test_another_number_of_processes_than_wrote_the_checkpoint_is_refused(dataset, tmp_path, monkeypatch):
    """Each goes on with a random state of its own, and of the others there is none."""
    run(dataset, tmp_path, *ONE_EPOCH)
    monkeypatch.setattr(checkpoint, "num_processes", lambda: 2)

    with pytest.raises(RecipeError, match=r"checkpoint\.pt: 1 processes wrote it and these are 2; start as many, or"):
        run(dataset, tmp_path, *ONE_EPOCH, resume=True)


def test_the_steps_after_training_need_a_finished_run(dataset, tmp_path, monkeypatch):
    """They are told how far it is; from a finished one they get its weights, and the caller keeps his random state."""
    settings = ("training.epochs=2", *ONE_EPOCH[1:])
    recipe = load_recipe("digits", [*SMALL, *settings])
    with pytest.raises(InvalidInputError, match=r"^out: .*checkpoint\.pt does not exist; run the train step first$"):
        load_checkpoint(recipe, dataset, tmp_path)
    interrupted_after(1, monkeypatch, dataset, tmp_path, *settings)
    with pytest.raises(RecipeError, match=r"checkpoint\.pt holds 1 of 2 epochs; finish it with --resume$"):
        load_checkpoint(recipe, dataset, tmp_path)
    trained = run(dataset, tmp_path, *settings).model.state_dict()
    before = torch.get_rng_state()

    loaded = load_checkpoint(recipe, dataset, str(tmp_path))

    assert torch.equal(torch.get_rng_state(), before)
    assert not loaded.training
    assert all(torch.equal(value, trained[name]) for name, value in loaded.state_dict().items())


@pytest.mark.parametrize(
    ("override", "decides"),
    [
        ("seed=5", True),
        ("data.calibration_rows=77", True),
        ("model.dense=9", True),
        ("loss.weight=0.5", True),
        ("augmentation.horizontal_flip=0.25", True),
        ("training.batch_size=77", True),
        ("name=other", False),
        ("data.path=moved.npz", False),
        ("data.outliers.more=o.npz", False),
        ("training.cuda_graph=false", False),
        ("detector.max_dim=9", False),
    ],
)
def test_a_run_goes_on_under_whatever_does_not_decide_its_weights(override, decides):
    """Files may move, for rows are told by their contents; the detector is made later."""
    before, after = (
        checkpoint.deciding(load_recipe("mnist", ["data.path=x.npz", *more]).to_dict()) for more in ([], [override])
    )

    changed = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
    assert changed == ({override.partition("=")[0]} if decides else set())


def test_a_checkpoint_whose_recipe_has_a_key_that_is_gone_is_another_recipes(dataset, tmp_path):
    """Nobody knows what it did; the message names it."""
    run(dataset, tmp_path, *ONE_EPOCH)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    state["recipe"]["training"]["gone"] = 3
    torch.save(state, tmp_path / "checkpoint.pt")

    with pytest.raises(
        RecipeError, match=r"checkpoint\.pt is another recipe's: training\.gone: 3 -> None; undo that, or"
    ):
        run(dataset, tmp_path, *ONE_EPOCH, resume=True)

"""Random changes of training batches, and of nothing else."""

from __future__ import annotations

import sys

import pytest
import torch
from kornia.augmentation import RandomCrop

from softkin.errors import DataError, RecipeError
from softkin_training import train as train_module
from softkin_training.augmentation import make_augmentation
from softkin_training.config import load_recipe
from softkin_training.data import load_dataset
from softkin_training.data_config import AugmentationConfig
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


def images(shape=(40, 8, 8), seed=0):
    """Raw images from 1 to 255: no pixel is zero."""
    return torch.randint(1, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def changed(x, **settings):
    """The rows after a seeded augmentation."""
    torch.manual_seed(0)
    return make_augmentation(AugmentationConfig(**settings), tuple(x.shape[1:]))(x)


@pytest.mark.parametrize("shape", [(40, 8, 8), (40, 6, 9), (40, 8, 8, 3)], ids=["grey", "not square", "colour"])
def test_shape_and_scale_stay(shape):
    """float32 rows in the layout of the source."""
    x = images(shape)
    y = changed(x, crop_padding=2, horizontal_flip=0.5, rotation_degrees=10.0)

    assert (y.shape, y.dtype) == (x.shape, torch.float32)
    assert 0 <= float(y.min()) < float(y.max()) <= 255
    assert not torch.equal(y, x.float())


def test_a_flip_is_a_mirror_image_at_its_probability():
    """Always at 1, some at a half, each the image itself or its mirror."""
    x = images((40, 8, 8, 3))

    assert torch.equal(changed(x, horizontal_flip=1.0), x.float().flip(2))
    some = changed(x, horizontal_flip=0.5)
    mirrored = (some == x.float().flip(2)).flatten(1).all(dim=1)
    kept = (some == x.float()).flatten(1).all(dim=1)
    assert bool((mirrored ^ kept).all())
    assert 5 < int(mirrored.sum()) < 35


def test_a_crop_is_the_image_shifted_by_at_most_the_padding():
    """What comes in from outside is zero; rows are shifted apart from each other."""
    x = images()
    padded = torch.nn.functional.pad(x.float(), (2, 2, 2, 2))
    shifts = []
    for row, around in zip(changed(x, crop_padding=2), padded, strict=True):
        found = [(i, j) for i in range(5) for j in range(5) if torch.equal(row, around[i : i + 8, j : j + 8])]
        assert len(found) == 1
        shifts += found
    assert len(set(shifts)) > 10


@pytest.mark.parametrize("shape", [(40, 6, 9), (40, 8, 8, 3)], ids=["grey, not square", "colour"])
def test_a_crop_is_what_kornia_makes_of_the_same_random_numbers(shape):
    """All images at once, as its own loop over them would have done one by one."""
    x = images(shape)
    torch.manual_seed(0)
    crop = RandomCrop(size=shape[1:3], padding=2)
    theirs = crop((x.unsqueeze(3) if x.ndim == 3 else x).permute(0, 3, 1, 2).float()).permute(0, 2, 3, 1)

    assert torch.equal(changed(x, crop_padding=2), theirs.reshape(shape))


def test_a_turned_image_keeps_its_middle():
    """A centred disc hardly changes, the corners do, those of every picture."""
    x = torch.zeros(20, 15, 15)
    x[:, 4:11, 4:11] = 100.0
    y = changed(x, rotation_degrees=10.0)

    assert torch.allclose(y[:, 6:9, 6:9], torch.full((20, 3, 3), 100.0), atol=1e-3)
    assert float((y - x).abs().amax(dim=(1, 2)).min()) > 0.1
    assert float((y - x).abs().amax()) > 10


def test_equal_seeds_draw_equal_changes():
    """From torch's own generator, whose state a checkpoint holds; the next batch is changed otherwise."""
    x, settings = images(), {"crop_padding": 2, "rotation_degrees": 5.0, "horizontal_flip": 0.5}
    first, again = changed(x, **settings), changed(x, **settings)
    augment = make_augmentation(AugmentationConfig(**settings), (8, 8))
    torch.manual_seed(0)

    assert torch.equal(first, again)
    assert torch.equal(augment(x), first)
    assert not torch.equal(augment(x), first)


def test_only_training_batches_are_changed(tmp_path, monkeypatch):
    """One call for each batch; the bank, calibration and accuracy never see a changed row."""
    recipe = load_recipe("digits", [*SMALL, "augmentation.crop_padding=1"])
    dataset = load_dataset(recipe)
    seen = []
    monkeypatch.setattr(train_module, "make_augmentation", lambda *_: lambda x: seen.append(x.clone()) or x.float())

    train(recipe, dataset, tmp_path, progress=False)

    rows = torch.cat(seen)
    assert len(rows) == 2 * len(dataset.train)
    assert torch.equal(rows.flatten(1).unique(dim=0, return_counts=True)[1], torch.full((len(dataset.train),), 2))
    assert torch.equal(rows.sum(dim=0), 2 * torch.from_numpy(dataset.train.x).sum(dim=0))


def test_augmentation_changes_the_weights_and_repeats(tmp_path):
    """Equal recipes give equal weights; without the section, others."""
    found = []
    for i, settings in enumerate([["augmentation.crop_padding=1"], ["augmentation.crop_padding=1"], []]):
        recipe = load_recipe("digits", [*SMALL, *settings])
        found.append(train(recipe, load_dataset(recipe), tmp_path / str(i), progress=False).model.state_dict())

    assert all(torch.equal(found[0][k], found[1][k]) for k in found[0])
    assert not all(torch.equal(found[0][k], found[2][k]) for k in found[0])


def test_a_checkpoint_of_another_augmentation_is_not_resumed(tmp_path):
    """It decides the weights like any other setting."""
    recipe = load_recipe("digits", [*SMALL, "augmentation.crop_padding=1"])
    dataset = load_dataset(recipe)
    train(recipe, dataset, tmp_path, progress=False)

    with pytest.raises(RecipeError, match=r"augmentation\.crop_padding: 1 -> 2"):
        train(
            load_recipe("digits", [*SMALL, "augmentation.crop_padding=2"]),
            dataset,
            tmp_path,
            resume=True,
            progress=False,
        )


def test_without_the_section_nothing_is_drawn():
    """Recipes without augmentation keep their weights, and need no kornia."""
    assert make_augmentation(AugmentationConfig(), (8, 8)) is None


def test_rows_that_are_no_images_are_refused():
    """Before training."""
    with pytest.raises(DataError, match=r"rows are \[64\]; it needs images"):
        make_augmentation(AugmentationConfig(horizontal_flip=0.5), (64,))


def test_without_kornia_the_extra_is_named(monkeypatch):
    """With the command that installs it."""
    monkeypatch.setitem(sys.modules, "kornia.augmentation", None)

    with pytest.raises(RecipeError, match=r"needs the package kornia.*pip install 'softkin\[augmentation\]'"):
        make_augmentation(AugmentationConfig(horizontal_flip=0.5), (8, 8))

"""Training on a GPU, and the precision of its products."""

from __future__ import annotations

import pytest
import torch

from small_runs import interrupted_after, need, run
from softkin_training.config import load_recipe
from softkin_training.data import load_dataset
from softkin_training.train import tensor_cores, train

pytestmark = pytest.mark.training


@pytest.fixture(scope="module")
def dataset():
    """The embedded digits."""
    return load_dataset(load_recipe("digits"))


@pytest.mark.gpu
def test_training_on_a_gpu_can_be_resumed(dataset, tmp_path, monkeypatch):
    """It goes on where it was, but for the order of a GPU's sums."""
    need("cuda")
    gpu = "training.accelerator=cuda"
    whole = run(dataset, tmp_path / "whole", gpu)
    interrupted_after(2, monkeypatch, dataset, tmp_path / "cut", gpu)
    resumed = run(dataset, tmp_path / "cut", gpu, resume=True)

    for key in ("ce", "temperature"):
        for found, expected in zip(resumed.history, whole.history, strict=True):
            assert found[key] == pytest.approx(expected[key], rel=0.05)


def test_a_precision_that_the_caller_chose_stays():
    """torch's older and newer switches exclude each other, and neither hinders training."""
    before = torch.get_float32_matmul_precision()
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        for device in ("cpu", "cuda"):
            with tensor_cores(torch.device(device)):
                assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    finally:
        torch.backends.cuda.matmul.fp32_precision = "none"
        torch.set_float32_matmul_precision(before)


@pytest.mark.gpu
def test_tensor_cores_are_not_used_where_convolutions_may_not():
    """The switch is torch's own, and as it was afterwards."""
    need("cuda")
    for allowed in (True, False):
        with torch.backends.cudnn.flags(allow_tf32=allowed), tensor_cores(torch.device("cuda")):
            assert torch.get_float32_matmul_precision() == ("high" if allowed else "highest")
        assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_training_works_on_a_gpu(dataset, tmp_path, precision):
    """The same recipe learns there, in full and in mixed precision."""
    need("cuda")
    recipe = load_recipe("digits", ["training.accelerator=cuda", f"training.precision={precision}"])

    assert train(recipe, dataset, tmp_path, progress=False).history[-1]["test_accuracy"] >= 0.97

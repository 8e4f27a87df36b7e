"""Means of an epoch, and when a batch that is not finite is refused."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from softkin.errors import DataError
from softkin_training.epoch_sums import EpochSums, non_finite, refuse_non_finite_weights

pytestmark = pytest.mark.training

NO_CHECKPOINT = Path("there is none")


def add(sums, step, cross_entropy=1.0, snnl=2.0):
    """A batch of 4 rows, 3 of them classified right."""
    sums.add(step, torch.tensor([cross_entropy, 3.0, snnl], dtype=torch.float64), 4)


@pytest.mark.parametrize("wait", [True, False])
def test_every_batch_counts_once_it_is_settled(wait):
    """Means are per row, whether batches are settled at once or one later."""
    sums = EpochSums({"a": -0.5}, 1, NO_CHECKPOINT, wait=wait)
    assert sums.note() == ""
    add(sums, 0, 1.0, 2.0)
    add(sums, 1, 3.0, 4.0)
    assert sums.rows == (8 if wait else 4)
    sums.settle()
    sums.settle()

    assert sums.means() == {"loss": 2.0 - 0.5 * 3.0, "ce": 2.0, "snnl": {"a": 3.0}, "train_accuracy": 0.75}
    assert sums.note() == "loss 0.500 acc 0.750 | SNNL a 3.000"


def test_a_batch_counts_by_its_rows_and_a_layer_by_its_name():
    """The last batch of an epoch may be smaller; layers come in the order of the network, which is no alphabet's."""
    sums = EpochSums({"deep": 2.0, "b": -0.5, "a": 0.25}, 1, NO_CHECKPOINT, wait=True)
    layers = {"deep": 1.0, "b": 4.0, "a": 16.0}
    for step, (rows, factor) in enumerate(((6, 1.0), (2, 3.0))):
        numbers = [factor, 1.0, *(factor * value for value in layers.values())]
        sums.add(step, torch.tensor(numbers, dtype=torch.float64), rows)

    mean = (6 * 1.0 + 2 * 3.0) / 8
    assert sums.means() == {
        "loss": mean * (1.0 + 2.0 * 1.0 - 0.5 * 4.0 + 0.25 * 16.0),
        "ce": mean,
        "snnl": {name: mean * value for name, value in layers.items()},
        "train_accuracy": 2 / 8,
    }


@pytest.mark.parametrize("wait", [True, False])
@pytest.mark.parametrize(
    ("what", "values"),
    [("cross-entropy is nan", (math.nan, 2.0)), ("SNNL of a is inf", (1.0, math.inf))],
    ids=["cross-entropy", "SNNL"],
)
def test_a_batch_that_is_not_finite_is_refused_with_its_own_step(wait, what, values):
    """At once, or with the next batch; the message says where it was, not where it was noticed."""
    sums = EpochSums({"a": -0.5}, 2, NO_CHECKPOINT, wait=wait)
    add(sums, 7)
    if not wait:
        add(sums, 8, *values)
    with pytest.raises(DataError, match=f"{what} in epoch 2, step 8; no checkpoint was written yet"):
        add(sums, 9) if not wait else add(sums, 8, *values)


def test_the_last_batch_is_refused_too():
    """When the epoch settles it."""
    sums = EpochSums({"a": -0.5}, 1, NO_CHECKPOINT, wait=False)
    add(sums, 3, math.nan)
    with pytest.raises(DataError, match="step 3"):
        sums.settle()


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_one_number_of_a_buffer_that_is_not_finite_is_refused(value):
    """Running statistics are not parameters, and would be saved with them."""
    model = torch.nn.BatchNorm1d(3)
    refuse_non_finite_weights(model, 2, NO_CHECKPOINT)
    model.running_var[1] = value

    with pytest.raises(DataError, match="running_var is not finite after epoch 2; no checkpoint was written yet"):
        refuse_non_finite_weights(model, 2, NO_CHECKPOINT, meant={"running_mean"})
    refuse_non_finite_weights(model, 2, NO_CHECKPOINT, meant=non_finite(model))

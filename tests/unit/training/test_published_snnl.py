"""The authors' published algorithm against a loop-written transcription of its equations, faults included."""

from __future__ import annotations

import math

import pytest
import torch

from snnl_reference import METRICS, batch, published_loss_by_loops, published_step_by_loops
from softkin_training.losses import LayeredSnnl, chance_level
from softkin_training.published_snnl import EPS

pytestmark = pytest.mark.training

SATURATED = -math.log(EPS)


def learned(metric, initial_temperature, step=0.1):
    """A module in the mode `learned`."""
    return LayeredSnnl(
        ["a"],
        metric=metric,
        temperature="learned",
        initial_temperature=initial_temperature,
        temperature_step=step,
    ).double()


@pytest.mark.parametrize(
    ("metric", "initial_temperature", "step"),
    [
        ("squared_euclidean", 100.0, 0.1),
        ("squared_euclidean", 3.0, 0.1),
        ("squared_euclidean", 0.05, 0.01),
        ("cosine", 1.0, 0.1),
        ("cosine", 100.0, 0.1),
    ],
)
def test_every_step_is_the_published_one(metric, initial_temperature, step):
    """Loss, t, temperature and gradient agree over 40 batches; some of them have rows without a partner."""
    snnl, t = learned(metric, initial_temperature, step), 1.0
    for number in range(40):
        z, y = batch(10, 3, num_classes=2 + number % 6, seed=number)
        rows = z.clone().requires_grad_()
        loss = snnl({"a": rows}, y)["a"]
        loss.backward()
        expected, t, gradient = published_step_by_loops(
            z.tolist(), y.tolist(), t, initial_temperature=initial_temperature, step=step, metric=metric
        )

        assert float(loss.detach()) == pytest.approx(expected, rel=1e-10, abs=1e-10)
        assert float(snnl.inverse[0]) == pytest.approx(t, rel=1e-10, abs=1e-10)
        assert snnl.temperatures()["a"] == pytest.approx(initial_temperature / t, rel=1e-10)
        assert torch.allclose(rows.grad, torch.tensor(gradient, dtype=torch.float64), rtol=1e-10, atol=1e-10)
    assert t != 1.0


def test_unless_told_otherwise_it_starts_and_steps_as_the_authors_did():
    """T0 = 100 and 0.1, where a fixed temperature is 100 too."""
    z, y = batch(scale=5.0)
    snnl = LayeredSnnl(["a"], metric="squared_euclidean", temperature="learned")
    snnl({"a": z}, y)

    expected = published_step_by_loops(
        z.tolist(), y.tolist(), 1.0, initial_temperature=100.0, step=0.1, metric="squared_euclidean"
    )
    assert snnl.temperatures()["a"] == pytest.approx(100.0 / expected[1], rel=1e-9)
    assert abs(expected[1] - 1) > 1e-4
    assert LayeredSnnl(["a"], temperature="fixed").temperatures() == {"a": 100.0}


@pytest.mark.parametrize("metric", METRICS)
def test_layers_step_apart_from_each_other(metric):
    """Each from its own t, by its own rows; and each temperature is that of the layer it is named by."""
    snnl = LayeredSnnl(["a", "b"], metric=metric, temperature="learned", initial_temperature=2.0, temperature_step=0.3)
    t = {"a": 1.0, "b": 1.0}
    for number in range(3):
        z, y = batch(10, 4, seed=number)
        hidden = {"b": z, "a": 2 * z[:, 1:]}
        losses = snnl(hidden, y)
        for name, rows in hidden.items():
            expected, t[name], _ = published_step_by_loops(
                rows.tolist(), y.tolist(), t[name], initial_temperature=2.0, step=0.3, metric=metric
            )
            assert float(losses[name]) == pytest.approx(expected, rel=1e-10)
            assert snnl.temperatures()[name] == pytest.approx(2.0 / t[name], rel=1e-10)
        assert snnl.inverse.tolist() == pytest.approx([t["a"], t["b"]], rel=1e-10)
    assert t["a"] != pytest.approx(t["b"], rel=1e-3)


@pytest.mark.parametrize("metric", METRICS)
def test_the_transcription_is_the_derivative_of_its_own_loss(metric):
    """The reference's gradients are finite differences of the reference's loss."""
    z, y = batch(7, 3)
    z, y, h = z.tolist(), y.tolist(), 1e-6
    _, gradient, by_inverse = published_loss_by_loops(z, y, 0.8, metric)

    def moved(by):
        return published_loss_by_loops([[z[0][0] + by, *z[0][1:]], *z[1:]], y, 0.8, metric)[0]

    at = [published_loss_by_loops(z, y, 1 / (1 / 0.8 + by), metric)[0] for by in (h, -h)]
    assert gradient[0][0] == pytest.approx((moved(h) - moved(-h)) / (2 * h), rel=1e-6)
    assert by_inverse == pytest.approx((at[0] - at[1]) / (2 * h), rel=1e-6)


def test_a_step_of_zero_is_the_authors_demonstration():
    """T stays at T0, and the loss keeps their eps."""
    z, y = batch()
    snnl = learned("squared_euclidean", 100.0, step=0.0)

    value = float(snnl({"a": z}, y)["a"])

    assert snnl.temperatures() == {"a": 100.0}
    expected = published_loss_by_loops(z.tolist(), y.tolist(), 100.0, "squared_euclidean")[0]
    assert value == pytest.approx(expected, rel=1e-10)


def test_before_the_first_batch_the_temperature_is_the_initial_one():
    """Whatever a fixed temperature would be."""
    assert learned("cosine", 3.0).temperatures() == {"a": 3.0}


def test_t_travels_in_the_state():
    """A module that is loaded goes on with the t that was saved."""
    z, y = batch()
    first, second = (learned("squared_euclidean", 3.0) for _ in range(2))
    first({"a": z}, y)
    second.load_state_dict(first.state_dict())

    assert float(first.inverse[0]) != 1.0
    assert float(first({"a": z}, y)["a"]) == float(second({"a": z}, y)["a"])


def test_its_faults_are_kept():
    """Far rows cost -log eps with no gradient, a lone row adds it, and cosine at T0 = 100 sits at chance."""
    z, y = batch()
    far = (z * 1e3).requires_grad_()
    loss = learned("squared_euclidean", 1.0)({"a": far}, y)["a"]
    loss.backward()
    lone = learned("squared_euclidean", 1.0)({"a": z[:3]}, torch.arange(3))["a"]
    flat = learned("cosine", 100.0)({"a": z}, y)["a"]

    assert float(loss.detach()) == pytest.approx(SATURATED, rel=1e-6)
    assert far.grad.abs().max().item() == 0.0
    assert float(lone) == pytest.approx(SATURATED)
    assert float(flat) == pytest.approx(chance_level(y), abs=0.01)


def test_rounding_makes_no_row_sum_negative():
    """The one fault that is not of the equations: float32 rows of norm 1e4 at T = 30 would give NaN."""
    z, y = batch(64, 200, dtype=torch.float32, scale=700.0)

    loss = learned("squared_euclidean", 30.0).float()({"a": z}, y)["a"]

    assert 0 <= float(loss) <= SATURATED * 1.001

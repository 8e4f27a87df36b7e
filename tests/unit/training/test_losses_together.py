"""Several layers in one computation: the numbers of one after the other."""

from __future__ import annotations

import pytest
import torch

from small_runs import need
from snnl_reference import METRICS, batch
from softkin_training import distances
from softkin_training.losses import LayeredSnnl

pytestmark = pytest.mark.training

WIDTHS = {"wide": 2048, "narrow": 6, "odd": 1031}
TINY = 1e-30
"""Gradients of float64 may be smaller than anything in float32."""


def overlapping(width, seed):
    """Rows whose classes overlap, however wide: where they lie apart the loss is flat in T, which then is anybody's."""
    z, _ = batch(seed=seed)
    noise = torch.randn(len(z), width, dtype=z.dtype, generator=torch.Generator().manual_seed(seed)) * 0.1
    return z.repeat(1, -(-width // z.shape[1]))[:, :width] + noise


def trace(metric, mode, device="cpu", batches=4, dtype=torch.float64, together=True):
    """Losses, temperatures and gradients of every layer over some batches, the third of which has no partners."""
    options = {"metric": metric, "temperature": mode, "fixed_temperature": 0.02, "initial_temperature": 2.0}
    losses = [LayeredSnnl(names, **options).to(device) for names in ([WIDTHS] if together else [[n] for n in WIDTHS])]
    found = []
    for i in range(batches):
        z = {name: overlapping(width, i).to(device, dtype).requires_grad_() for name, width in WIDTHS.items()}
        y = torch.arange(24) if i == 2 else batch(seed=i)[1]
        values = {name: value for snnl in losses for name, value in snnl(z, y.to(device)).items()}
        sum((j + 1) * value for j, value in enumerate(values.values())).backward()
        found.append(torch.stack([*values.values()]).detach().double().cpu())
        found.append(torch.cat([snnl.temperature for snnl in losses]).cpu())
        found += [x.grad.double().cpu() for x in z.values()]
    return found


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("mode", ["minimized", "fixed", "learned"])
def test_layers_together_give_what_each_gives_alone(metric, mode):
    """Also in a batch in which nobody has a partner, and where kernels underflow."""
    alone = trace(metric, mode, together=False)

    for found, expected in zip(trace(metric, mode), alone, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("metric", METRICS)
def test_layers_of_two_precisions_go_together(metric):
    """As of a network whose last part computes in float64: all are taken in that."""
    z, y = batch(dtype=torch.float32)
    hidden = {"a": z.requires_grad_(), "b": (2 * z).detach().double().requires_grad_()}

    values = LayeredSnnl(["a", "b"], metric=metric)(hidden, y)
    sum(values.values()).backward()

    assert {loss.dtype for loss in values.values()} == {torch.float64}
    assert [hidden[name].grad.dtype for name in "ab"] == [torch.float32, torch.float64]
    torch.testing.assert_close(hidden["a"].grad.double(), 2 * hidden["b"].grad, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("norm", [1e-15, 1e15])
def test_rows_of_any_length_have_a_direction(norm):
    """Only one of zeros has none, under cosine."""
    z, y = batch(dtype=torch.float32)

    found = LayeredSnnl(["a", "b"], metric="cosine")({"a": z, "b": norm * z}, y)

    assert float(found["b"]) == pytest.approx(float(found["a"]), rel=1e-5)


@pytest.mark.parametrize("mode", ["minimized", "fixed", "learned"])
def test_a_loss_that_is_only_looked_at_is_that_of_training(mode):
    """As on validation rows, where gradients are off: the temperature moves as it does with them."""
    hidden, y = {"a": batch()[0]}, batch()[1]
    training, looking = (LayeredSnnl(["a"], temperature=mode, initial_temperature=2.0) for _ in range(2))
    for _ in range(2):
        expected = training(hidden, y)
        with torch.no_grad():
            found = looking(hidden, y)

        assert float(found["a"]) == float(expected["a"])
        assert looking.temperatures() == training.temperatures()


@pytest.mark.parametrize("mode", ["minimized", "fixed", "learned"])
def test_without_layers_there_are_no_losses(mode):
    """A recipe may train by cross-entropy alone."""
    assert LayeredSnnl([], temperature=mode)({}, batch()[1]) == {}


@pytest.mark.parametrize("width", [7, 1024, 4096, 4097, 5000, 3 * 2048])
def test_a_product_split_by_columns_is_the_product(width):
    """Whether or not the width can be split evenly."""
    rows = torch.randn(9, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    found = rows.new_empty(9, 9)

    distances._split_gram(rows, found)

    torch.testing.assert_close(found, rows @ rows.T, rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize("metric", METRICS)
def test_a_gradient_of_a_gradient_is_refused(metric):
    """As a penalty on gradients takes one: of this backward it would be another number, and nobody would see it."""
    rows = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (gradient,) = torch.autograd.grad(
        distances.pairwise_distances(rows, metric).square().sum(), rows, create_graph=True
    )

    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_temperatures_that_were_loaded_are_looked_at_again():
    """An untrained state loaded into a trained loss is searched afresh."""
    z, y = batch()
    snnl, fresh = LayeredSnnl(["a"]), LayeredSnnl(["a"])
    for _ in range(3):
        snnl({"a": z}, y)
    snnl.load_state_dict(fresh.state_dict())

    assert float(snnl({"a": z}, y)["a"]) == float(fresh({"a": z}, y)["a"])


def apart(order):
    """Two classes far from each other, rows in some order."""
    y = torch.arange(24) % 2
    z = batch(seed=1)[0].float() * 0.01 + torch.stack([y, 1 - y, y, y, y], dim=1) * 100.0
    return z[order], y[order]


@pytest.mark.parametrize("metric", METRICS)
def test_a_temperature_stays_where_the_loss_is_flat_in_it(metric):
    """Classes fully apart, a single class, or nobody with a partner: no rounding moves it."""
    snnl = LayeredSnnl(["a"], metric=metric)
    z, y = apart(torch.arange(24))
    snnl({"a": z}, y)
    found = snnl.temperatures()["a"]
    for labels in (y, torch.zeros(24, dtype=torch.int64), torch.arange(24)):
        for order in (torch.arange(24), torch.arange(24).flip(0), torch.randperm(24)):
            snnl({"a": z[order]}, labels[order])
            assert snnl.temperatures()["a"] == pytest.approx(found, rel=1e-5)


@pytest.mark.parametrize("metric", METRICS)
def test_rows_that_are_all_equal_leave_the_temperature_and_get_no_gradient(metric):
    """A layer may die for a batch."""
    snnl = LayeredSnnl(["a"], metric=metric)
    z, y = batch(dtype=torch.float32)
    for _ in range(2):
        snnl({"a": z}, y)
    found = snnl.temperatures()["a"]
    dead = torch.full_like(z, 0.3).requires_grad_()
    snnl({"a": dead}, y)["a"].backward()

    assert snnl.temperatures()["a"] == found
    assert float(dead.grad.abs().max()) < 1e-4


@pytest.mark.gpu
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("mode", ["minimized", "fixed"])
def test_cuda_gives_the_losses_and_gradients_of_the_cpu(metric, mode):
    """To float32's rounding, before and after the kernels of a batch became a CUDA graph."""
    need("cuda")
    expected = trace(metric, mode, batches=8)

    found = trace(metric, mode, "cuda", batches=8, dtype=torch.float32)

    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=2e-3, atol=2e-3 * float(y.abs().max()) + TINY)

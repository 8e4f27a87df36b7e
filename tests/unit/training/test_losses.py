"""The soft nearest neighbor loss against loops, closed forms and numerical gradients."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from snnl_reference import CASES, METRICS, batch, distance, looped_loss
from softkin.errors import InvalidInputError
from softkin_training.distances import pairwise_distances
from softkin_training.losses import LayeredSnnl, chance_level, minimize_temperature, soft_nearest_neighbor_loss
from softkin_training.snnl_math import Neighbours, loss_of_distances

pytestmark = pytest.mark.training


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("relative_temperature", [1e-3, 0.1, 1.0, 100.0])
@pytest.mark.parametrize("case", CASES)
def test_loss_is_equation_one(case, relative_temperature, metric):
    """The fused form equals loops over the definition, at any temperature relative to the distances."""
    z, y = CASES[case]
    flat = z.flatten(1).tolist()
    typical = max(np.median([distance(a, b, metric) for a in flat for b in flat]), 1e-3)

    found = soft_nearest_neighbor_loss(z, y, temperature=relative_temperature * typical, metric=metric)

    assert float(found) == pytest.approx(looped_loss(z, y, relative_temperature * typical, metric), rel=1e-7, abs=1e-9)


@given(
    st.integers(2, 20),
    st.integers(1, 8),
    st.integers(1, 6),
    st.floats(-2, 2),
    st.sampled_from(METRICS),
    st.integers(0, 999),
)
@settings(deadline=None, max_examples=60)
def test_loss_is_equation_one_for_any_shape(num_rows, width, num_classes, log_temperature, metric, seed):
    """The same over random row counts, widths, class mixes and temperatures."""
    z, y = batch(num_rows, width, num_classes, seed=seed)

    found = soft_nearest_neighbor_loss(z, y, temperature=10**log_temperature, metric=metric)

    assert float(found) == pytest.approx(looped_loss(z, y, 10**log_temperature, metric), rel=1e-7, abs=1e-9)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("case", ["plain", "duplicates", "norm 1e4", "far from the origin"])
def test_float32_loses_no_more_than_its_rounding(case, metric):
    """Rows far from the origin, of large norm or repeated keep their digits in single precision."""
    z, y = CASES[case]
    z = z.float()
    temperature = minimize_temperature(z, y, metric=metric).temperature

    found = soft_nearest_neighbor_loss(z, y, temperature=temperature, metric=metric)

    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(looped_loss(z, y, temperature, metric), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("metric", METRICS)
def test_rounding_makes_no_distance_negative(metric):
    """Rows next to others would otherwise come out closer than equal, by up to 1e-7 of their squared norm.

    And every row is at 0 from itself, also a row of zeros, which by cosine is at 1 from others.
    """
    z, _ = batch(20, 30, scale=1e4, dtype=torch.float32)
    z[3] = 0.0
    beside = z + torch.randn(z.shape, generator=torch.Generator().manual_seed(1)) * 0.1
    distances = pairwise_distances(torch.cat([z, beside, z]), metric)

    assert distances.min().item() == 0.0
    assert distances.diagonal().abs().max().item() == 0.0


@pytest.mark.parametrize("temperature", [1e-12, 1e-20])
def test_a_row_of_another_class_is_never_taken_for_a_partner(temperature):
    """Distances 1, 4 and 9; at so low a temperature only the nearest counts: (9 - 1, 9 - 4) / 2 / T."""
    z, y = torch.tensor([[0.0], [1.0], [3.0]], dtype=torch.float64), torch.tensor([0, 1, 0])

    assert float(soft_nearest_neighbor_loss(z, y, temperature=temperature)) == pytest.approx(6.5 / temperature)


def test_two_rows_of_one_class_cost_nothing():
    """The only neighbour is of the same class: -log 1."""
    z = torch.tensor([[0.0], [3.0]])

    assert float(soft_nearest_neighbor_loss(z, torch.tensor([0, 0]), temperature=1.0)) == 0.0


def test_three_rows_follow_the_closed_form():
    """Rows 0, 1 (one class) and x: mean of log(1 + e^(d01 - dix)); the row of the lone class does not count."""
    z = torch.tensor([[0.0], [1.0], [3.0]], dtype=torch.float64)

    found = soft_nearest_neighbor_loss(z, torch.tensor([0, 0, 1]), temperature=2.0)

    expected = (math.log1p(math.exp((1 - 9) / 2)) + math.log1p(math.exp((1 - 4) / 2))) / 2
    assert float(found) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("case", ["plain", "singletons among pairs", "nobody has a partner", "images", "norm 1e4"])
def test_gradient_is_the_numerical_one(case, metric):
    """Finite differences agree with the hand-written backward, in the rows and in the temperature."""
    z, y = CASES[case]
    z = z[:10].clone()
    typical = float(torch.cdist(z.flatten(1), z.flatten(1)).square().median()) if metric == "squared_euclidean" else 1.0
    temperature = torch.tensor(0.4 * typical, dtype=torch.float64)

    def loss(z, temperature):
        return soft_nearest_neighbor_loss(z, y[:10], temperature=temperature, metric=metric)

    # Units of the rows' own size, or one step would not suit both arguments.
    unit = float(z.norm(dim=-1).max())
    start = (z / unit).requires_grad_(), (temperature / typical).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, t: loss(a * unit, t * typical), start, eps=1e-6, atol=1e-7)


@pytest.mark.parametrize("metric", METRICS)
def test_images_may_lie_in_memory_channels_last(metric):
    """As convolutions like it: the same loss, and the gradient of each pixel at its place."""
    z, y = CASES["images"]
    plain, last = z.clone().requires_grad_(), z.to(memory_format=torch.channels_last).requires_grad_()
    losses = [soft_nearest_neighbor_loss(x, y, temperature=0.8, metric=metric) for x in (plain, last)]
    for loss in losses:
        loss.backward()

    assert float(losses[1].detach()) == pytest.approx(float(losses[0].detach()), rel=1e-12)
    torch.testing.assert_close(last.grad, plain.grad)


@pytest.fixture
def _unwritten_memory_is_nan():
    """As torch fills it where it is asked for repeatable results."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("_unwritten_memory_is_nan")
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("num_rows", [66, 67, 68, 69])
def test_nothing_is_read_that_was_not_written(num_rows, metric):
    """Rows are padded, and wide products are made in blocks, in memory that may hold anything."""
    assert torch.empty(1).isnan()
    z, y = batch(num_rows, 1100)
    z.requires_grad_()
    loss = LayeredSnnl(["a"], metric=metric)({"a": z}, y)["a"]
    loss.backward()

    assert bool(torch.isfinite(loss))
    assert bool(torch.isfinite(z.grad).all())


def test_gradients_of_layers_in_distances_and_temperatures_are_the_numerical_ones():
    """Each layer has its own temperature; the row of the lone class gets nothing."""
    z, _ = batch(6)
    distances = torch.stack([pairwise_distances(scale * z, "squared_euclidean") for scale in (1.0, 2.0)])
    neighbours = Neighbours.of(torch.tensor([0, 0, 1, 1, 1, 2]))
    start = distances.requires_grad_(), torch.tensor([3.0, 5.0], dtype=torch.float64, requires_grad=True)

    assert torch.autograd.gradcheck(lambda d, t: loss_of_distances(d, neighbours, t), start)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("relative_temperature", [1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0, 1e3])
@pytest.mark.parametrize("case", ["plain", "duplicates", "far from the origin", "images", "wide", "a row of zeros"])
def test_gradient_is_the_numerical_one_at_extreme_temperatures(case, relative_temperature, metric):
    """From a thousandth to a thousand times the median distance; in rows and temperature."""
    z, y = batch(70, 1100) if case == "wide" else CASES[case]  # wide: products are cut into blocks
    flat = z.flatten(1)
    distances = pairwise_distances(flat, metric)
    temperature = relative_temperature * float(distances[distances > 1e-12].median())
    unit = float((flat - flat.mean(dim=0)).norm(dim=1).max())
    rows = flat.clone().requires_grad_()
    t = torch.tensor(temperature, dtype=torch.float64, requires_grad=True)
    soft_nearest_neighbor_loss(rows, y, temperature=t, metric=metric).backward()

    def loss(rows, temperature=temperature):
        return float(soft_nearest_neighbor_loss(rows, y, temperature=temperature, metric=metric))

    # At low temperature the loss bends within a distance that shrinks with it; zeros have no direction under cosine.
    step = 1e-5 * min(1.0, relative_temperature) * unit
    generator = torch.Generator().manual_seed(0)
    scale = float(rows.grad.norm())
    rounding = 1e-15 * max(1.0, float(distances.max()) / temperature)  # of a loss made of exponents this large
    for _ in range(8):
        direction = torch.randn(flat.shape, generator=generator, dtype=torch.float64)
        direction[flat.abs().sum(dim=1) == 0] = 0.0
        numerical = (loss(flat + step * direction) - loss(flat - step * direction)) / (2 * step)
        found = float((rows.grad * direction).sum())
        assert numerical == pytest.approx(found, rel=1e-4, abs=1e-5 * scale + rounding / step)
    h = 1e-5 * temperature
    slope = (loss(flat, temperature + h) - loss(flat, temperature - h)) / (2 * h)
    assert float(t.grad) == pytest.approx(slope, rel=1e-4, abs=1e-9 / temperature + rounding / h)


@pytest.mark.parametrize("metric", METRICS)
def test_float32_gradient_is_that_of_plain_autograd(metric):
    """Autograd of the written-out log-sum-exp in float64 gives what the fused float32 pass gives."""
    z, y = batch(64, 30, 5, dtype=torch.float32)
    fused, plain = z.clone().requires_grad_(), z.double().requires_grad_()
    temperature = minimize_temperature(z, y, metric=metric).temperature

    soft_nearest_neighbor_loss(fused, y, temperature=temperature, metric=metric).backward()
    if metric == "squared_euclidean":
        distances = (plain.unsqueeze(0) - plain.unsqueeze(1)).square().sum(dim=2)
    else:
        distances = 1 - torch.cosine_similarity(plain.unsqueeze(0), plain.unsqueeze(1), dim=2)
    diagonal = torch.eye(64, dtype=torch.bool)
    logits = (-distances / temperature).masked_fill(diagonal, -math.inf)
    same = logits.masked_fill((y.unsqueeze(0) != y.unsqueeze(1)) | diagonal, -math.inf)
    (logits.logsumexp(1) - same.logsumexp(1)).mean().backward()

    assert torch.allclose(fused.grad.double(), plain.grad, rtol=1e-4, atol=1e-4 * float(plain.grad.abs().max()))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("norm", [1e-6, 1e-3, 1.0, 1e3, 1e6])
def test_loss_and_gradient_are_finite_at_any_scale(norm, metric):
    """float32 rows of norm 1e-6 to 1e6, a row of zeros and a duplicate stay finite at the extreme temperatures."""
    z, y = batch(16, 8, dtype=torch.float32)
    z = z / z.norm(dim=1, keepdim=True) * norm
    z[3], z[5] = 0.0, z[6]
    best = minimize_temperature(z, y, metric=metric).temperature

    for temperature in (best * 1e-3, best, best * 1e3):
        rows = z.clone().requires_grad_()
        loss = soft_nearest_neighbor_loss(rows, y, temperature=temperature, metric=metric)
        loss.backward()
        assert bool(torch.isfinite(loss))
        assert bool(torch.isfinite(rows.grad).all())


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("temperature", ["minimized", "fixed", "learned"])
@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16 autocast"])
@pytest.mark.parametrize("norm", [1e-6, 1e-3, 1.0, 1e3, 1e6])
def test_training_is_finite_at_any_scale(norm, autocast, temperature, metric):
    """Behind a layer in bfloat16 as in float32, in every temperature mode, for several batches."""
    snnl = LayeredSnnl(["a"], metric=metric, temperature=temperature)
    for seed in range(3):
        z, y = batch(32, 8, dtype=torch.float32, seed=seed)
        z = (z / z.norm(dim=1, keepdim=True) * norm).requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            loss = snnl({"a": z @ torch.eye(8)}, y)["a"]
        loss.backward()

        assert loss.dtype == torch.float32
        assert bool(torch.isfinite(loss))
        assert bool(torch.isfinite(z.grad).all())


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("relative_temperature", [1e-3, 0.1, 1.0, 1e3])
@pytest.mark.parametrize("case", ["plain", "duplicates", "far from the origin", "behind a ReLU"])
def test_float32_keeps_to_float64(case, relative_temperature, metric):
    """Loss and gradient of wide rows in single precision, where a common offset or copies would cost digits."""
    z, y = batch(96, 1500, 4)
    z = {"plain": z, "duplicates": z[:32].repeat(3, 1), "far from the origin": z + 30, "behind a ReLU": z.relu()}[case]
    y = y[:32].repeat(3) if case == "duplicates" else y
    z = z.float()
    temperature = relative_temperature * float(pairwise_distances(z.double(), metric).median())
    single, double = z.clone().requires_grad_(), z.double().requires_grad_()
    losses = [soft_nearest_neighbor_loss(rows, y, temperature=temperature, metric=metric) for rows in (single, double)]
    for loss in losses:
        loss.backward()

    size = float(double.grad.norm())
    assert float(losses[0].detach()) == pytest.approx(float(losses[1].detach()), rel=1e-4, abs=1e-5)
    assert float((single.grad.double() - double.grad).norm()) <= 1e-3 * size + 1e-12


def test_rows_without_partner_get_no_loss_and_no_gradient():
    """Where no class has two rows the loss is 0, not NaN, and nothing moves."""
    z = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()

    loss = soft_nearest_neighbor_loss(z, torch.arange(4), temperature=1.0)
    loss.backward()

    assert (loss.item(), z.grad.abs().max().item()) == (0.0, 0.0)


def test_a_row_of_zeros_gets_no_gradient_under_cosine():
    """It has no direction to turn."""
    z, y = batch(8)
    z[2] = 0.0
    z.requires_grad_()

    soft_nearest_neighbor_loss(z, y, temperature=0.5, metric="cosine").backward()

    assert z.grad[2].abs().max().item() == 0.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_input_is_computed_in_float32(dtype):
    """The result is that of the same rows in float32, and float32 itself, autocast or not."""
    z, y = batch(dtype=dtype)
    expected = soft_nearest_neighbor_loss(z.float(), y, temperature=1.0)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = soft_nearest_neighbor_loss(z, y, temperature=1.0)

    assert found.dtype == torch.float32
    assert float(found) == float(expected)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("mode", ["minimized", "fixed", "learned", None])
def test_autocast_takes_no_digits(mode, metric):
    """Forward or backward: products of bfloat16 would leave two."""
    found = []
    for autocast, dtype in ((False, torch.float64), (False, torch.float32), (True, torch.float32)):
        z, y = batch(32, 8, dtype=dtype)
        z.requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            if mode:
                loss = LayeredSnnl(["a"], metric=metric, temperature=mode)({"a": z}, y)["a"]
            else:
                loss = soft_nearest_neighbor_loss(z, y, temperature=0.5, metric=metric)
            loss.backward()
        found.append((loss.detach().double(), z.grad.double()))

    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-3, atol=1e-4 * float(found[0][1].abs().max()))


@given(st.integers(0, 999), st.sampled_from(METRICS))
@settings(deadline=None, max_examples=20)
def test_order_of_rows_does_not_matter(seed, metric):
    """Permuting rows with their labels leaves the loss."""
    z, y = batch(seed=seed)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))

    losses = [
        float(soft_nearest_neighbor_loss(a, b, temperature=0.7, metric=metric))
        for a, b in ((z, y), (z[order], y[order]))
    ]

    assert losses[0] == pytest.approx(losses[1], rel=1e-12)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("case", ["plain", "singletons among pairs", "one wide class"])
def test_loss_tends_to_chance_as_temperature_grows(case, metric):
    """At infinite temperature every other row is equally near."""
    z, y = CASES[case]

    found = soft_nearest_neighbor_loss(z, y, temperature=1e9, metric=metric)

    assert float(found) == pytest.approx(chance_level(y), abs=1e-6)


def test_chance_level_counts_only_rows_with_a_partner():
    """Rows 0, 0, 0 have 2 partners of 4 others; the lone 1 and 2 do not count."""
    assert chance_level(torch.tensor([0, 0, 0, 1, 2])) == pytest.approx(math.log(4 / 2), rel=1e-12)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"temperature": 0.0}, "positive"),
        ({"temperature": math.nan}, "positive"),
        ({"temperature": torch.ones(2)}, r"is \[1\.0, 1\.0\]; it must be one positive number"),
        ({"metric": "manhattan"}, "manhattan"),
        ({"y": torch.zeros(3)}, "must be"),
        ({"y": torch.zeros(24, 1)}, "must be"),
        ({"z": torch.zeros(24)}, "must be"),
    ],
    ids=["zero", "not a number", "two", "unknown metric", "labels too short", "labels in a column", "no width"],
)
def test_unfit_arguments_are_refused(change, word):
    """The error names the argument and what is allowed."""
    z, y = batch()
    arguments = {"z": z, "y": y, "temperature": 1.0, "metric": "cosine"} | change

    with pytest.raises(InvalidInputError, match=word):
        soft_nearest_neighbor_loss(arguments.pop("z"), arguments.pop("y"), **arguments)


def test_an_unknown_metric_or_mode_is_refused_before_training():
    """Not taken for squared Euclidean in every batch."""
    with pytest.raises(InvalidInputError, match="manhattan"):
        LayeredSnnl(["a"], metric="manhattan")
    with pytest.raises(InvalidInputError, match=r"temperature: is 'annealed'; allowed: .*'learned'"):
        LayeredSnnl(["a"], temperature="annealed")

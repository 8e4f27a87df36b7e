"""One step of training: what it says of a batch, what it does to the weights, and that a replay does the same."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from lightning_fabric import Fabric
from torch import nn

from small_runs import need
from softkin_training.config import load_recipe
from softkin_training.losses import LayeredSnnl
from softkin_training.model_config import ModelConfig
from softkin_training.models import build_model
from softkin_training.step import Step, make_optimizer
from softkin_training.train import may_be_recorded

pytestmark = pytest.mark.training

WEIGHTS = {"dense2": -0.5, "dense1": 0.25}
DECAY = 0.3
"""Of weights; other than torch's own."""


def batch(rows=12, seed=0, device="cpu"):
    """Rows of 3 classes, and their labels."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(rows) % 3
    return (torch.randn(rows, 6, generator=generator) + y.unsqueeze(1)).to(device), y.to(device)


def small(device="cpu", *, recorded=False, precision="32-true", dropout=0.0):
    """A step, and the network that it changes."""
    fabric = Fabric(accelerator=device, devices=1, precision=precision)
    torch.manual_seed(0)
    model = build_model(ModelConfig(kind="mlp", hidden=[8, 5], dropout=dropout), (6,), 3, 0.0, 1.0)
    wrapped, optimizer = fabric.setup(model, make_optimizer(model, fabric.device, DECAY))
    wrapped.mark_forward_method("forward_with_hidden")
    snnl = LayeredSnnl(WEIGHTS).to(fabric.device)
    return Step(fabric, wrapped, optimizer, snnl, WEIGHTS, recorded=recorded), model


def test_it_says_what_the_batch_came_to():
    """Cross-entropy per row, hits, and losses in the order of the layers, before the weights change."""
    (x, y), (take_step, model) = batch(rows=13), small()  # of which there cannot be as many hits as misses
    logits, hidden = model.forward_with_hidden(x)
    losses = LayeredSnnl(WEIGHTS)(hidden, y)

    numbers = take_step(x, y, len(y), 0.1)

    expected = [nn.functional.cross_entropy(logits, y), (logits.argmax(1) == y).sum(), *losses.values()]
    torch.testing.assert_close(numbers, torch.stack([e.detach().double() for e in expected]))
    assert list(losses) == list(WEIGHTS)


def test_a_part_of_a_batch_counts_as_a_part():
    """Its cross-entropy is a share of the whole batch's mean."""
    x, y = batch()
    assert float(small()[0](x, y, 4 * len(y), 0.0)[0]) == pytest.approx(float(small()[0](x, y, len(y), 0.0)[0]) / 4)


def test_weights_move_by_the_objective_at_the_given_rate():
    """AdamW's first step is the rate times the sign of the gradient, after the decay; rate 0 moves nothing."""
    (x, y), (take_step, model) = batch(), small()
    logits, hidden = model.forward_with_hidden(x)
    losses = LayeredSnnl(WEIGHTS)(hidden, y)
    objective = nn.functional.cross_entropy(logits, y) + sum(WEIGHTS[k] * v for k, v in losses.items())
    gradients = torch.autograd.grad(objective, list(model.parameters()))
    before = [p.detach().clone() for p in model.parameters()]

    take_step(x, y, len(y), 0.0)
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))

    take_step, model = small()
    take_step(x, y, len(y), 0.1)
    for p, b, g in zip(model.parameters(), before, gradients, strict=True):
        expected = b * (1 - 0.1 * DECAY) - 0.1 * g.sign()
        clear = g.abs() > 1e-5  # beside AdamW's epsilon
        torch.testing.assert_close(p.detach()[clear], expected[clear], rtol=0, atol=2e-4)
        assert bool(clear.any())


def test_gradients_of_the_batch_before_do_not_count():
    """At rate 0 the same batch has the same gradients again, and not twice as large."""
    (x, y), (take_step, model) = batch(), small()
    take_step(x, y, len(y), 0.0)
    first = [p.grad.clone() for p in model.parameters()]

    take_step(x, y, len(y), 0.0)

    torch.testing.assert_close([p.grad for p in model.parameters()], first, rtol=1e-3, atol=1e-5)


def test_what_it_says_keeps_no_activations():
    """They would lie in a GPU's memory beside those of the next batch, which is all that it has room for."""

    class Kept:
        def __init__(self, tensor):
            self.tensor = tensor

    kept = []

    def pack(tensor):
        kept.append(weakref.ref(found := Kept(tensor)))
        return found

    (x, y), (take_step, _) = batch(), small()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda found: found.tensor):
        numbers = take_step(x, y, len(y), 0.1)

    assert not numbers.requires_grad
    assert kept
    assert all(ref() is None for ref in kept)


def test_a_step_goes_with_its_last_user():
    """Left to the garbage collector it would keep the model, and threads of processes that train together, too long."""
    (x, y), (take_step, model) = batch(), small()
    take_step(x, y, len(y), 0.1)
    kept = weakref.ref(take_step), weakref.ref(model)
    gc.disable()
    try:
        del take_step, model
        assert [ref() for ref in kept] == [None, None]
    finally:
        gc.enable()


def test_it_trains_where_gradients_are_off():
    """A caller's no_grad does not stop it quietly."""
    (x, y), (take_step, model) = batch(), small()
    before = [p.detach().clone() for p in model.parameters()]
    with torch.no_grad():
        take_step(x, y, len(y), 0.1)
    assert not any(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize(
    ("settings", "may"),
    [
        ([], True),
        (["training.precision=bf16-mixed"], True),
        (["training.cuda_graph=false"], False),
        (["training.accelerator=cuda", "training.precision=16-mixed"], False),
        (['loss.layers=["dense"]', "loss.weight=-0.1", "loss.temperature=learned"], False),
        (["model.kind=import", "model.path=a:b", "model.channels=[]", "model.dense=0", "model.dropout=0.0"], False),
    ],
)
def test_what_may_be_recorded(settings, may):
    """What would wait for the device, or might do something else in every call, may not."""
    assert may_be_recorded(load_recipe("digits", settings)) is may


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_replayed_steps_are_the_steps(precision):
    """Batches of several sizes, a rate that changes, temperatures that follow: as without recording."""
    need("cuda")
    found = {}
    for recorded in (False, True):
        take_step, model = small("cuda", recorded=recorded, precision=precision)
        numbers = []
        for i in range(40):
            x, y = batch((12, 15, 21)[i % 3], seed=i, device="cuda")
            numbers.append(take_step(x, y, len(y), 1e-2 * (1 - i / 40)))
        found[recorded] = (torch.stack(numbers), *model.parameters(), take_step._take.snnl.temperature)
        assert len(take_step._replayed._graphs) == (3 if recorded else 0)

    for replayed, taken in zip(found[True], found[False], strict=True):
        torch.testing.assert_close(replayed, taken, rtol=2e-2 if precision == "bf16-mixed" else 1e-4, atol=1e-4)
    assert len({float(n) for n in found[True][0][:, 0]}) == 40


@pytest.mark.gpu
def test_every_replay_drops_other_activations():
    """The random numbers of a recorded step are not those of its recording: equal batches at rate 0 differ."""
    need("cuda")
    take_step, _ = small("cuda", recorded=True, dropout=0.5)
    x, y = batch(device="cuda")
    assert len({float(take_step(x, y, len(y), 0.0)[0]) for _ in range(20)}) == 20

"""Functions that a GPU replays: the same results, in tensors of their own."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from small_runs import need
from snnl_reference import batch
from softkin_training.cuda_graph import CALLS_BEFORE, GRAPHS, Replayed
from softkin_training.losses import LayeredSnnl

pytestmark = pytest.mark.training


def mix(a, b, c=None):
    """Some sums of products."""
    product = a @ b
    return product.exp().sum(dim=1), (product if c is None else product * c)


def numbers(seed, rows=3, device="cpu"):
    """Two matrices that fit each other."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(s, generator=generator).to(device) for s in ((rows, 4), (4, rows)))


def test_on_a_cpu_the_function_is_called():
    """Every time, with what it is given."""
    calls = []

    def function(a, b):
        calls.append((a, b))
        return (a + b,)

    replayed = Replayed(function)
    for i in range(CALLS_BEFORE + 3):
        a, b = torch.tensor(i), torch.tensor(1)
        assert replayed(a, b)[0] == i + 1
        assert calls[-1][0] is a
    assert len(calls) == CALLS_BEFORE + 3


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["copy", "pickle"])
def test_a_loss_can_be_copied_and_pickled(copied):
    """Graphs belong to a process: a copy has none, and gives the same losses."""
    z, y = batch()
    snnl = LayeredSnnl(["a"])
    snnl({"a": z}, y)
    snnl._replayed._graphs["a kind"] = (i for i in ())  # as little to be copied as a graph

    other = copied(snnl)

    assert float(other({"a": z}, y)["a"]) == float(snnl({"a": z}, y)["a"])
    assert other._replayed._graphs == {}


@pytest.mark.gpu
def test_a_gpu_replays_what_the_function_gives():
    """Shape by shape, also more shapes than graphs are kept for; an argument may be None."""
    need("cuda")
    replayed, kept = Replayed(mix), []
    for i in range(CALLS_BEFORE + 3):
        for rows in range(1, GRAPHS + 3):
            for c in (None, torch.tensor(float(i), device="cuda")):
                arguments = (*numbers(i, rows, "cuda"), c)
                kept.append((replayed(*arguments), mix(*arguments)))

    assert len(replayed._graphs) == GRAPHS
    for found, expected in kept:  # later calls have not overwritten them
        torch.testing.assert_close(found, expected)


@pytest.mark.gpu
def test_what_inference_mode_recorded_serves_training():
    """And results carry no gradient, recorded or not."""
    need("cuda")
    replayed, (a, b) = Replayed(mix), numbers(0, device="cuda")
    for _ in range(CALLS_BEFORE + 1):
        with torch.inference_mode():
            replayed(a, b)
    found = replayed(a.requires_grad_(), b)

    torch.testing.assert_close(found, tuple(x.detach() for x in mix(a, b)))
    assert not any(x.requires_grad for x in found)


@pytest.mark.gpu
def test_a_graph_takes_part_in_a_graph_of_the_callers():
    """Whoever records us records our kernels."""
    need("cuda")
    replayed, (a, b) = Replayed(mix), numbers(0, device="cuda")
    for _ in range(CALLS_BEFORE + 1):
        replayed(a, b)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = replayed(a, b)
    a.copy_(numbers(1, device="cuda")[0])
    graph.replay()

    torch.testing.assert_close(found, mix(a, b))

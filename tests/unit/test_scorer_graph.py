"""What the scoring graph keeps in memory: a chunk's logits at a time, whatever the size of the bank."""

from __future__ import annotations

import re

import numpy as np
import pytest
from safetensors.numpy import save_file

from scorer_cases import kernels_run, make, packed, profile_sessions, start
from softkin.bank import LARGE_TILE_ROWS, PRECISIONS
from softkin.bundle_arrays import bank_tensors
from softkin.chunks import CHUNK_ROWS, SLICE_ROWS, cut_into_chunks
from softkin.graph_builder import GraphBuilder
from softkin.precision import reduce_precision
from softkin.scorer import layer_graphs
from softkin.tensor_file import TensorFile

TEMPERATURES = {"bounded": 0.5, "any temperature": 0.002}


def graph_of(folder, bank, chunk_rows):
    """The graph of a bank of one layer with evidence, and the names of its outputs."""
    save_file(bank_tensors(bank), folder / "bank.safetensors")
    g = GraphBuilder()
    (layer,) = layer_graphs(g, bank, TensorFile(folder / "bank.safetensors"), cut_into_chunks(bank, chunk_rows))
    return g, layer.masses("z", lambda n: f"k_{n}")


def most_alive(g, outputs, op_types):
    """Outputs of such nodes that are still needed, at most, when the nodes run as they stand."""
    last = {name: i for i, node in enumerate(g.nodes) for name in node.input} | dict.fromkeys(outputs, len(g.nodes))
    alive, most = [], 0
    for i, node in enumerate(g.nodes):
        alive += [name for name in node.output if node.op_type in op_types]
        most = max(most, len(alive))
        alive = [name for name in alive if last[name] > i]
    return most


@pytest.mark.parametrize("form", TEMPERATURES)
def test_evidence_waits_for_a_few_dozen_chunks_of_hundreds(tmp_path, form):
    """It merges by sixteens of sixteens; and no two chunks' logits are needed at once."""
    chunks = 600
    z, labels, _ = make([LARGE_TILE_ROWS * chunks], {"a": 1}, "cosine", 0.5, False)
    bank = packed(z, labels, {"a": TEMPERATURES[form]}, "cosine", None)

    g, outputs = graph_of(tmp_path, bank, LARGE_TILE_ROWS)

    assert sum(node.op_type == "Gemm" for node in g.nodes) == chunks
    assert most_alive(g, outputs, {"Gemm"}) == 1
    assert most_alive(g, outputs, {"TopK", "GatherElements", "Concat"}) <= 80


@pytest.mark.parametrize("form", TEMPERATURES)
def test_chunks_run_one_after_the_other(tmp_path, monkeypatch, form):
    """As they stand in the graph: in the runtime's own order every chunk's logits wait for their nearest rows."""
    z, labels, _ = make([6 * LARGE_TILE_ROWS, 300], {"a": 3}, "cosine", 0.5, False)
    bank = packed(z, labels, {"a": TEMPERATURES[form]}, "cosine", None)
    profile_sessions(monkeypatch, tmp_path)
    scorer = start(tmp_path, bank, {"a": 3}, chunk_rows=LARGE_TILE_ROWS)
    scorer.run_with_nearest(z["a"][:3], 3)

    ran = [kernel["name"] for kernel in kernels_run(scorer._session)]
    nodes = [int(found[1]) for found in (re.search(r"softkin/\w+?_(\d+)_\d_kernel", name) for name in ran) if found]
    assert sum("Gemm" in name for name in ran) == 8
    assert nodes == sorted(nodes)


@pytest.mark.parametrize("form", TEMPERATURES)
def test_a_whole_slice_takes_a_few_megabytes_at_a_time_on_a_bank_of_any_size(tmp_path, monkeypatch, form):
    """All logits would be 52 MB."""
    z, labels, _ = make([200 * LARGE_TILE_ROWS], {"a": 1}, "cosine", 0.5, False)
    bank = packed(z, labels, {"a": TEMPERATURES[form]}, "cosine", None)
    profile_sessions(monkeypatch, tmp_path)
    scorer = start(tmp_path, bank, {"a": 1})
    scorer.run_with_nearest(z["a"][: 2 * SLICE_ROWS], 3)

    assert max(int(kernel["args"]["output_size"]) for kernel in kernels_run(scorer._session)) < 10e6


@pytest.mark.parametrize(
    ("precision", "threads", "large", "products", "runs"),
    [
        ("float32", 2, 61, 2, 1),
        ("float32", None, 61, 4, 1),  # as many as the process may use, which is one here
        ("float32", 1, 61, 4, 1),
        ("int8", 2, 61, 3, 1),
        ("int8", 1, 61, 4, 1),
        ("float32", 2, 59, 1, 2),
        ("int8", 2, 59, 1, 2),
        ("float32", 1, 59, 4, 1),
    ],
)
def test_chunks_fit_threads_bank_and_precision(tmp_path, monkeypatch, precision, threads, large, products, runs):
    """One thread and int8 take smaller ones; large banks larger ones, of fewer queries at a time. The masses stay."""
    monkeypatch.setattr("softkin.chunks.available_threads", lambda: 1)
    monkeypatch.setattr("softkin.chunks.LARGE_BANK_ROWS", large * LARGE_TILE_ROWS)
    z, labels, _ = make([60 * LARGE_TILE_ROWS], {"a": 3}, "cosine", 0.5, False)
    bank = reduce_precision(packed(z, labels, {"a": TEMPERATURES["bounded"]}, "cosine", None), precision)
    query = z["a"][:SLICE_ROWS]
    whole = start(tmp_path, bank, {"a": 3}, chunk_rows=60 * LARGE_TILE_ROWS).run(query).masses
    profile_sessions(monkeypatch, tmp_path)
    scorer = start(tmp_path, bank, {"a": 3}, threads=threads)
    masses = scorer.run(query).masses

    ran = [kernel["args"]["op_name"] for kernel in kernels_run(scorer._session)]
    assert ran.count("Gemm") + ran.count("MatMulIntegerToFloat") == products * runs
    np.testing.assert_allclose(masses, whole, rtol=1e-6)


@pytest.mark.parametrize(
    ("form", "counts"), [("bounded", [1] * 10_000), ("any temperature", [1000 * LARGE_TILE_ROWS, *[1] * 300])]
)
def test_merging_tiles_takes_no_table_of_all_tiles_by_all_classes(tmp_path, form, counts):
    """Of 10,000 classes it would be 400 MB; nor does the largest class set the width for all."""
    z, labels, _ = make(counts, {"a": 2}, "cosine", 0.5, False)
    bank = packed(z, labels, {"a": TEMPERATURES[form]}, "cosine", None)

    g, _ = graph_of(tmp_path, bank, CHUNK_ROWS)

    bounded = not any(node.op_type == "LogSoftmax" for node in g.nodes)
    assert bounded == (form == "bounded")
    assert sum(len(constant.raw_data) for constant in g.initializers) < 1e6


@pytest.mark.parametrize("precision", PRECISIONS)
def test_no_name_of_the_graph_can_be_one_of_the_networks(tmp_path, precision):
    """Exporters name tensors as they like, `Gemm_0` and `constant_0` among others."""
    z, labels, _ = make([3, 70], {"a": 2}, "cosine", 0.5, True)
    bank = reduce_precision(packed(z, labels, {"a": 0.002}, "cosine", None), precision)

    g, _ = graph_of(tmp_path, bank, CHUNK_ROWS)

    names = [node.name for node in g.nodes] + [i.name for i in g.initializers] + [o for n in g.nodes for o in n.output]
    assert all(name.startswith("softkin/") for name in names)
    assert len(g.nodes) == len({node.name for node in g.nodes})

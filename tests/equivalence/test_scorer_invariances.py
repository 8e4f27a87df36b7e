"""What must not change class masses: order, chunks, shards, batch mates, and, within the stated error, fewer bits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scorer_cases import RELATIVE, ROUNDING, kernels_run, make, packed, profile_sessions, start, terms, unoptimized
from softkin import mass
from softkin.bank import LARGE_TILE_ROWS, PADDING_LABEL, PRECISIONS
from softkin.chunks import chunk_rows_for, cut_into_chunks
from softkin.device import Target
from softkin.precision import QUERY_LEVELS, reduce_precision
from softkin.scorer import Scorer
from softkin.scorer_graph import FEW_QUERIES
from softkin.shards import shard_rows

DIMS = {"a": 9}
COUNTS = [1, 300, 70, 530]
FORMS = {"bounded": ("cosine", 0.5), "any temperature": ("cosine", 0.002), "euclidean": ("squared_euclidean", 3.0)}
"""Metric and temperature: the form without a maximum, and the one for any temperature by both metrics."""

sharing = settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])


def case(form, seed=0, precision="float32", tile_rows=None):
    """Bank, its rows, labels and queries."""
    metric, temperature = FORMS[form]
    z, labels, weights = make(COUNTS, DIMS, metric, 0.5, True, seed)
    bank = packed(z, labels, {"a": temperature}, metric, weights, tile_rows)
    query = np.concatenate([z["a"][:5], -z["a"][:3]])
    return reduce_precision(bank, precision), z["a"], labels, weights, query


def close(found, expected, bank, query):
    """To the rounding of the terms that a logit is the difference of."""
    layer = bank.layers["a"]
    size = terms(query, layer.representations(bank.labels != PADDING_LABEL), layer.metric)
    slack = RELATIVE * np.maximum(np.abs(expected), 1.0) + ROUNDING * size / layer.temperature
    return (np.abs(found - expected) <= slack).all()


@pytest.mark.parametrize("form", FORMS)
@given(seed=st.integers(0, 2**32 - 1))
@sharing
def test_the_order_of_the_bank_does_not_matter(tmp_path_factory, form, seed):
    """Any permutation of the rows gives the same masses."""
    bank, z, labels, weights, query = case(form)
    metric, temperature = FORMS[form]
    order = np.random.default_rng(seed).permutation(len(labels))
    shuffled = packed({"a": z[order]}, labels[order], {"a": temperature}, metric, weights[order])

    found, expected = (start(tmp_path_factory.mktemp("b"), b, DIMS).run(query).masses for b in (shuffled, bank))

    assert close(found, expected, bank, query)


@pytest.fixture
def whole(tmp_path, form, precision, tile_rows):
    """A bank on disk, queries, and their masses without a cut: one session for all the cuts that are tried."""
    bank, *_, query = case(form, precision=precision, tile_rows=tile_rows)
    return bank, query, start(tmp_path, bank, DIMS).run(query).masses


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("tile_rows", [2, 23, 64, 100])
@given(chunk=st.integers(1, 5), shards=st.integers(1, 9))
@sharing
def test_chunks_and_shards_do_not_matter(tmp_path, whole, tile_rows, chunk, shards):
    """Any cut of the bank merges to the same masses, in any order."""
    bank, query, expected = whole
    shards = min(shards, bank.large_rows // LARGE_TILE_ROWS + (len(bank.labels) - bank.large_rows) // tile_rows)

    parts = [
        Scorer(
            tmp_path / "model.onnx",
            bank,
            tmp_path / "bank.safetensors",
            device="cpu",
            chunk_rows=chunk * LARGE_TILE_ROWS,
            rows=rows,
        ).run(query)
        for rows in shard_rows(bank, shards)
    ]

    assert close(mass.merge_masses(np.stack([p.masses for p in parts[::-1]])), expected, bank, query)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("tile_rows", [2, 23, 256])
def test_the_size_of_tiles_does_not_matter(tmp_path, form, precision, tile_rows):
    """Neither to masses nor to the nearest rows, whose tiled numbers alone differ."""
    found, expected = [], []
    for rows, out in ((tile_rows, found), (None, expected)):
        bank, *_, query = case(form, precision=precision, tile_rows=rows)
        (folder := tmp_path / str(rows)).mkdir()
        outputs, nearest = start(folder, bank, DIMS).run_with_nearest(query, 7)
        out += [outputs.masses, nearest.contributions, bank.ids[0, nearest.rows]]

    assert close(found[0], expected[0], bank, query)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-5)
    np.testing.assert_array_equal(found[2], expected[2])


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("form", FORMS)
def test_batch_mates_do_not_matter(tmp_path, form, precision):
    """Alone or beside rows of a million times their size: equal to 1e-6 relative."""
    bank, *_, query = case(form, precision=precision)
    scorer = start(tmp_path, bank, DIMS)

    together = scorer.run(np.concatenate([query, 1e6 * query])).masses[: len(query)]
    alone = np.concatenate([scorer.run(row[None]).masses for row in query])

    np.testing.assert_allclose(together, alone, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("precision", ["float32", "int8"])
@pytest.mark.parametrize("exponent", [-40, 40])
def test_the_unit_of_a_representation_does_not_matter(tmp_path, exponent, precision):
    """Rows and queries of any size, by a temperature in their own unit: the same masses, to the last bit."""
    z, labels, weights = make(COUNTS, DIMS, "squared_euclidean", 0.5, True)
    query = np.concatenate([z["a"][:5], -z["a"][:3]])
    found = []
    for unit in (np.float32(1), np.float32(2.0**exponent)):
        temperature = 3.0 * float(unit) ** 2
        bank = packed({"a": unit * z["a"]}, labels, {"a": temperature}, "squared_euclidean", weights)
        scorer = start(tmp_path, reduce_precision(bank, precision), DIMS)
        found.append(scorer.run(unit * query).masses)

    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("precision", ["float16", "int8"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("integer", [True, False], ids=["CPU", "elsewhere"])
def test_fewer_bits_give_the_masses_of_the_rounded_vectors(tmp_path, monkeypatch, form, precision, integer):
    """By the reference, on what rows and queries are rounded to; also in the graph for devices that multiply floats."""
    bank, _, _, _, query = case(form, precision=precision)
    layer, real = bank.layers["a"], bank.labels != PADDING_LABEL
    if not integer:
        monkeypatch.setattr("softkin.scorer.multiplies_integers", lambda kind: False)

    found = start(tmp_path, bank, DIMS).run(query).masses[:, 0]

    z = query.astype(np.float64) - layer.center
    if precision == "int8" and integer:
        levels = np.rint(z / np.abs(z).max(axis=1, keepdims=True) * QUERY_LEVELS)
        z = levels * np.linalg.norm(z, axis=1, keepdims=True) / np.linalg.norm(levels, axis=1, keepdims=True)
    b = layer.representations(real).astype(np.float64) - layer.center
    # Cosine distance is half the squared distance of unit vectors; the scorer takes that of the rounded ones.
    half = 2.0 if layer.metric == "cosine" else 1.0
    expected = mass.class_mass(
        z,
        b,
        bank.labels[real],
        num_classes=len(COUNTS),
        temperature=half * layer.temperature,
        metric="squared_euclidean",
        weights_N=bank.weights[0, real],
    )
    assert close(found, expected, bank, query)


def test_int8_moves_masses_by_no_more_than_its_levels_do(tmp_path):
    """Half the levels, of rows or of queries, would move a single row's mass by more than half as much again."""
    z, labels, _ = make([1] * 60 + [600], {"a": 32}, "cosine", 0.5, False)
    bank, query = packed(z, labels, {"a": 0.1}, "cosine", None), z["a"][:200]
    exact, found = (
        start(tmp_path, reduce_precision(bank, p), {"a": 32}).run(query).masses[:, 0] for p in ("float32", "int8")
    )

    error = (found - exact).std(axis=0)
    assert np.sqrt(np.square(error[:60]).mean()) < 0.005  # 0.0040
    assert error[60] < 0.002  # 0.0014: the errors of many rows average out, that of the query does not


@pytest.mark.parametrize(("queries", "dims"), [(1, 2), (FEW_QUERIES, 2), (FEW_QUERIES + 1, 1)])
@pytest.mark.parametrize("form", FORMS)
def test_an_integer_product_scales_its_rows_and_no_queries(tmp_path, monkeypatch, form, queries, dims):
    """onnxruntime fuses the rows' scales into it, one by one on one thread; but not for a few queries.

    A scale per query it would fuse too, and apply on one thread.
    """
    bank, z, *_ = case(form, precision="int8")
    profile_sessions(monkeypatch, tmp_path)
    scorer = start(tmp_path, bank, DIMS)
    scorer.run(z[:queries])

    ran = [kernel["args"] for kernel in kernels_run(scorer._session)]
    products = [a["input_type_shape"] for a in ran if a["op_name"] == "MatMulIntegerToFloat"]
    scales = [[shape["float"] for shape in shapes if "float" in shape] for shapes in products]
    parts = cut_into_chunks(bank, chunk_rows_for("cpu", bank))
    assert sorted(scales) == sorted([[], [1] * dims + [len(part)]] for part in parts)
    assert not any(a["op_name"] == "MatMulInteger" for a in ran)


@pytest.mark.parametrize("optimized", [True, False], ids=["fused", "as written"])
@pytest.mark.parametrize("form", FORMS)
def test_int8_masses_of_a_few_queries_are_those_of_many(tmp_path, monkeypatch, form, optimized):
    """To the last bit, though the rows' scales get there in two ways; also where a runtime fuses nothing."""
    bank, z, *_ = case(form, precision="int8")
    query = z[: 3 * FEW_QUERIES]
    many = start(tmp_path, bank, DIMS).run(query).masses
    if not optimized:
        unoptimized(monkeypatch)
    scorer = start(tmp_path, bank, DIMS)

    few = np.concatenate([scorer.run(part).masses for part in np.split(query, 3)])

    np.testing.assert_array_equal(few, many)
    np.testing.assert_array_equal(scorer.run(query).masses, many)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("form", FORMS)
def test_evidence_is_the_rows_with_the_largest_contributions(tmp_path, monkeypatch, form, precision):
    """From the same pass as the masses, exact for any k, and it leaves the masses alone."""
    bank, *_, query = case(form, precision=precision)
    monkeypatch.setattr("softkin.scorer_graph.MERGE_CHUNKS", 2)
    scorer = start(tmp_path, bank, DIMS, chunk_rows=LARGE_TILE_ROWS)
    plain = scorer.run(query)
    everything = scorer.run_with_nearest(query, bank.size)[1]

    for k in (1, 7, bank.size):
        outputs, nearest = scorer.run_with_nearest(query, k)
        np.testing.assert_array_equal(outputs.masses, plain.masses)
        np.testing.assert_array_equal(nearest.contributions, everything.contributions[:, :, :k])
        assert (np.diff(nearest.contributions) <= 0).all()
    assert (np.sort(everything.rows[:, 0]) == np.flatnonzero(bank.labels != PADDING_LABEL)).all()
    total, expected = (
        np.logaddexp.reduce(m.astype(np.float64), axis=2) for m in (everything.contributions, plain.masses)
    )
    np.testing.assert_allclose(total, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("metric", mass.METRICS)
@pytest.mark.parametrize("factor", [1e-3, 1.0, 1e3])
def test_far_outliers_have_their_masses(tmp_path, metric, factor, precision):
    """A query thousands of median distances away is as far as it is, not NaN; a zero query too."""
    z, labels, _ = make(COUNTS, DIMS, metric, 0.5, False)
    temperature = factor * float(np.median(mass.distances(z["a"][:5], z["a"], metric)))
    bank = reduce_precision(packed(z, labels, {"a": temperature}, metric, None), precision)
    query = np.stack([1e4 * np.ones(9), -1e4 * np.eye(9)[0], np.zeros(9)]).astype(np.float32)
    if metric == "cosine":  # the network normalises; far means opposite
        query = np.stack([-z["a"][0], np.eye(9)[0], np.zeros(9)]).astype(np.float32)

    found = start(tmp_path, bank, DIMS).run(query).masses[:, 0]

    expected = mass.class_mass(
        query, z["a"], labels, num_classes=len(COUNTS), temperature=temperature, metric=metric, weights_N=None
    )
    np.testing.assert_allclose(found, expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("form", FORMS)
def test_duplicates_and_ties_count_as_often_as_they_stand_there(tmp_path, form, precision):
    """1,000 copies of one row have the mass of one row plus log 1000; evidence lists different rows."""
    metric, temperature = FORMS[form]
    z = mass.unit_rows(np.repeat(np.array([[1, 2, 3], [3, -1, 1]], np.float32), [1000, 1], axis=0)).astype(np.float32)
    labels = np.repeat([0, 1], [1000, 1])
    bank = reduce_precision(packed({"a": z}, labels, {"a": temperature}, metric, None), precision)

    outputs, nearest = start(tmp_path, bank, {"a": 3}).run_with_nearest(z[:1], 10)

    # Rounding moves a row away from the query; float32 and float16 hardly do.
    moved = {"float32": 1e-6, "float16": 1e-6, "int8": 1e-3}[precision] / temperature
    np.testing.assert_allclose(outputs.masses[0, 0, 0], np.log(1000), atol=moved + 1e-3)
    assert len(set(nearest.rows[0, 0])) == 10
    assert (bank.labels[nearest.rows[0, 0]] == 0).all()


@pytest.mark.parametrize("form", FORMS)
def test_ten_thousand_classes(tmp_path, form):
    """One tile or a few for each: every class has its own mass, in a shard that lacks most of them too."""
    metric, temperature = FORMS[form]
    counts = np.where(np.arange(10_000) % 100 == 0, 200, 1)
    z, labels, _ = make(counts, {"a": 4}, metric, 0.1, False)
    bank = packed(z, labels, {"a": temperature}, metric, None)
    query = z["a"][:3]

    found = start(tmp_path, bank, {"a": 4}).run(query).masses
    shards = [
        Scorer(tmp_path / "model.onnx", bank, tmp_path / "bank.safetensors", device="cpu", rows=rows).run(query)
        for rows in shard_rows(bank, 3)
    ]

    expected = mass.class_mass(query, z["a"], labels, num_classes=10_000, temperature=temperature, metric=metric)
    assert close(found[:, 0], expected, bank, query)
    assert close(mass.merge_masses(np.stack([s.masses for s in shards]))[:, 0], expected, bank, query)


def test_an_unrequired_device_that_is_missing_falls_back_to_the_graph_for_the_cpu(tmp_path, cuda_works):
    """`auto` on a machine whose CUDA does not work scores as `cpu` does."""
    bank, *_, query = case("bounded", precision="int8")
    on_cpu = start(tmp_path, bank, DIMS)
    asked = Scorer(tmp_path / "model.onnx", bank, tmp_path / "bank.safetensors", device=Target("cuda"))

    assert asked.device == ("cuda" if cuda_works else "cpu")
    np.testing.assert_allclose(asked.run(query).masses, on_cpu.run(query).masses, atol=0.1 if cuda_works else 0)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("form", FORMS)
def test_cuda_gives_the_masses_of_the_cpu(tmp_path, cuda_works, form, precision):
    """To float32's rounding; int8 to that of the queries, which only the CPU rounds. Evidence names the same rows."""
    if not cuda_works:
        pytest.skip("needs a CUDA device")
    bank, *_, query = case(form, precision=precision)
    on_cpu = start(tmp_path, bank, DIMS)
    on_cuda = Scorer(tmp_path / "model.onnx", bank, tmp_path / "bank.safetensors", device="cuda")

    found, nearest = on_cuda.run_with_nearest(query, 5)

    expected, wanted = on_cpu.run_with_nearest(query, 5)
    if precision == "int8":
        np.testing.assert_allclose(found.masses, expected.masses, rtol=0.05, atol=0.1)
    else:
        assert close(found.masses, expected.masses, bank, query)
        np.testing.assert_array_equal(nearest.rows, wanted.rows)

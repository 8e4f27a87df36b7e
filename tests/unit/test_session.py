"""What onnxruntime is asked for, and what its failures become."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from scorer_cases import kernels_run, make, packed, profile_sessions, start
from softkin import BundleError, Detector, DeviceError, session
from softkin.cancellation import Cancellation
from softkin.chunks import SLICE_NUMBERS, SLICE_ROWS
from softkin.device import Target
from softkin.precision import reduce_precision
from softkin.scorer import Network, Scorer
from softkin.session import run_session, run_slices, start_session

CPU = Target("cpu")


def adding():
    """A network that adds int8 ones, which become float32 in it, to its input."""
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Cast", ["ones"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["x", "floats"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "adding",
        [value("x", TensorProto.FLOAT, ["batch", 2])],
        [value("y", TensorProto.FLOAT, ["batch", 2])],
        [numpy_helper.from_array(np.ones(2, np.int8), "ones")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def counting(numbers):
    """A network whose output for every row of so many numbers is how many rows there are in its run."""
    value = helper.make_tensor_value_info
    nodes = [helper.make_node("Shape", ["x"], ["rows"], end=1), helper.make_node("Expand", ["rows", "rows"], ["y"])]
    inputs = [value("x", TensorProto.UINT8, ["batch", numbers])]
    graph = helper.make_graph(nodes, "counting", inputs, [value("y", TensorProto.INT64, ["batch"])])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def threads_of(started):
    """How many compute threads a session has."""
    return started.get_session_options().intra_op_num_threads


def test_the_number_of_threads_is_the_one_that_is_asked_for(tiny, monkeypatch):
    """By everything that starts a session; otherwise what the process may use, which is not the cores of the host."""
    monkeypatch.setattr(session, "available_threads", lambda: 5)

    for asked, threads in ((3, 3), (None, 5)):
        detector = Detector.load(tiny.path, device="cpu,cpu", threads=asked)
        assert [threads_of(shard._session) for shard in detector._scorer._shards] == [threads, threads]
        assert threads_of(Network(tiny.path / "model.onnx", device="cpu", threads=asked)._session) == threads


def test_on_the_cpu_no_memory_is_planned():
    """It would be held beside what the first run took."""
    assert not start_session(adding(), CPU)[0].get_session_options().enable_mem_pattern


@pytest.mark.parametrize("keep", [True, False])
def test_constants_stay_as_they_are_stored_where_that_is_asked_for(tmp_path, monkeypatch, keep):
    """Else they are computed when the session starts, and held in what they become."""
    profile_sessions(monkeypatch, tmp_path)
    started, _ = start_session(adding(), CPU, keep_constants=keep)

    (found,) = run_session(started, ["y"], {"x": np.zeros((3, 2), np.float32)}, "cpu")

    assert found.tolist() == [[1, 1]] * 3
    assert any(kernel["args"]["op_name"] == "Cast" for kernel in kernels_run(started)) == keep


@pytest.mark.parametrize(("precision", "kept"), [("float32", False), ("float16", True), ("int8", True)])
def test_only_on_cuda_a_bank_of_fewer_bits_is_kept_in_them(tmp_path, monkeypatch, precision, kept):
    """A GPU has memory for the bits; the CPU multiplies int8 as it is, and float16 faster when it is unfolded once."""
    z, labels, _ = make([70, 3], {"a": 4}, "cosine", 0.5, False)
    bank = reduce_precision(packed(z, labels, {"a": 0.5}, "cosine", None), precision)
    asked = []

    def recording(model, target, *, keep_constants=False, **options):
        asked.append((target.kind, keep_constants, any(n.op_type == "MatMulInteger" for n in model.graph.node)))
        return start_session(model, CPU, keep_constants=keep_constants, **options)[0], target.kind

    monkeypatch.setattr("softkin.scorer.start_session", recording)
    start(tmp_path, bank, {"a": 4})
    Scorer(tmp_path / "model.onnx", bank, tmp_path / "bank.safetensors", device=Target("cuda"))

    assert asked == [("cpu", False, precision == "int8"), ("cuda", kept, False)]


def test_a_session_on_cuda_asks_for_its_gpu_first_and_for_whole_float32(monkeypatch, capsys):
    """TF32 moves scores by 1e-3; and what the runtime prints about libraries is no output of a command."""
    asked, printed = [], []

    def preload():
        print("looking for libraries")
        printed.append(1)

    def refusing(source, options, *, providers, **rest):
        asked.extend(providers)
        raise RuntimeError("none here")

    monkeypatch.setattr(ort, "preload_dlls", preload)
    monkeypatch.setattr(ort, "InferenceSession", refusing)
    with pytest.raises(BundleError):
        start_session(adding(), Target("cuda", 3))

    (name, options), last = asked
    assert (name, options["device_id"], options["use_tf32"]) == ("CUDAExecutionProvider", "3", "0")
    assert last == "CPUExecutionProvider"
    assert printed
    assert capsys.readouterr().out == ""


def test_a_file_that_is_no_model_is_named(tmp_path):
    """With what the runtime says of it."""
    (tmp_path / "m.onnx").write_bytes(b"no model")

    with pytest.raises(BundleError, match=rf"onnxruntime cannot load the model {tmp_path}/m\.onnx: .*m\.onnx"):
        Network(tmp_path / "m.onnx", device="cpu")


@pytest.mark.parametrize(
    ("rows", "numbers", "runs"),
    [
        (600, 1, [200, 200, 200]),
        (5, SLICE_NUMBERS // 2, [2, 2, 1]),
        (2, SLICE_NUMBERS + 1, [1, 1]),
        (SLICE_ROWS, SLICE_NUMBERS // SLICE_ROWS, [SLICE_ROWS]),
    ],
)
def test_of_large_rows_fewer_are_run_at_once(rows, numbers, runs):
    """Memory for hidden layers goes with the numbers of a run: 256 photographs at once would be many gigabytes."""
    started, _ = start_session(counting(numbers), CPU)
    (found,) = run_slices(started, ["y"], "x", np.zeros((rows, numbers), np.uint8), "cpu")

    assert found.tolist() == [n for n in runs for _ in range(n)]


def test_a_device_that_fails_while_it_could_be_stopped_is_no_cancelled_call():
    """Whatever the runtime raises: its exceptions share no base."""

    class Failing:
        def run(self, *arguments):
            raise RuntimeError("out of memory")

    with pytest.raises(DeviceError, match="onnxruntime failed on cuda: out of memory"):
        run_session(Failing(), ["y"], {}, "cuda", Cancellation())

"""Networks that a bank can be put on, and those that are refused; devices that are not there."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from scorer_cases import identity_model, make, packed, start
from softkin.device import Target
from softkin.errors import BundleError, DeviceError
from softkin.scorer import Network, Scorer, read_network
from softkin.session import start_session


@pytest.fixture
def bank():
    """Of one layer and two classes."""
    z, labels, _ = make([70, 3], {"a": 4}, "cosine", 0.5, False)
    return packed(z, labels, {"a": 0.5}, "cosine", None)


@pytest.mark.parametrize("data", [None, b"\xff\xff", b"no network"], ids=repr)
def test_a_file_that_is_no_network_is_refused(tmp_path, bank, data):
    """By its name, whatever the parser makes of it."""
    if data is not None:
        (tmp_path / "m.onnx").write_bytes(data)

    with pytest.raises(BundleError, match=rf"{tmp_path}/m\.onnx: not a readable ONNX model \(.*\); build the bundle"):
        read_network(tmp_path / "m.onnx", bank)


def test_a_network_without_the_representation_is_refused(tmp_path, bank):
    """With the outputs that it has."""
    onnx.save(identity_model({"c": 2, "b": 4}, normalize=False), tmp_path / "m.onnx")

    with pytest.raises(
        BundleError, match=r"no output 'representation\.a'; it has 'representation\.b', 'representation\.c'$"
    ):
        read_network(tmp_path / "m.onnx", bank)


@pytest.mark.parametrize(
    ("imports", "refused"),
    [
        ({"": 18}, None),
        ({"ai.onnx": 21}, None),
        ({"com.microsoft": 1, "": 21}, None),
        ({"": 17, "com.microsoft": 21}, 17),
        ({"com.microsoft": 21}, 0),
        ({}, 0),
    ],
    ids=str,
)
def test_the_opset_that_counts_is_that_of_onnx_itself(tmp_path, bank, imports, refused):
    """Under either of its names; the versions of other operators say nothing."""
    model = identity_model({"a": 4}, normalize=False)
    del model.opset_import[:]
    model.opset_import.extend(onnx.helper.make_opsetid(domain, version) for domain, version in imports.items())
    onnx.save(model, tmp_path / "m.onnx")

    if refused is None:
        assert read_network(tmp_path / "m.onnx", bank).graph.node
        return
    with pytest.raises(BundleError, match=f"is of opset {refused}; the scorer needs 18 or newer"):
        read_network(tmp_path / "m.onnx", bank)


@pytest.mark.parametrize("shape", [None, [], ["batch", "classes"], ["batch", 2]], ids=repr)
def test_logits_need_not_say_of_how_many_classes_they_are(tmp_path, bank, shape):
    """As exporters leave it."""
    model = identity_model({"a": 4}, normalize=False)
    model.graph.output.append(onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, shape))
    onnx.save(model, tmp_path / "m.onnx")

    assert len(read_network(tmp_path / "m.onnx", bank).graph.output) == 2


@pytest.mark.parametrize("names", [["start.a", "x"], ["x", "start.a"]], ids="-".join)
def test_constants_among_the_inputs_are_none(tmp_path, bank, names):
    """Old exporters list them there, in any order; scorer and network agree on what is left."""
    expected = start(tmp_path, bank, {"a": 4}).run(np.eye(4, dtype=np.float32)).masses
    model = identity_model({"a": 4}, normalize=False)
    del model.graph.input[:]
    for name in names:
        dtype, shape = (onnx.TensorProto.FLOAT, ["batch", 4]) if name == "x" else (onnx.TensorProto.INT64, [1])
        model.graph.input.append(onnx.helper.make_tensor_value_info(name, dtype, shape))
    onnx.save(model, tmp_path / "model.onnx")

    scorer = Scorer(tmp_path / "model.onnx", bank, tmp_path / "bank.safetensors", device="cpu")

    assert scorer.input_name == Network(tmp_path / "model.onnx", device="cpu").input_name == "x"
    np.testing.assert_array_equal(scorer.run(np.eye(4, dtype=np.float32)).masses, expected)


def test_a_device_that_was_named_is_never_replaced(tmp_path, monkeypatch, bank):
    """Neither by a scorer nor by a network; where none was named, another does."""
    start(tmp_path, bank, {"a": 4})
    monkeypatch.setattr(
        "softkin.scorer.start_session", lambda model, target, **rest: start_session(model, Target("cpu"), **rest)
    )

    for run in (Network, lambda model, device: Scorer(model, bank, tmp_path / "bank.safetensors", device=device)):
        with pytest.raises(DeviceError, match=r"device cuda:2: onnxruntime could not start .*use device cpu"):
            run(tmp_path / "model.onnx", device="cuda:2")
        monkeypatch.setattr("softkin.device.cuda_driver_present", lambda: True)
        assert run(tmp_path / "model.onnx", device="auto").device == "cpu"


def test_other_outputs_of_the_model_come_from_the_same_pass(tmp_path, bank):
    """Those that were named, as the model gives them, beside masses that they do not change."""
    plain, x = start(tmp_path, bank, {"a": 4}), np.eye(4, dtype=np.float32)
    files = (tmp_path / "model.onnx", bank, tmp_path / "bank.safetensors")

    outputs, others = Scorer(*files, device="cpu", also=["representation.a"]).run_with_others(x)

    np.testing.assert_array_equal(outputs.masses, plain.run(x).masses)
    assert others.keys() == {"representation.a"}
    np.testing.assert_array_equal(others["representation.a"], x)
    assert plain.run_with_others(x)[1] == {}


def test_the_inputs_that_are_added_cannot_be_the_networks(tmp_path, bank):
    """A network may have inputs of any name, `k_0` too."""
    first, *added = (i.name for i in start(tmp_path, bank, {"a": 4})._session.get_inputs())

    assert first == "x"
    assert added
    assert all(name.startswith("softkin/") for name in added)

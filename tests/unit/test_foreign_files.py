"""Which files of models made elsewhere cannot be read, in full sentences. Needs no torch."""

from __future__ import annotations

import re

import onnx
import pytest

from foreign_models import classifier
from softkin import InvalidInputError
from softkin_training.foreign import read_model

FILES = {
    "missing": (None, "No such file or directory"),
    "not ONNX": (b"not a model at all", "Error parsing message.*"),
    "truncated": (classifier().SerializeToString()[:-40], "Error parsing message.*"),
}


@pytest.mark.parametrize(("content", "reason"), FILES.values(), ids=FILES)
def test_a_file_that_cannot_be_read_is_refused(tmp_path, content, reason):
    """Whatever protobuf raises."""
    if content is not None:
        (tmp_path / "m.onnx").write_bytes(content)

    message = (
        rf"onnx: .*m\.onnx cannot be read \({reason}\); give an ONNX model, with its external data beside it where it "
        "has any"
    )
    with pytest.raises(InvalidInputError) as e:
        read_model(tmp_path / "m.onnx")
    assert re.fullmatch(message, str(e.value))


def test_an_empty_file_is_refused(tmp_path):
    """Protobuf takes it for a model with nothing in it."""
    (tmp_path / "m.onnx").write_bytes(b"")

    with pytest.raises(InvalidInputError, match=r"^onnx: .*m\.onnx holds no graph; give an ONNX model$"):
        read_model(tmp_path / "m.onnx")


@pytest.mark.parametrize("damage", ["missing", "cut short"])
def test_external_data_that_are_not_whole_are_refused(tmp_path, damage):
    """The message names tensor or file."""
    onnx.save(classifier(), tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    (tmp_path / "m.data").unlink()
    if damage == "cut short":
        (tmp_path / "m.data").write_bytes(b"123")

    with pytest.raises(InvalidInputError) as e:
        read_model(tmp_path / "m.onnx")
    assert re.fullmatch(
        r"onnx: .*m\.onnx cannot be read \(.*(m\.data|'w1').*\); give an ONNX model, with its external data beside it "
        r"where it has any",
        str(e.value),
    )


@pytest.mark.parametrize("told", [True, False], ids=["length", "shape alone"])
def test_a_model_beyond_a_protobuf_is_refused_before_its_data_are_read(tmp_path, told):
    """They need not even be there: what protobuf can read of more than 2 GiB, it can neither copy nor write."""
    proto = classifier()
    large = onnx.TensorProto(name="large", data_type=onnx.TensorProto.FLOAT16, dims=[3, 2**29], data_location=1)
    large.external_data.add(key="location", value="m.data")
    if told:
        large.external_data.add(key="length", value=str(3 * 2**30))
    proto.graph.initializer.append(large)
    onnx.save(proto, tmp_path / "m.onnx")

    message = (
        r"^onnx: the constants of the model take 3\.00 GiB, a bundle's network holds at most 2\.00 GiB; convert them"
    )
    with pytest.raises(InvalidInputError, match=message):
        read_model(tmp_path / "m.onnx")

"""Which output of a classifier tells classes apart, and what its numbers become."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from foreign_models import CLASSES, classifier, rows
from softkin.errors import InvalidInputError
from softkin_training.class_output import _rank, choose_output, kind_of, read_output, refuse_several_labels


@pytest.mark.parametrize(
    ("shape", "num_classes", "rank"),
    [
        ((7, 4), None, 0),
        ((7, 2), 2, 0),
        ((7, 4, 1, 1), 4, 1),
        ((7, 1), None, 2),
        ((7, 1, 4), None, 1),
        ((7,), 2, 2),
        ((), None, None),
        ((7, 1), 3, None),
        ((7, 4), 3, None),
        ((7, 4, 3), None, None),
        ((6, 4), None, None),
    ],
)
def test_a_row_of_numbers_for_classes_goes_before_images_of_one_pixel_and_single_columns(shape, num_classes, rank):
    """A class map, or an output for another number of rows, is none at all."""
    assert _rank(np.zeros(shape, np.float32), 7, num_classes) == rank


def test_a_single_column_is_that_of_the_second_class():
    """The other way round every prediction would be of the wrong class; softmax makes of the pair what sigmoid does."""
    p = np.array([[0.9], [0.2]], np.float32)
    found, kind = read_output(p, "auto", "out")
    assert kind == "probabilities"
    np.testing.assert_allclose(found, [[0.1, 0.9], [0.8, 0.2]], rtol=1e-6)

    z = np.array([3.0, -1.0], np.float32)
    found, kind = read_output(z, "auto", "out")
    assert kind == "logits"
    softmax = np.exp(found) / np.exp(found).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(softmax[:, 1], 1 / (1 + np.exp(-z)), rtol=1e-6)


def test_two_columns_stay_as_they_are():
    """They are no single column twice."""
    y = np.array([[0.25, 0.75], [1.0, 0.0]], np.float32)
    found, kind = read_output(y, "auto", "out")
    assert (found.tolist(), kind) == (y.tolist(), "probabilities")


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ((0.5, 0.5005), "probabilities"),
        ((0.5, 0.502), "logits"),
        ((1.5, -0.5), "logits"),
        ((-0.25, 1.25), "logits"),
    ],
)
def test_probabilities_lie_in_their_range_and_sum_to_one_to_a_thousandth(row, kind):
    """As sums in half precision do; logits that happen to sum to 1 are told by their signs."""
    assert kind_of(np.array([[0.3, 0.7], row], np.float32), "auto", "out") == kind


def test_the_first_row_that_holds_no_probabilities_is_told():
    """Rows before it may."""
    y = np.array([[0.25, 0.75], [0.5, 1.0], [0.0, 9.0]], np.float32)

    with pytest.raises(InvalidInputError, match=r"a row has 0\.5 to 1 and sums to 1\.5, where each must lie in"):
        kind_of(y, "probabilities", "out")


def test_sigmoids_are_of_several_labels_where_more_than_half_of_the_rows_have_two():
    """A label is one that exceeds a half; one half of the rows may do as it likes."""
    two, one = [0.55, 0.55, 0.0], [0.5, 0.9, 0.5]

    refuse_several_labels(np.array([two, one], np.float32), "s")
    with pytest.raises(InvalidInputError, match="and on 2 of 3 rows tried more than one exceeds"):
        refuse_several_labels(np.array([two, one, two], np.float32), "s")


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.DOUBLE])
def test_floats_of_any_width_tell_classes_apart(kind):
    """Of the outputs that say nothing else of themselves."""
    cast = helper.make_node("Cast", ["scores"], ["out"], to=kind)
    proto = classifier([cast], [helper.make_tensor_value_info("out", kind, ["batch", CLASSES])])

    assert choose_output(proto, rows(9), None, None) == "out"


@pytest.mark.parametrize("num_classes", [None, CLASSES])
def test_of_outputs_alike_the_one_called_logits_tells_classes_apart(num_classes):
    """A bundle's own network has distances of the same shape beside it; its name decides nothing else."""
    alike = [helper.make_node("Identity", ["scores"], [name]) for name in ("boundary_distance", "logits")]
    proto = classifier(alike, ["boundary_distance", "logits"])
    assert choose_output(proto, rows(9), num_classes, None) == "logits"

    column = helper.make_node("ReduceMax", ["scores"], ["logits"], keepdims=1)
    proto = classifier([column], ["logits", "scores"])
    assert choose_output(proto, rows(9), num_classes, None) == "scores"


def test_a_list_of_dictionaries_can_be_named_and_means_what_goes_into_it():
    """scikit-learn's converters end in one."""
    zipmap = helper.make_node("ZipMap", ["scores"], ["zipped"], domain="ai.onnx.ml", classlabels_int64s=range(CLASSES))
    dictionary = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    output = helper.make_value_info("zipped", helper.make_sequence_type_proto(dictionary))
    proto = classifier([zipmap], [output], domains=[("ai.onnx.ml", 3)])

    assert choose_output(proto, rows(9), None, "zipped") == "scores"

"""What labels may hold: the same for a training and for `evaluate`."""

import logging

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from unet.errors import SourceError
from unet.evaluation.labels import MOST_INSTANCES, LabelSurvey, labels_to_classes

SHAPES = arrays.array_shapes(min_dims=2, max_dims=3, max_side=6)
DTYPES = st.sampled_from(["bool", "uint8", "uint16", "int32", "uint64", "float32", "float64"])


@given(data=st.data(), shape=SHAPES, dtype=DTYPES)
def test_whole_numbers_from_zero_are_instances(data, shape, dtype):
    numbers = st.integers(0, 1 if dtype == "bool" else 200)
    labels = data.draw(arrays.arrays("int64", shape, elements=numbers)).astype(dtype)
    assert np.array_equal(labels_to_classes(labels, None, "a.tif"), labels != 0)


@given(
    data=st.data(),
    shape=SHAPES,
    strange=st.one_of(
        st.floats(-5, 5).filter(lambda number: number < 0 or not number.is_integer()),
        st.sampled_from([np.nan, np.inf, -np.inf, -1, MOST_INSTANCES + 1.0]),
    ),
)
def test_one_other_number_anywhere_is_refused(data, shape, strange):
    labels = data.draw(arrays.arrays("float64", shape, elements=st.integers(0, 9)))
    labels.flat[data.draw(st.integers(0, labels.size - 1))] = strange
    with pytest.raises(SourceError, match=r"Expected whole numbers from 0 to \d+ as labels in a"):
        labels_to_classes(labels, None, "a.tif")


def warnings_of(caplog, *parts, of_instances=True):
    caplog.clear()
    survey = LabelSurvey("a.tif", of_instances=of_instances)
    for part in parts:
        survey.add(np.asarray(part))
    with caplog.at_level(logging.WARNING):
        survey.warn()
    return [record.getMessage() for record in caplog.records]


def test_labels_that_say_nothing_are_told(caplog):
    empty, two, one = [[0, 0, 0]], [[255, 0, 255]], [[0, 255, 0]]
    assert "all labels in a.tif are 0" in warnings_of(caplog, empty, empty)[0]
    assert "are 255, in 2 places: as instances" in warnings_of(caplog, empty, two)[0]
    assert warnings_of(caplog, empty, two, of_instances=False) == []
    assert warnings_of(caplog, empty, one) == []
    assert warnings_of(caplog, two, [[0, 7, 0]]) == []
    assert warnings_of(caplog, [[1, 0, 2]]) == []

"""V_rand against scikit-image, which counts the same pairs of pixels in code of its own.

Both compare the pixels where the truth has an object, and take label 0 of the segmentation for one
more region. They differ in one thing. With n pixels, P the sum of the squares of the overlaps, and
Q the mean of those of the regions of both images,

    V_rand is                     P / Q              as Arganda-Carreras et al. 2015 write it
    adapted_rand_error is    1 - (P - n) / (Q - n)   since no pixel is paired with itself

So of one follows the other, for any image.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from skimage.metrics import adapted_rand_error

from unet.evaluation.metrics import RegionScores

Labels = NDArray[np.int64]

SHAPE = (5, 6)
label_images = arrays.arrays(np.int64, SHAPE, elements=st.integers(0, 4))


def squares_of_regions(image: Labels, inside: NDArray[np.bool_]) -> int:
    """The sum of the squares of the sizes of its regions, 0 among them."""
    return int((np.unique(image[inside], return_counts=True)[1] ** 2).sum())


@given(label_images, label_images)
@example(np.ones(SHAPE, int), np.ones(SHAPE, int))
@example(np.zeros(SHAPE, int), np.ones(SHAPE, int))
@example(np.arange(30).reshape(SHAPE) // 2, np.ones(SHAPE, int))
@example(np.ones(SHAPE, int), np.arange(30).reshape(SHAPE) // 2)
def test_v_rand_is_that_of_scikit_image(prediction: Labels, truth: Labels) -> None:
    inside = truth > 0
    pixels = int(inside.sum())
    squares = [squares_of_regions(image, inside) for image in (prediction, truth)]
    assume(min(squares) > pixels)  # else an image has no pair, and scikit-image divides by 0
    error, _, _ = adapted_rand_error(truth, prediction)
    mean = sum(squares) / 2
    overlaps = (1 - error) * (mean - pixels) + pixels
    assert RegionScores.of(prediction, truth).v_rand == pytest.approx(overlaps / mean, abs=1e-12)


@given(label_images)
def test_many_pixels_leave_no_difference(prediction: Labels) -> None:
    """Each pixel 40 x 40 times: then a pixel with itself is one pair of very many."""
    truth = np.array([[1, 1, 1, 2, 2, 2]] * SHAPE[0])
    prediction, truth = (np.kron(image, np.ones((40, 40), int)) for image in (prediction, truth))
    error, _, _ = adapted_rand_error(truth, prediction)
    assert RegionScores.of(prediction, truth).v_rand == pytest.approx(1 - error, abs=1e-3)


def test_a_value_worked_by_hand() -> None:
    """RegionScores of 2, 1, 2 and 1 pixels: P = 4 + 1 + 4 + 1 = 10, over 6 pixels of the truth.

    Regions of 2, 3 and 1 pixels, and of 3 and 3: Q = (4 + 9 + 1 + 9 + 9) / 2 = 16. So V_rand is
    10 / 16. And scikit-image says 1 - (10 - 6) / (16 - 6).
    """
    truth = np.array([[1, 1, 1, 2, 2, 2, 0]])
    prediction = np.array([[5, 5, 0, 0, 0, 7, 7]])
    assert RegionScores.of(prediction, truth).v_rand == pytest.approx(0.625)
    assert adapted_rand_error(truth, prediction)[0] == pytest.approx(0.6)

"""Measures against values worked by hand, and against the laws that they have to obey."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unet.evaluation.metrics import (
    InstanceCounts,
    PixelCounts,
    RegionScores,
    ScoreCounter,
    compare_membranes,
    grow_labels,
    label_instances,
)
from unet.evaluation.picture import FALSE_NEGATIVE, FALSE_POSITIVE, GAP, draw_comparison

PREDICTION = np.array([[1, 1, 1, 0], [0, 0, 0, 0]], bool)
TRUTH = np.array([[0, 1, 1, 1], [0, 0, 0, 1]], bool)

seeds = st.integers(0, 10_000)


def labels(seed: int, count: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, count, (7, 9))


def test_measures_of_pixels():
    """Of 8 pixels 2 are right, 1 is a false positive, 2 are false negatives."""
    assert PixelCounts.of(PREDICTION, TRUTH).scores() == {
        "dice": 4 / 7,
        "iou": 2 / 5,
        "pixel_error": 3 / 8,
        "precision": 2 / 3,
        "recall": 2 / 4,
    }


def test_pixels_that_are_not_annotated_do_not_count():
    left = np.array([[1, 1, 0, 0]] * 2, bool)
    assert PixelCounts.of(PREDICTION, TRUTH, left) == PixelCounts(
        true_positives=1, false_positives=1, false_negatives=0, true_negatives=2
    )


def test_an_empty_prediction_of_an_empty_image_has_no_error():
    none = np.zeros((3, 3), bool)
    scores = PixelCounts.of(none, none).scores()
    assert scores.pop("pixel_error") == 0
    assert set(scores.values()) == {1}


@given(seeds)
def test_counts_of_parts_add_up_to_those_of_the_whole(seed):
    prediction, truth = labels(seed) > 1, labels(seed + 1) > 1
    parts = PixelCounts.of(prediction[:3], truth[:3]) + PixelCounts.of(prediction[3:], truth[3:])
    assert parts == PixelCounts.of(prediction, truth)
    assert PixelCounts.of(prediction, truth).scores()["dice"] == pytest.approx(
        2 * PixelCounts.of(prediction, truth).scores()["iou"]
        / (1 + PixelCounts.of(prediction, truth).scores()["iou"])
    )  # fmt: skip


def test_average_precision():
    """Three true instances of 10 pixels: one is predicted whole, one by 7 of 10, one not at all.

    A fourth prediction matches nothing.
    """
    truth, prediction = np.zeros((5, 10), int), np.zeros((5, 10), int)
    truth[0], truth[1], truth[2] = 1, 2, 3
    prediction[0], prediction[1, :7], prediction[4] = 5, 9, 7
    scores = InstanceCounts.of(prediction, truth).scores()
    assert scores["ap_50"] == scores["ap_60"] == 2 / (3 + 3 - 2)
    assert scores["ap_70"] == scores["ap_80"] == scores["ap_90"] == 1 / (3 + 3 - 1)


def test_two_halves_match_nothing():
    truth, prediction = np.ones((2, 10), int), np.ones((2, 10), int)
    prediction[1] = 2
    assert InstanceCounts.of(prediction, truth) == InstanceCounts(
        prediction=2, truth=1, matches=(0,) * 5
    )


def test_measures_of_a_split():
    """One region of the truth in two halves: p = 1/2, 1/2; s the same; t = 1.

    V_rand = 2 (1/4 + 1/4) / ((1/4 + 1/4) + 1) = 2/3. All information of S is about nothing in T:
    I(S, T) = 0, so V_info = 0.
    """
    prediction, truth = np.ones((2, 10), int), np.ones((2, 10), int)
    prediction[1] = 2
    assert RegionScores.of(prediction, truth).v_rand == pytest.approx(2 / 3)
    assert RegionScores.of(prediction, truth).v_info == pytest.approx(0, abs=1e-12)


def test_measures_of_a_partial_merge():
    """Three equal regions, of which two are merged: p = 1/3 three times, s = 2/3, 1/3.

    V_rand = 2 (3/9) / (5/9 + 3/9) = 3/4. I = H(S), since T says all about S.
    """
    truth = np.repeat([[1, 2, 3]], 4, 0).repeat(3, 1)
    prediction = np.where(truth == 3, 2, 1)
    of_s = math.log(3) - 2 / 3 * math.log(2)
    region_scores = RegionScores.of(prediction, truth)
    assert region_scores.v_rand == pytest.approx(3 / 4)
    assert region_scores.v_info == pytest.approx(2 * of_s / (of_s + math.log(3)))


def test_pixels_outside_the_regions_of_the_truth_do_not_count():
    truth = np.array([[1, 1, 0, 2, 2]])
    assert RegionScores.of(np.array([[4, 4, 9, 5, 5]]), truth) == RegionScores(1, 1)


@given(seeds)
def test_region_scores_do_not_depend_on_the_numbers_of_labels(seed):
    prediction, truth = labels(seed), labels(seed + 1)
    other = np.array([70, 3, 12, 400])[prediction]
    one, two = RegionScores.of(prediction, truth), RegionScores.of(other, truth)
    assert (one.v_rand, one.v_info) == pytest.approx((two.v_rand, two.v_info))
    assert 0 <= one.v_rand <= 1
    assert -1e-12 <= one.v_info <= 1


def test_membranes_are_thinned_before_regions_are_compared():
    """A membrane three times as broad parts the same regions; one with a gap merges them."""
    truth = np.zeros((9, 21), bool)
    truth[:, 10] = True
    broad = np.zeros((9, 21), bool)
    broad[:, 9:12] = True
    assert compare_membranes(broad, truth) == RegionScores(1, 1)
    broad[4] = False
    assert compare_membranes(broad, truth).v_rand == pytest.approx(2 / 3)
    assert compare_membranes(broad, truth).v_info == pytest.approx(0, abs=1e-12)


def test_grown_labels_meet_half_way():
    assert grow_labels(np.array([[1, 0, 0, 0, 0, 2]])).tolist() == [[1, 1, 1, 2, 2, 2]]
    assert not grow_labels(np.zeros((3, 3), int)).any()


def test_instances_of_three_classes_that_touch_stay_two():
    """Inside, border, border, inside: two instances that share no gap."""
    classes = np.array([[0, 2, 1, 2, 2, 1, 2, 0]], np.uint8)
    assert label_instances(classes, 3).tolist() == [[0, 1, 1, 1, 2, 2, 2, 0]]
    assert label_instances((classes > 0).astype(np.uint8), 2).max() == 1


def test_errors_are_drawn_in_their_colours():
    """One pixel each: true positive, false positive, false negative, true negative."""
    prediction, truth = np.array([[1, 1, 0, 0]], bool), np.array([[1, 0, 1, 0]], bool)
    drawn = draw_comparison(np.arange(4.0)[None, None], prediction, truth)
    assert drawn[0, -4:].tolist() == [
        [200] * 3,
        list(FALSE_POSITIVE),
        list(FALSE_NEGATIVE),
        [0] * 3,
    ]
    assert drawn[0, 4 + GAP : 8 + GAP, 0].tolist() == [255, 255, 0, 0]


def test_planes_and_volumes_are_counted_apart():
    mask = np.ones((3, 4, 4), np.uint8)
    everywhere = np.ones(mask.shape, bool)
    for volumes, count in ((True, 1), (False, 3)):
        counter = ScoreCounter(("pixels", "instances"), 2, volumes)
        counter.add(mask, mask, None, everywhere)
        assert counter.instances.prediction == counter.instances.truth == count
        assert counter.scores()["ap_90"] == 1

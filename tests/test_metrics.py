"""Measures against values worked by hand, and against the laws that they have to obey."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unet.evaluation.metrics import (
    Instances,
    Overlaps,
    PixelCounts,
    Tally,
    grown,
    instances,
    membranes,
)
from unet.evaluation.picture import FOUND_ONLY, GAP, WANTED_ONLY, compared

FOUND = np.array([[1, 1, 1, 0], [0, 0, 0, 0]], bool)
WANTED = np.array([[0, 1, 1, 1], [0, 0, 0, 1]], bool)

seeds = st.integers(0, 10_000)


def labels(seed: int, count: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, count, (7, 9))


def test_measures_of_pixels():
    """2 right, 1 found only, 2 missed, of 8."""
    assert PixelCounts.of(FOUND, WANTED).scores() == {
        "dice": 4 / 7,
        "iou": 2 / 5,
        "pixel_error": 3 / 8,
        "precision": 2 / 3,
        "recall": 2 / 4,
    }


def test_what_is_not_annotated_does_not_count():
    left = np.array([[1, 1, 0, 0]] * 2, bool)
    assert PixelCounts.of(FOUND, WANTED, left) == PixelCounts(both=1, found=1, wanted=0, neither=2)


def test_nothing_found_where_nothing_is_has_no_error():
    none = np.zeros((3, 3), bool)
    figures = PixelCounts.of(none, none).scores()
    assert figures.pop("pixel_error") == 0
    assert set(figures.values()) == {1}


@given(seeds)
def test_counts_of_parts_add_up_to_those_of_the_whole(seed):
    found, wanted = labels(seed) > 1, labels(seed + 1) > 1
    parts = PixelCounts.of(found[:3], wanted[:3]) + PixelCounts.of(found[3:], wanted[3:])
    assert parts == PixelCounts.of(found, wanted)
    assert PixelCounts.of(found, wanted).scores()["dice"] == pytest.approx(
        2 * PixelCounts.of(found, wanted).scores()["iou"]
        / (1 + PixelCounts.of(found, wanted).scores()["iou"])
    )  # fmt: skip


def test_average_precision():
    """Three wanted, of 10 pixels each: one found whole, one by 7 of 10, one not; one is made up."""
    wanted, found = np.zeros((5, 10), int), np.zeros((5, 10), int)
    wanted[0], wanted[1], wanted[2] = 1, 2, 3
    found[0], found[1, :7], found[4] = 5, 9, 7
    figures = Instances.of(found, wanted).scores()
    assert figures["ap_50"] == figures["ap_60"] == 2 / (3 + 3 - 2)
    assert figures["ap_70"] == figures["ap_80"] == figures["ap_90"] == 1 / (3 + 3 - 1)


def test_two_halves_match_nothing():
    wanted, found = np.ones((2, 10), int), np.ones((2, 10), int)
    found[1] = 2
    assert Instances.of(found, wanted) == Instances(found=2, wanted=1, matched=(0,) * 5)


def test_measures_of_a_split():
    """One region of the truth in two halves: p = 1/2, 1/2; s the same; t = 1.

    V_rand = 2 (1/4 + 1/4) / ((1/4 + 1/4) + 1) = 2/3. All information of S is about nothing in T:
    I(S, T) = 0, so V_info = 0.
    """
    found, wanted = np.ones((2, 10), int), np.ones((2, 10), int)
    found[1] = 2
    assert Overlaps.of(found, wanted).v_rand == pytest.approx(2 / 3)
    assert Overlaps.of(found, wanted).v_info == pytest.approx(0, abs=1e-12)


def test_measures_of_a_partial_merge():
    """Three equal regions, of which two are merged: p = 1/3 three times, s = 2/3, 1/3.

    V_rand = 2 (3/9) / (5/9 + 3/9) = 3/4. I = H(S), since T says all about S.
    """
    wanted = np.repeat([[1, 2, 3]], 4, 0).repeat(3, 1)
    found = np.where(wanted == 3, 2, 1)
    of_s = math.log(3) - 2 / 3 * math.log(2)
    overlaps = Overlaps.of(found, wanted)
    assert overlaps.v_rand == pytest.approx(3 / 4)
    assert overlaps.v_info == pytest.approx(2 * of_s / (of_s + math.log(3)))


def test_pixels_that_are_no_region_of_the_truth_are_left_out():
    wanted = np.array([[1, 1, 0, 2, 2]])
    assert Overlaps.of(np.array([[4, 4, 9, 5, 5]]), wanted) == Overlaps(1, 1)


@given(seeds)
def test_overlaps_do_not_depend_on_the_numbers_of_labels(seed):
    found, wanted = labels(seed), labels(seed + 1)
    other = np.array([70, 3, 12, 400])[found]
    one, two = Overlaps.of(found, wanted), Overlaps.of(other, wanted)
    assert (one.v_rand, one.v_info) == pytest.approx((two.v_rand, two.v_info))
    assert 0 <= one.v_rand <= 1
    assert -1e-12 <= one.v_info <= 1


def test_membranes_are_thinned_before_regions_are_compared():
    """A membrane three times as broad parts the same regions; one with a gap merges them."""
    wanted = np.zeros((9, 21), bool)
    wanted[:, 10] = True
    broad = np.zeros((9, 21), bool)
    broad[:, 9:12] = True
    assert membranes(broad, wanted) == Overlaps(1, 1)
    broad[4] = False
    assert membranes(broad, wanted).v_rand == pytest.approx(2 / 3)
    assert membranes(broad, wanted).v_info == pytest.approx(0, abs=1e-12)


def test_grown_labels_meet_half_way():
    assert grown(np.array([[1, 0, 0, 0, 0, 2]])).tolist() == [[1, 1, 1, 2, 2, 2]]
    assert not grown(np.zeros((3, 3), int)).any()


def test_instances_of_three_classes_touch_and_are_two():
    """Inside, border, border, inside: two instances that share no gap."""
    classes = np.array([[0, 2, 1, 2, 2, 1, 2, 0]], np.uint8)
    assert instances(classes, 3).tolist() == [[0, 1, 1, 1, 2, 2, 2, 0]]
    assert instances((classes > 0).astype(np.uint8), 2).max() == 1


def test_errors_are_drawn_in_their_colours():
    """A pixel each: right, found only, missed, and neither."""
    found, wanted = np.array([[1, 1, 0, 0]], bool), np.array([[1, 0, 1, 0]], bool)
    drawn = compared(np.arange(4.0)[None, None], found, wanted)
    assert drawn[0, -4:].tolist() == [[200] * 3, list(FOUND_ONLY), list(WANTED_ONLY), [0] * 3]
    assert drawn[0, 4 + GAP : 8 + GAP, 0].tolist() == [255, 255, 0, 0]


def test_planes_and_volumes_are_counted_apart():
    mask = np.ones((3, 4, 4), np.uint8)
    everywhere = np.ones(mask.shape, bool)
    for volumes, count in ((True, 1), (False, 3)):
        tally = Tally(("pixels", "instances"), 2, volumes)
        tally.add(mask, mask, None, everywhere)
        assert tally.instances.found == tally.instances.wanted == count
        assert tally.scores()["ap_90"] == 1

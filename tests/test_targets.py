"""Labels to classes and weights: worked values of the border weights, classes, annotation."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from unet.errors import ConfigError
from unet.training.config import BorderOptions, read_training
from unet.training.labelled import fill_holes_of_instances, read_all
from unet.training.sampling import (
    Sampler,
    elastic_displacement,
    saturate,
    vary_stain,
    window_coordinates,
)
from unet.training.targets import border_weights, classes_of_instances, make_targets

PAPER = BorderOptions(weight=10, sigma=5)


def test_border_weights_are_those_of_the_formula():
    """Two objects 5 pixels apart: in the gap d1 + d2 is 1 + 5, 2 + 4, 3 + 3 pixels, always 6."""
    objects = np.zeros((1, 30), np.int32)
    objects[0, :10], objects[0, 15:] = 1, 2
    weights = border_weights(objects, PAPER)
    assert weights[0, 10:15] == pytest.approx(10 * math.exp(-(6**2) / (2 * 5**2)))
    # Inside object 1 the nearest is 0 away, and the other the distance to column 15.
    assert weights[0, 9] == pytest.approx(10 * math.exp(-(6**2) / 50))
    assert weights[0, 0] == pytest.approx(10 * math.exp(-(15**2) / 50))


def test_border_weights_take_the_two_nearest_of_many():
    objects = np.zeros((1, 40), np.int32)
    objects[0, 2], objects[0, 12], objects[0, 18] = 1, 2, 3
    assert border_weights(objects, PAPER)[0, 15] == pytest.approx(10 * math.exp(-(6**2) / 50))


def test_one_object_has_no_border():
    assert not border_weights(np.ones((9, 9), np.int32), PAPER).any()


def test_border_weights_in_a_volume():
    objects = np.zeros((9, 5, 5), np.int32)
    objects[0], objects[8] = 1, 2
    assert border_weights(objects, PAPER)[4] == pytest.approx(10 * math.exp(-(8**2) / 50))


def test_objects_that_touch_are_separated_by_background():
    labels = np.zeros((5, 8), np.int32)
    labels[:, 1:4], labels[:, 4:7] = 1, 2
    classes, apart = classes_of_instances(labels, 2)
    assert classes.tolist() == [[0, 1, 1, 0, 0, 1, 1, 0]] * 5
    assert set(np.unique(apart)) == {0, 1, 2}


def test_with_three_classes_the_edge_of_an_object_is_the_border():
    labels = np.zeros((9, 16), np.int32)
    labels[:, 1:8], labels[:, 8:15] = 1, 2
    classes, _ = classes_of_instances(labels, 3)
    assert classes[4].tolist() == [0, 2, 2, 1, 1, 1, 2, 2, 2, 2, 1, 1, 1, 2, 2, 0]


def test_holes_are_filled_plane_by_plane():
    labels = np.zeros((2, 5, 5), np.int32)
    labels[:, 1:4, 1:4] = 7
    labels[0, 2, 2] = 0
    assert (fill_holes_of_instances(labels) == labels[1]).all()


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """An image, a class mask of 10 and 20, and a mask that is annotated in its left half."""
    rng = np.random.default_rng(0)
    tifffile.imwrite(tmp_path / "image.tif", rng.integers(0, 255, (60, 60), dtype=np.uint8))
    mask = np.full((60, 60), 20, np.uint8)
    mask[10:20] = mask[40:50] = 10
    tifffile.imwrite(tmp_path / "mask.tif", mask)
    tifffile.imwrite(tmp_path / "annotated.tif", np.repeat(np.uint8([[1, 0]]), 30, 1).repeat(60, 0))
    return tmp_path


def training(files: Path, **changed: Any):
    image = {
        "image": str(files / "image.tif"),
        "label": str(files / "mask.tif"),
        "values": [20, 10],
        **changed.pop("item", {}),
    }
    raw = {
        "name": "m",
        "classes": ["between", "stripe"],
        "images": [image],
        "network": {"width": 2, "depth": 1},
        "window": [24, 24],
        **changed,
    }
    return read_training(raw)


def test_class_masks_and_class_weights(files):
    config = training(files, class_weights=[1, 3], border={"weight": 10, "sigma": 5})
    targets = make_targets(read_all(config).training_parts[0], config)
    assert (
        targets.classes[0, :, 0].tolist() == ([0] * 10 + [1] * 10 + [0] * 20) + [1] * 10 + [0] * 10
    )
    assert targets.weights[0, 15, 0] == 3  # objects themselves carry no border weight
    assert targets.weights[0, 30, 0] == pytest.approx(1 + 10 * math.exp(-(21**2) / 50))


def test_pixels_that_are_not_annotated_have_no_weight_and_no_windows(files):
    config = training(files, item={"annotated": str(files / "annotated.tif")})
    targets = make_targets(read_all(config).training_parts[0], config)
    assert (targets.weights[..., 30:] == 0).all()
    assert (targets.weights[..., :30] > 0).all()
    assert (targets.objects % 60 < 30).all()


def test_without_variation_a_window_is_the_image_itself(files):
    """Classes and weights lie on the network's output: the centre of the window, in step."""
    still = dict.fromkeys(
        ("on_object", "elastic", "gain", "gamma", "offset", "blur", "noise", "saturation", "stain"),
        0,
    )
    config = training(files, item={"zoom": [1, 1]}, augment={"turn": False, **still})
    part = read_all(config).training_parts[0]
    sampler = Sampler(config, read_all(config))
    at = window_coordinates(
        (24, 24), np.array([30.5, 30.5]), (1, 1), config.augment, np.random.default_rng(0)
    )
    assert at[0, 0, 0] == 19
    assert at[1, -1, -1] == 42
    drawn = sampler.draw(0, 0)
    context = config.architecture(1).context[0]
    assert drawn.classes.shape == (24 - 2 * context,) * 2
    # Nearest and linear interpolation agree where a stripe is: its rows are whole.
    assert set(np.unique(drawn.classes)) <= {0, 1}
    assert drawn.pixels.min() >= part.pixels.min() - 1e-5


def test_the_elastic_field_interpolates_its_coarse_grid(files):
    config = training(files, augment={"elastic": 10, "elastic_grid": 3})
    field = elastic_displacement((41, 61), config.augment, np.random.default_rng(1))
    coarse = np.random.default_rng(1).normal(0, 10, (2, 3, 3))
    assert field.shape == (2, 41, 61)
    assert np.allclose(field[:, ::20, ::30], coarse)


def test_restaining_by_nothing_changes_nothing():
    class Still(np.random.Generator):
        """Draws zeros."""

        def normal(self, *_: Any, **__: Any):  # type: ignore[override]
            return np.zeros((3, 3))

    light = np.random.default_rng(0).uniform(0.1, 1, (3, 8, 8))
    still = Still(np.random.PCG64(0))
    assert np.allclose(vary_stain(light, 0.0, still), light, atol=1e-6)


def test_saturation_makes_what_is_bright_white_and_keeps_the_order():
    rng = np.random.default_rng(0)
    window = rng.uniform(0, 1, (1, 40, 40))
    for _ in range(20):
        cut = saturate(window, rng)
        white = cut == 1
        assert 0.05 < white.mean() < 0.9
        assert (window[white] >= window[~white].max()).all()
        assert np.ptp(cut[~white] / window[~white]) < 1e-9  # the rest is only brighter
    dark = window * 0.05
    assert np.array_equal(saturate(dark, rng), dark)


def test_saturation_is_for_normalisations_that_know_white(files):
    with pytest.raises(ConfigError, match=r"augment\.saturation: expected 0"):
        training(files, augment={"saturation": 0.1}, normalisation={"method": "zscore"})

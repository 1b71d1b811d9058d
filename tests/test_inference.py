"""The reference in memory, and the arithmetic after the network."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import picture
from hypothesis import given
from hypothesis import strategies as st

import unet
from unet.errors import ModelError, SourceError
from unet.model.architecture import Architecture
from unet.model.classify import decide, with_background
from unet.model.folder import ModelSpec, find_model
from unet.network.inference import foreground, guess_axes

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here")


@given(st.integers(2, 5), st.integers(1, 40), st.integers(1, 40), st.data())
def test_a_probability_has_the_same_bits_wherever_its_pixel_lies(classes, height, width, data):
    rng = np.random.default_rng(0)
    logits = (rng.standard_normal((2, classes, height, width)) * 9).astype(np.float32)
    logits = logits if data.draw(st.booleans()) else channels_last(logits)
    y = data.draw(st.integers(0, height - 1))
    x = data.draw(st.integers(0, width - 1))
    whole = foreground(logits)
    part = logits[1:, :, y:, x:]
    assert np.array_equal(foreground(part), whole[1:, :, y:, x:])
    assert np.array_equal(foreground(channels_last(part)), whole[1:, :, y:, x:])


def channels_last(values):
    return np.ascontiguousarray(values.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


def test_it_is_the_softmax():
    logits = torch.randn((3, 4, 5, 6)) * 100
    expected = torch.softmax(logits.double(), dim=1)[:, 1:].numpy()
    assert np.allclose(foreground(logits.numpy()), expected, atol=1e-6)


def test_the_most_probable_class_wins():
    rng = np.random.default_rng(0)
    every = rng.dirichlet([1, 1, 1, 1], size=(2, 3, 4, 5)).transpose(0, 4, 1, 2, 3)
    found = decide(every[:, 1:].astype(np.float32), 0.5)
    assert np.array_equal(found[:, 0], every.argmax(axis=1))
    assert np.allclose(with_background(every[:, 1:]), every, atol=1e-6)


def test_of_two_classes_the_threshold_decides():
    probabilities = np.float32([0.2, 0.5, 0.50001, 0.9]).reshape(1, 1, 1, 1, 4)
    assert decide(probabilities, 0.5).ravel().tolist() == [0, 0, 1, 1]
    assert decide(probabilities, 0.8).ravel().tolist() == [0, 0, 0, 1]


def test_classes_sum_to_one(make_model):
    model = unet.load_model(make_model(classes=3, in_channels=2).folder)
    found = unet.predict(model, picture(2, 30, 40))
    assert found.shape == (3, 30, 40)
    assert np.allclose(found.sum(axis=0), 1, atol=1e-6)


def test_axes_may_be_in_any_order(make_model):
    """Channels last are found where only that fits; anything else is named."""
    model = unet.load_model(make_model(in_channels=3).folder)
    image = picture(3, 30, 40)
    expected = unet.predict(model, image)
    assert np.array_equal(unet.predict(model, np.moveaxis(image, 0, -1)), expected)
    assert np.array_equal(unet.predict(model, image.swapaxes(0, 1), axes="ycx"), expected)


@given(
    st.sampled_from([(2, 1), (2, 3), (3, 1), (3, 2)]),
    st.lists(st.integers(1, 9), min_size=1, max_size=5),
)
def test_axes_that_were_not_given_are_never_chosen_among_several(network, shape):
    """A last axis as short as the colours of a pixel is a reading, unless it cannot be another."""
    dims, channels = network
    spec = model_spec(dims, channels)
    readings = {
        axes
        for axes in ("yx", "zyx", "cyx", "yxc", "czyx", "zyxc")
        if len(axes) == len(shape) and fits(axes, shape, dims, channels)
    }
    if len(readings) == 1:
        assert {guess_axes(tuple(shape), spec)} == readings
    else:
        with pytest.raises(ModelError, match="axes="):
            guess_axes(tuple(shape), spec)


def fits(axes: str, shape: list[int], dims: int, channels: int) -> bool:
    sizes = dict(zip(axes, shape, strict=True))
    if axes.endswith("c") and channels == 1:
        return sizes["c"] <= 4
    if "c" in axes:
        return sizes["c"] == channels and len(axes) == dims + 1
    if axes == "zyx" and dims == 2:
        return channels == 1 and sizes["z"] > 1  # one plane is one channel, with the same numbers
    return channels == 1 and len(axes) == dims


def model_spec(dims: int, channels: int) -> ModelSpec:
    return replace(
        find_model("fluo-nuclei"),
        architecture=Architecture.of(dims=dims, in_channels=channels),
        channels=tuple(map(str, range(channels))),
    )


@pytest.mark.parametrize("samples", [1, 2, 3, 4])
@pytest.mark.parametrize("dims", [2, 3])
def test_colours_are_not_read_as_planes(make_model, dims, samples):
    """By a model of one channel; with the axes named, the channel is chosen before."""
    model = unet.load_model(make_model(dims=dims).folder)
    image = picture(20, 30, samples)
    with pytest.raises(ModelError, match=r"'zyx' or 'yxc'.* axes='zyx'.* takes 1 channel"):
        unet.predict(model, image)
    assert unet.predict(model, image, axes="zyx").shape == (2, 20, 30, samples)
    if samples > 1:
        with pytest.raises(ModelError, match=r"read as 'yxc'.*image\[\.\.\., 0\]"):
            unet.predict(model, image, axes="yxc")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("fluo-nuclei", r"the str 'fluo-nuclei'.*unet\.load_model\('fluo-nuclei'\)"),
        (Path("models/mine"), r"models/mine.*unet\.load_model\("),
        (find_model("fluo-nuclei"), r"a ModelSpec.*unet\.load_model\("),
        (None, r"a NoneType.*unet\.load_model\("),
    ],
)
def test_what_is_no_model_is_refused_with_what_to_write(model, message):
    with pytest.raises(TypeError, match=message):
        unet.predict(model, np.zeros((30, 40), "u1"))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("data/mine.tif", r"the str 'data/mine\.tif'.*tifffile\.imread"),
        (Path("data/mine.tif"), r"data/mine\.tif.*tifffile\.imread"),
        (torch.zeros((30, 40)), r"a Tensor.*numpy\.asarray"),
        ([[0, 1], [1, 0]], r"a list.*numpy\.asarray"),
        (None, r"a NoneType.*numpy\.asarray"),
        (np.zeros((30, 40), "c8"), r"complex64 values.*astype"),
        (np.full((30, 40), None), r"object values.*astype"),
        (np.full((30, 40), "1"), r"<U1 values.*astype"),
    ],
)
def test_what_is_no_image_is_refused_with_what_to_write(make_model, image, message):
    model = unet.load_model(make_model().folder)
    with pytest.raises(TypeError, match=message):
        unet.predict(model, image)


@pytest.mark.parametrize("name", [3, None, b"fluo-nuclei", find_model("fluo-nuclei")])
def test_what_names_no_model_is_refused_with_what_to_write(name):
    with pytest.raises(TypeError, match=r"a model's name or the path of its folder, got a \w+"):
        unet.load_model(name)


@pytest.mark.parametrize(
    ("image", "axes", "error", "message"),
    [
        (np.zeros((4, 30, 40), "u1"), None, ModelError, "the 1 channels|4 channels|Name the axes"),
        (np.zeros((30, 40), "u1"), "yxc", ModelError, "one axis letter"),
        (np.full((30, 40), np.nan, "f4"), None, SourceError, "NaN"),
        (np.zeros((0, 40), "u1"), None, ModelError, "Name the axes"),
    ],
)
def test_an_image_that_does_not_fit_is_refused(make_model, image, axes, error, message):
    channels = 3 if image.ndim == 3 else 1
    model = unet.load_model(make_model(in_channels=channels).folder)
    with pytest.raises(error, match=message):
        unet.predict(model, image, axes)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU])])
def test_a_device_agrees_with_the_reference(make_model, device):
    """On a GPU to rounding: its sums are taken in another order."""
    from unet.network.inference import Inference

    loaded = unet.load_model(make_model(depth=2, width=4, classes=3).folder)
    window = picture(1, 1, 1, 60, 60)
    arguments = (loaded.network, 2, [60], [0.02])
    reference = Inference(*arguments).probabilities([window])
    found = Inference(*arguments, device=device).probabilities([window])
    assert np.abs(found - reference).max() <= (0 if device == "cpu" else 1e-5)


def test_bfloat16_agrees_with_float32_to_its_precision(make_model):
    """Eight bits of mantissa: probabilities agree to about a hundredth."""
    from unet.network.inference import Inference

    loaded = unet.load_model(make_model(depth=2, width=4).folder)
    window = picture(1, 1, 1, 60, 60)
    full = Inference(loaded.network, 2, [60], [0.02]).probabilities([window])
    half = Inference(loaded.network, 2, [60], [0.02], precision="bfloat16")
    assert np.abs(half.probabilities([window]) - full).max() < 0.05

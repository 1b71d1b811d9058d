"""The network: the paper's shapes, and a pixel's bits that no window changes."""

import subprocess
import sys
import tomllib

import pytest
import torch
from conftest import REPOSITORY
from hypothesis import given, settings
from hypothesis import strategies as st

import unet
from unet.errors import ModelError
from unet.model.architecture import Architecture
from unet.network.unet import (
    RONNEBERGER_2015,
    Conv2d,
    Conv3d,
    ConvTranspose2d,
    ConvTranspose3d,
    UNet,
    crop_image,
)


def test_the_network_of_2015_maps_572_to_388():
    with torch.inference_mode():
        assert UNet()(torch.rand((1, 1, 572, 572))).shape == (1, 2, 388, 388)


def test_its_shapes_can_be_printed():
    done = subprocess.run(
        [sys.executable, "-m", "unet"], capture_output=True, text=True, check=True
    )
    assert "down.4   (1, 1024, 28, 28)" in done.stdout
    assert done.stdout.splitlines()[-1] == "head     (1, 2, 388, 388)"


def test_weights_are_drawn_as_he_2015_says():
    """Standard deviation sqrt(2 / N), N = 9 * 512 for a 3 x 3 convolution of 512 channels."""
    weight = UNet().merge[2][1 * 2].weight
    assert weight.shape[1] == 256
    assert weight.std().item() == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.01)


def test_an_illegal_size_names_the_legal_ones():
    with pytest.raises(ModelError, match="556 and 572"):
        UNet(Architecture.of(width=1))(torch.zeros((1, 1, 572, 571)))


@pytest.mark.parametrize(
    ("others", "numbers", "got"),
    [
        ((3,), {}, "UNet(3)"),
        ((1, 2), {}, "UNet(1, 2)"),
        ((), {"in_channels": 3}, "UNet(in_channels=3)"),
        ((3,), {"n_classes": 2}, "UNet(3, n_classes=2)"),
        (({"width": 16},), {}, "UNet({'width': 16})"),
        ((None,), {}, "UNet(None)"),
        ((RONNEBERGER_2015, 2), {}, "2)"),
    ],
)
def test_numbers_without_an_architecture_are_refused_with_what_to_write(others, numbers, got):
    with pytest.raises(TypeError) as caught:
        UNet(*others, **numbers)
    assert f"{got}. Write" in str(caught.value)
    assert "UNet(Architecture.of(in_channels=3, classes=2))" in str(caught.value)


def test_the_public_names_are_there():
    """And another network is made from them alone."""
    assert all(hasattr(unet, name) for name in unet.__all__)
    network = unet.UNet(unet.Architecture.of(in_channels=3, classes=4, width=1))
    assert network(torch.zeros((1, 3, 188, 188))).shape == (1, 4, 4, 4)


def test_the_version_is_that_of_the_distribution():
    pyproject = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    assert unet.__version__ == pyproject["project"]["version"]


def test_crop_image_takes_the_centre():
    image = torch.arange(36.0).reshape(1, 1, 6, 6)
    assert crop_image(image, (2, 4)).flatten().tolist() == [13, 14, 15, 16, 19, 20, 21, 22]


LAYERS = {
    "conv2d": (Conv2d, 2, {"kernel_size": 3}),
    "head2d": (Conv2d, 2, {"kernel_size": 1}),
    "conv3d": (Conv3d, 3, {"kernel_size": 3}),
    "up2d": (ConvTranspose2d, 2, {"kernel_size": 2, "stride": 2}),
    "up3d": (ConvTranspose3d, 3, {"kernel_size": 2, "stride": 2}),
}


@pytest.mark.parametrize("name", LAYERS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_convolution_gives_a_pixel_the_same_bits_in_every_window(name, data):
    """Whatever the size of the tensor, the channels, the batch and the number of threads."""
    kind, dims, options = LAYERS[name]
    inputs = data.draw(st.sampled_from([1, 2, 3, 8, 32, 64]))
    outputs = data.draw(st.sampled_from([1, 2, 8, 16, 64]))
    size = [data.draw(st.integers(5, 120 if dims == 2 else 18)) for _ in range(dims)]
    start = [data.draw(st.integers(0, n - 4)) for n in size]
    shape = [data.draw(st.integers(4, n - a)) for n, a in zip(size, start, strict=True)]
    part = tuple(slice(a, a + n) for a, n in zip(start, shape, strict=True))
    layout = torch.channels_last if dims == 2 else torch.channels_last_3d
    torch.manual_seed(0)
    layer = kind(inputs, outputs, **options).to(memory_format=layout)
    whole = torch.randn((1, inputs, *size)).contiguous(memory_format=layout)
    window = whole[(..., *part)].contiguous(memory_format=layout)
    threads = torch.get_num_threads()
    try:
        with torch.inference_mode():
            torch.set_num_threads(2)
            expected = layer(whole)
            torch.set_num_threads(data.draw(st.sampled_from([1, 2])))
            found = layer(window.expand(data.draw(st.sampled_from([1, 2, 3])), *window.shape[1:]))
    finally:
        torch.set_num_threads(threads)
    scale = options.get("stride", 1)
    for row in found:
        same = tuple(
            slice(a * scale, a * scale + n) for a, n in zip(start, row.shape[1:], strict=True)
        )
        assert torch.equal(row, expected[(0, slice(None), *same)])


def test_the_own_convolutions_agree_with_torch():
    torch.manual_seed(0)
    x = torch.randn((1, 3, 20, 30))
    for name in ("conv2d", "up2d"):
        kind, _, options = LAYERS[name]
        layer = kind(3, 5, **options)
        plain = kind.__mro__[1](3, 5, **options)
        plain.load_state_dict(layer.state_dict())
        assert torch.allclose(layer(x), plain(x), atol=1e-6)

"""No seam: the tiled result is the untiled one, bit for bit, however an image is cut."""

import numpy as np
import pytest
import torch
from conftest import picture
from hypothesis import given, settings
from hypothesis import strategies as st
from support import planned, predicted_serially

import unet
from unet.model.classify import decide
from unet.model.normalisation import summarise
from unet.network.inference import Inference, WindowRunner
from unet.planning.geometry import Box, read_mirrored
from unet.planning.lattice import Lattice
from unet.storage.store import open_image
from unet.storage.workspace import Workspace

PAPER = {"width": 4, "depth": 4}
SMALL = {"width": 4, "depth": 2}
VOLUME = {"width": 2, "depth": 2, "dims": 3}
FLAT = {**VOLUME, "kernel": [(1, 3, 3), (3, 3, 3), (3, 3, 3)], "pool": [(1, 2, 2), (2, 2, 2)]}


def assert_seamless(image, axes, model, folder, **request):
    """Probabilities and mask of the tiled run equal those of one pass over the whole image."""
    plan = planned(image, axes, model, folder, **request)
    found = predicted_serially(plan, Workspace(folder / "run"))
    whole = unet.predict(unet.load_model(model.folder), image, axes)[1:]
    expected = np.moveaxis(whole.reshape(whole.shape[0], *plan.image.shape), 0, 1)
    assert found.shape == expected.shape
    assert np.array_equal(found, expected)
    assert np.array_equal(decide(found, 0.5), decide(expected, 0.5))
    return plan


@pytest.mark.parametrize(
    ("shape", "request_"),
    [
        ((1013, 777), {"shard": (512, 512), "chunk": (256, 256)}),
        ((1013, 777), {"shard": (512, 768), "chunk": (256, 256), "core": (192, 384)}),
        ((1013, 777), {}),
        ((91, 40), {"shard": (32, 32), "chunk": (16, 16), "core": (16, 32)}),
        ((91, 40), {}),
        ((1, 700), {"shard": (16, 128), "chunk": (16, 64), "core": (16, 80)}),
        ((700, 1), {"shard": (208, 16), "chunk": (16, 16), "core": (208, 16)}),
        ((1, 1), {}),
    ],
)
def test_tiled_equals_untiled_in_2d(shape, request_, make_model, tmp_path):
    """The paper's depth: context 92, stride 16."""
    model = make_model(**PAPER)
    assert_seamless(picture(*shape), "yx", model, tmp_path, **request_)


@pytest.mark.parametrize("network", [VOLUME, FLAT])
@pytest.mark.parametrize(
    ("shape", "request_"),
    [
        ((21, 50, 33), {"shard": (8, 16, 16), "chunk": (8, 16, 16), "core": (4, 8, 16)}),
        ((3, 70, 20), {"shard": (4, 32, 16), "chunk": (4, 16, 16), "core": (4, 32, 12)}),
        ((9, 1, 40), {}),
    ],
)
def test_tiled_equals_untiled_in_3d(network, shape, request_, make_model, tmp_path):
    model = make_model(**network)
    assert_seamless(picture(*shape, dtype="uint16"), "zyx", model, tmp_path, **request_)


def test_tiled_equals_untiled_with_channels_classes_and_time(make_model, tmp_path):
    model = make_model(**SMALL, in_channels=3, classes=4)
    image = picture(2, 3, 2, 60, 45)
    request = {"shard": (32, 16), "chunk": (16, 16), "core": (16, 16)}
    plan = assert_seamless(image, "tczyx", model, tmp_path, **request)
    assert plan.batch > 1


def test_every_plane_of_a_stack_is_done_by_a_2d_network(make_model, tmp_path):
    model = make_model(**SMALL)
    image = picture(5, 60, 45)
    plan = assert_seamless(image, "zyx", model, tmp_path, shard=(2, 32, 32), chunk=(16, 16))
    assert plan.block == (1, 2, 32, 32)


def test_every_time_of_a_series_is_done_by_itself(make_model, tmp_path):
    model, image = make_model(**VOLUME), picture(3, 9, 30, 21)
    cut = {"shard": (2, 8, 16, 16), "chunk": (8, 16, 16), "core": (1, 4, 8, 16)}
    plan = assert_seamless(image, "tzyx", model, tmp_path, **cut)
    assert plan.block == (2, 8, 16, 16)


@settings(max_examples=25)
@given(data=st.data())
def test_any_block_core_and_batch_give_the_same_bits(data, make_model):
    """Geometry in memory, so that many cuts of one image can be tried."""
    model = unet.load_model(make_model(**SMALL).folder)
    lattice = Lattice.of(model.spec.architecture)
    image = picture(*data.draw(st.tuples(st.integers(1, 70), st.integers(1, 70))))
    core = (1, 1, *(4 * data.draw(st.integers(1, 9)) for _ in range(2)))
    batch = data.draw(st.integers(1, 5))
    affine = model.spec.normalisation.affine(summarise(image[np.newaxis], ()))
    runner = WindowRunner(Inference(model.network, 2, *affine), lattice, core, batch, 2)
    box = Box((0, 0, 0, 0), (1, 1, *image.shape))
    pixels = read_mirrored(
        lambda b: image[b.slices[2:]][np.newaxis, np.newaxis, np.newaxis],
        lattice.reads(box),
        box.shape,
    )
    found = runner.block(pixels, box)[0, 0, 0]
    assert np.array_equal(found, unet.predict(model, image)[1])


def test_a_window_that_is_too_large_shrinks_and_changes_nothing(make_model, tmp_path):
    """The device runs out of memory, as torch says it, for every window above 60 pixels."""
    model = make_model(**SMALL)
    image = picture(100, 90)
    plan = planned(image, "yx", model, tmp_path)
    loaded = unet.load_model(model.folder)

    class Crowded(torch.nn.Module):
        refused = 0

        def forward(self, x):
            if x.shape[-1] > 60 or x.shape[-2] > 60:
                self.refused += 1
                raise torch.OutOfMemoryError("out of memory, on purpose")
            return loaded.network(x)

    device = Crowded()
    runner = WindowRunner(
        Inference(device, 2, plan.offset, plan.scale), plan.lattice, plan.core, 4, 2
    )
    source = open_image(plan.image)
    pixels = read_mirrored(source.read, plan.lattice.reads(plan.grid.box(0)), plan.image.shape)
    found = runner.block(pixels, plan.grid.box(0))[0, 0, 0]
    assert device.refused > 0
    assert np.array_equal(found, unet.predict(loaded, image)[1])


def test_a_stride_off_the_lattice_would_show(make_model):
    """That the equality above can fail: 388 px apart, the paper's net disagrees with itself."""
    model = unet.load_model(make_model(**PAPER).folder)
    image = torch.from_numpy(picture(572 + 388, 572)).float()[None, None] / 255
    with torch.inference_mode():
        above = model.network(image[..., : 572 + 384, :])
        below = model.network(image[..., 388:, :])
    a, b = above[..., 388:768, :], below[..., : 768 - 388, :]
    assert not torch.equal(a, b)
    with torch.inference_mode():
        on_lattice = model.network(image[..., 384 : 384 + 572, :])
    assert torch.equal(above[..., 384:768, :], on_lattice[..., :384, :])

"""What a plan says that a result takes is what a result takes: files, and bytes of pixels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import files_in

from unet.planning.axes import with_channels
from unet.planning.image import ImageRef
from unet.planning.layout import Layout
from unet.planning.result_layout import (
    Footprint,
    bytes_to_write,
    footprint,
    image_arrays,
    level_factors,
    mask_arrays,
)
from unet.storage.metadata import write_attributes
from unet.storage.store import create_array


def image_of(axes, shape, channels=1, dtype="uint8", block=None, copied=True, **pixel_size):
    """An image of which nothing but its sizes matters; `shape` and `block` are (t, z, y, x)."""
    return ImageRef(
        store="nowhere",
        copied=copied,
        array="0",
        axes=axes,
        channels=None,
        shape=shape,
        dtype=dtype,
        channel_names=tuple(map(str, range(channels))),
        pixel_size=pixel_size,
        origin={},
        block=block,
    )


def mask_of(image, block, chunk):
    """The layout of an image's mask at full size."""
    return Layout(
        axes=image.axes.replace("c", ""),
        shape=with_channels(image.shape, 1),
        dtype="uint8",
        chunk=with_channels(chunk, 1),
        shard=with_channels(block, 1),
    )


PLANE = image_of("yx", (1, 1, 1000, 1000), block=(1, 1, 512, 512))
PLANE_MASK = mask_of(PLANE, (1, 1, 512, 512), (1, 1, 256, 256))
COLOURS = image_of("cyx", (1, 1, 530, 620), 3, "uint16", (1, 1, 512, 512))
FILM = image_of("tyx", (3, 1, 10, 1100), 1, "float32", (2, 1, 16, 512))
ANOTHERS_VOLUME = image_of("zyxc", (1, 5, 530, 40), 2, "int16", copied=False)
LAYOUTS = {
    "plane": (PLANE, PLANE_MASK),
    "colours": (COLOURS, mask_of(COLOURS, (1, 1, 256, 128), (1, 1, 128, 64))),
    "film": (FILM, mask_of(FILM, (1, 1, 16, 256), (1, 1, 16, 256))),
    "volume": (ANOTHERS_VOLUME, mask_of(ANOTHERS_VOLUME, (1, 4, 128, 48), (1, 4, 64, 48))),
}


def write(group: Path, layouts: list[Layout]) -> int:
    """Write every block of every array, as stitching does; returns the bytes of their pixels."""
    size = 0
    for level, layout in enumerate(layouts):
        array = create_array(group, str(level), layout)
        for index in range(array.grid.count):
            shape = with_channels(array.grid.box(index).shape, layout.shape[1])
            array.write_block(index, np.zeros(shape, layout.dtype))
        size += array.array.nbytes
    write_attributes(group, {})
    return size


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_result_has_the_files_and_the_bytes_that_are_planned(name, tmp_path):
    image, mask = LAYOUTS[name]
    written = write(tmp_path, image_arrays(image))
    write_attributes(tmp_path / "labels", {})
    written += write(tmp_path / "labels" / "mask", mask_arrays(image, mask))
    planned = footprint(image, mask)
    assert planned == Footprint(len(files_in(tmp_path)), written)


@pytest.mark.parametrize("name", LAYOUTS)
def test_arrays_of_one_kind_are_the_levels_of_one_pyramid(name):
    image, mask = LAYOUTS[name]
    factors = level_factors(image)
    images, masks = image_arrays(image), mask_arrays(image, mask)
    assert len(images) == len(masks) == len(factors) > 1
    assert masks[0] is mask
    for number, factor in enumerate(factors):
        smaller = tuple(-(-n // f) for n, f in zip(image.shape, factor, strict=True))
        assert images[number].shape == with_channels(smaller, len(image.channel_names))
        assert masks[number].shape == with_channels(smaller, 1)
        assert sorted(images[number].axes) == sorted(image.axes)
        assert "c" not in masks[number].axes
        assert (images[number].dtype, masks[number].dtype) == (image.dtype, "uint8")


def test_a_plane_of_1000_pixels_a_side():
    """Four shards and, half the size, one; each array and group has a zarr.json."""
    assert Footprint.of(image_arrays(PLANE)) == Footprint((4 + 1) + (1 + 1), 1000**2 + 500**2)
    assert footprint(PLANE, PLANE_MASK) == Footprint(7 + 7 + 3, 2_500_000)


def test_the_pixels_of_a_copy_are_linked_and_not_written_again():
    read_in_place = replace(PLANE, copied=False, block=None)
    assert bytes_to_write(PLANE, PLANE_MASK) == 1_500_000
    assert bytes_to_write(read_in_place, PLANE_MASK) == 2_500_000


@pytest.mark.parametrize(
    ("image", "levels"),
    [
        (image_of("yx", (1, 1, 512, 512)), [(1, 1, 1, 1)]),
        (image_of("yx", (1, 1, 513, 9)), [(1, 1, 1, 1), (1, 1, 2, 2)]),
        (image_of("tyx", (900, 1, 600, 600)), [(1, 1, 1, 1), (1, 1, 2, 2)]),
        (image_of("zyx", (1, 600, 600, 600)), [(1, 1, 1, 1), (1, 2, 2, 2)]),
        (image_of("zyx", (1, 600, 600, 600), y=0.1, x=0.1), [(1, 1, 1, 1), (1, 2, 2, 2)]),
        (
            image_of("zyx", (1, 100, 5000, 5000), z=2.0, y=0.5, x=0.5),
            [(1, 1, 1, 1), (1, 1, 2, 2), (1, 1, 4, 4), (1, 2, 8, 8), (1, 4, 16, 16)],
        ),
        (image_of("zyx", (1, 2, 2000, 2000)), [(1, 1, 1, 1), (1, 2, 2, 2), (1, 2, 4, 4)]),
    ],
    ids=["fits a chunk", "one side", "time", "cubes", "z unknown", "long z", "few planes"],
)
def test_levels_halve_towards_cubes_until_a_plane_fits_a_chunk(image, levels):
    assert level_factors(image) == levels

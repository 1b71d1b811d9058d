"""What a result holds, in integers: its arrays, their files and their bytes.

Why apart from `stitch`, which makes them: the plan states the files and the space of a run before
it begins, and counts exactly what will be made.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import numpy as np

from unet.planning.axes import ORDER, Sizes
from unet.planning.image import ImageRef
from unet.planning.layout import Layout, image_block, image_layout, pyramid

IMAGE, MASK = "image", "mask"  # the pyramids of a result
FOLDERS = {IMAGE: ".", MASK: "labels/mask"}
GROUPS = (FOLDERS[MASK], "labels", ".")  # each, and each array, has a zarr.json


@dataclass(frozen=True)
class Footprint:
    """Files on a disk, and the bytes of their pixels before they are compressed."""

    files: int
    bytes: int

    @classmethod
    def of(cls, layouts: Iterable[Layout]) -> Self:
        """Of arrays: their shards, and a zarr.json for each."""
        files = size = 0
        for array in layouts:
            counts = (-(-n // s) for n, s in zip(array.shape, array.shard, strict=True))
            files += math.prod(counts) + 1
            size += math.prod(array.shape) * np.dtype(array.dtype).itemsize
        return cls(files, size)


def level_factors(image: ImageRef) -> list[Sizes]:
    """By how much each level of an image and of its mask is smaller, on (t, z, y, x)."""
    size = image.pixel_size
    spacing = (size.get("z", size.get("x", 1.0)), size.get("y", 1.0), size.get("x", 1.0))
    return pyramid(image.shape, spacing)


def image_arrays(image: ImageRef) -> list[Layout]:
    """The image of a result and its smaller levels."""
    axes = "".join(axis for axis in ORDER if axis in image.axes)
    channels = len(image.channel_names)
    block = image.block or image_block(image.shape)
    full_size = image_layout(axes, image.shape, channels, image.dtype, block)
    return [full_size, *_smaller_levels(image, full_size, channels)]


def mask_arrays(image: ImageRef, mask: Layout) -> list[Layout]:
    """The mask of a result, whose full size has the layout `mask`, and its smaller levels."""
    return [mask, *_smaller_levels(image, mask, 1)]


def footprint(image: ImageRef, mask: Layout) -> Footprint:
    """Of a result with its image."""
    arrays = Footprint.of([*image_arrays(image), *mask_arrays(image, mask)])
    return Footprint(arrays.files + len(GROUPS), arrays.bytes)


def bytes_to_write(image: ImageRef, mask: Layout) -> int:
    """The bytes of a result before compression, without what is only linked: a copied image."""
    linked = Footprint.of(image_arrays(image)[:1]).bytes if image.copied else 0
    return footprint(image, mask).bytes - linked


def _smaller_levels(image: ImageRef, full_size: Layout, channels: int) -> list[Layout]:
    shapes = [
        tuple(-(-n // f) for n, f in zip(image.shape, factors, strict=True))
        for factors in level_factors(image)[1:]
    ]
    return [
        image_layout(full_size.axes, shape, channels, full_size.dtype, image_block(shape))
        for shape in shapes
    ]

"""What a result holds, in integers: its arrays, their files and their bytes.

Why apart from `stitch`, which makes them: the plan tells the files and the space of a run before it
begins, and counts exactly what will be made.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import numpy as np

from unet.planning.axes import ORDER
from unet.planning.geometry import Sizes
from unet.planning.layout import Layout, image_block, image_layout, pyramid
from unet.planning.plan import ImageRef, Plan

GROUPS = 3  # the result, its labels, the mask; each array and group has a zarr.json


@dataclass(frozen=True)
class Footprint:
    """Files on a disk, and the bytes of their pixels before they are compressed."""

    files: int
    bytes: int

    @classmethod
    def of(cls, layouts: list[Layout]) -> Self:
        """Of arrays with these layouts."""
        shards = (
            math.prod(-(-n // s) for n, s in zip(a.shape, a.shard, strict=True)) for a in layouts
        )
        size = sum(math.prod(a.shape) * np.dtype(a.dtype).itemsize for a in layouts)
        return cls(sum(shards) + len(layouts), size)


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
    whole = image_layout(axes, image.shape, channels, image.dtype, block)
    return [whole, *_smaller(image, axes, channels, image.dtype)]


def mask_arrays(plan: Plan) -> list[Layout]:
    """The mask of a result and its smaller levels."""
    whole = plan.mask()
    return [whole, *_smaller(plan.image, whole.axes, 1, whole.dtype)]


def footprint(plan: Plan) -> Footprint:
    """Of a result with its image."""
    arrays = Footprint.of([*image_arrays(plan.image), *mask_arrays(plan)])
    return Footprint(arrays.files + GROUPS, arrays.bytes)


def to_write(plan: Plan) -> int:
    """The bytes of a result before compression, without what is only linked: a copied image."""
    linked = Footprint.of(image_arrays(plan.image)[:1]).bytes if plan.image.copied else 0
    return footprint(plan).bytes - linked


def _smaller(image: ImageRef, axes: str, channels: int, dtype: str) -> list[Layout]:
    shapes = [
        tuple(-(-n // f) for n, f in zip(image.shape, factors, strict=True))
        for factors in level_factors(image)[1:]
    ]
    return [image_layout(axes, shape, channels, dtype, image_block(shape)) for shape in shapes]

"""What every image source offers, whatever its format: one axis order, one way to read.

Inside the project an image is always (t, c, z, y, x). Only a source converts: it inserts axes of
length 1, turns RGB samples into channels, selects a level and channels, and reads any box without
reading the whole image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from unet.planning.axes import Sizes
from unet.planning.geometry import Box


@dataclass(frozen=True)
class SourceSpec:
    """How the configuration describes an input image; None leaves the choice to the file.

    path              a file, a folder or glob of slices, or a Zarr array or OME-Zarr image
    axes              of the file, in its order, such as "zyx"; "s" is RGB samples
    level             number of the pyramid level, 0 the largest
    level_pixel_size  instead: choose the level with the nearest pixel size in x, in micrometres
    channels          indices or names of the channels to use, in this order
    pixel_size        micrometres by axis ("z", "y", "x"); replaces that of the file
    """

    path: str
    axes: str | None = None
    level: int | None = None
    level_pixel_size: float | None = None
    channels: tuple[int | str, ...] | None = None
    pixel_size: dict[str, float] | None = None


@dataclass(frozen=True)
class InPlace:
    """Where a Zarr image lies that is read without a copy.

    store     path of the Zarr store or of the array itself
    array     path of the array inside it ("" if the store is the array)
    axes      the array's own axes, in its own order
    channels  indices of the channels to read
    """

    store: str
    array: str
    axes: str
    channels: tuple[int, ...]


class Source(Protocol):
    """An image that is open for reading; `shape`, `chunks` and what `read` returns are 5D.

    axes           that the file has, a part of "tczyx" in this order
    shape          (t, c, z, y, x), 1 where the image has no such axis
    chunks         (t, c, z, y, x), shape of the pieces that can be decoded alone
    pixel_size     micrometres by axis; an axis whose size is unknown is not in it
    origin         position of the first pixel by axis, in pixels, where the file has it
    channel_names  one per channel
    in_place       where to read it without a copy; None for a format that has to be copied
    """

    axes: str
    shape: Sizes
    dtype: np.dtype
    chunks: Sizes
    pixel_size: dict[str, float]
    origin: dict[str, float]
    channel_names: tuple[str, ...]
    in_place: InPlace | None

    def read(self, box: Box) -> NDArray[np.generic]:
        """The pixels of `box` on (t, z, y, x), inside the image, as (t, c, z, y, x)."""
        ...

    def close(self) -> None:
        """Close the files; a closed source is not read again."""
        ...

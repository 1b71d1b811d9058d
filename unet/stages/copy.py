"""Copying an image into a Zarr array of this project: from a file, or from the user's own Zarr."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from unet.errors import SourceError
from unet.planning.geometry import Box
from unet.planning.image import ImageRef
from unet.sources import open_source
from unet.sources.base import SourceSpec
from unet.storage.ledger import Written
from unet.storage.store import ArrayRef, open_image


class Reader(Protocol):
    """What pixels are copied from."""

    def read(self, box: Box) -> NDArray[np.generic]:
        """The pixels of `box` on (t, z, y, x), as (t, c, z, y, x)."""
        ...


@dataclass(frozen=True)
class CopyJob:
    """Copy an image into an array, one shard for each block.

    source  a file of the user, or an image that is Zarr already
    target  of the same shape
    """

    name: str
    source: SourceSpec | ImageRef
    target: ArrayRef

    def open(self) -> Callable[[int], Written]:
        """Open both on a worker; the source is read by several threads at once."""
        source, target = self._open_source(), self.target.open(writable=True)

        def copy(index: int) -> Written:
            box = target.grid.box(index)
            pixels = source.read(box)
            if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
                raise not_finite(self._source_path, box)
            return target.write_block(index, pixels)

        return copy

    def _open_source(self) -> Reader:
        if isinstance(self.source, ImageRef):
            return open_image(self.source)
        return open_source(self.source)

    @property
    def _source_path(self) -> str:
        return self.source.store if isinstance(self.source, ImageRef) else self.source.path


def not_finite(path: str, box: Box) -> SourceError:
    """The error of an image whose pixels in `box` hold NaN or infinity."""
    return SourceError(
        f"Expected finite pixel values in {path}, got NaN or infinity at (t, z, y, x) = {box}. "
        f"Replace them before predicting, for instance by the background."
    )

"""Copying an image into a Zarr array of this project: from a file, or from the user's own Zarr.

The copy that ingest makes of a file is what all later stages read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from unet.errors import SourceError
from unet.planning.geometry import Box
from unet.planning.image import ImageRef
from unet.planning.result_layout import image_arrays
from unet.sources import open_source
from unet.sources.base import SourceSpec
from unet.storage import ome
from unet.storage.block_store import BlockStore
from unet.storage.ledger import Written
from unet.storage.location import locate
from unet.storage.metadata import write_attributes
from unet.storage.store import ArrayRef, create_array, open_image
from unet.storage.workspace import Workspace

COPY = "image copy"  # in `Workspace.recompute`, and where a damaged block is named
FOLDER = "image.ome.zarr"


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
        source, target = self._open_source(), self.target.open()

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


def create_copy(image: ImageRef, workspace: Workspace) -> BlockStore:
    """Make the store of the copy that ingest makes of an image, or open it where it is there."""
    group, layout = locate(image.store), image_arrays(image)[0]
    attributes = ome.multiscales(
        FOLDER.removesuffix(".zarr"), layout.axes, image.pixel_size, [(1,) * 4], "mean"
    )
    write_attributes(group, attributes)
    ledger = workspace.ledger(group.parent.name)
    return BlockStore(create_array(group, image.array, layout), ledger)


def refuse_damaged_copy(image: ImageRef, workspace: Workspace) -> None:
    """Raise StoreError, naming them, if blocks of the copy are not as ingest wrote them."""
    if image.copied:
        create_copy(image, workspace).refuse_holes(
            "Run again with --forcerun ingest, which makes only these."
        )

"""Zarr stores: how pixels are created, read and written. The only module that writes Zarr.

Why whole shards: Zarr has no partial shard write, so two writers inside one shard lose pixels. A
block is one shard of its store and one task owns it; then no lock is needed and the bytes do not
depend on the order. Why checksums: a shard's index has a checksum but its payload does not unless
asked; with `Crc32cCodec` a flipped bit is an error. Why empty chunks are written: a shard that was
left out because it holds only zeros could not be told from a hole.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import suppress
from itertools import product, takewhile
from pathlib import Path
from typing import Any, cast

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec
from zarr.errors import ContainsArrayError, ContainsGroupError

from unet.durable import sync_file, sync_folder
from unet.errors import StoreError
from unet.geometry import Box, Sizes, block_box, grid
from unet.layout import Layout
from unet.plan import ImageRef
from unet.sources.base import GRID, ORDER


class Pixels:
    """An open array, read and written as (t, c, z, y, x) whatever axes it has.

    axes      the array's axes in its own order
    channels  the channels to read, in this order; None for all
    own       whether this project wrote it: then every shard is there, and a missing one is an
              error; of another's array a missing chunk is background, as Zarr says
    """

    def __init__(
        self, array: zarr.Array[Any], axes: str, channels: Sizes | None = None, own: bool = True
    ) -> None:
        if len(axes) != array.ndim:
            raise StoreError(
                f"Expected {array.store_path} to have the axes {axes!r}, but it has "
                f"{array.ndim} dimensions. It was changed since the run began: start it again."
            )
        self.array = array
        self.axes = axes
        self.channels = channels
        self.own = own
        self._settled: set[Path] = set()

    @property
    def grid_shape(self) -> Sizes:
        """(t, z, y, x), 1 where the array has no such axis."""
        sizes = dict(zip(self.axes, self.array.shape, strict=True))
        return tuple(sizes.get(axis, 1) for axis in GRID)

    def read(self, box: Box) -> NDArray[np.generic]:
        """The pixels of `box` on (t, z, y, x), as (t, c, z, y, x).

        Raises StoreError where a chunk is damaged, or a shard is missing.
        """
        if self.own:
            self._refuse_holes(box)
        where = dict(zip(GRID, box.slices, strict=True))
        if self.channels is not None:
            where["c"] = slice(min(self.channels), max(self.channels) + 1)
        index = tuple(where.get(axis, slice(None)) for axis in self.axes)
        try:
            values = np.asarray(self.array[index])
        except (ValueError, OSError, RuntimeError) as error:
            raise StoreError(
                f"Expected readable chunks in {self.array.store_path}, at (t, z, y, x) = "
                f"{box}, but one is damaged: {error}. Restore the file from a copy, or delete it "
                f"and run its stage again."
            ) from error
        order = [self.axes.index(axis) for axis in ORDER if axis in self.axes]
        values = values.transpose(order)
        present = iter(values.shape)
        values = values.reshape([next(present) if axis in self.axes else 1 for axis in ORDER])
        if self.channels is None:
            return values
        picked = [c - min(self.channels) for c in self.channels]
        return values if picked == list(range(values.shape[1])) else values[:, picked]

    def write(self, box: Box, values: NDArray[np.generic]) -> None:
        """Store `values` (t, c, z, y, x) at `box`, which is whole shards of this array."""
        where = dict(zip(GRID, box.slices, strict=True))
        for file in self._shard_files(box):
            file.unlink(missing_ok=True)  # Zarr reads a shard that is there, even a damaged one
        index = tuple(where.get(axis, slice(None)) for axis in self.axes)
        shape = [n for n, axis in zip(values.shape, ORDER, strict=True) if axis in self.axes]
        self.array[index] = values.reshape(shape)

    def shard_file(self, index: int, block: Sizes) -> Path:
        """The file that holds block `index` of an array written by this project."""
        start = dict(zip(GRID, block_box(index, self.grid_shape, block).start, strict=True))
        step = dict(zip(GRID, block, strict=True))
        position = tuple(start[a] // step[a] if a in step else 0 for a in self.axes)
        return self._file(position)

    def settle(self, index: int, block: Sizes) -> int:
        """Have the shard of block `index` on the disk itself; returns its bytes."""
        file = self.shard_file(index, block)
        sync_file(file)
        if file.parent not in self._settled:  # else what names it is there already
            array = self._file(()).parent
            for folder in takewhile(lambda f: f.is_relative_to(array), file.parent.parents):
                sync_folder(folder)
            self._settled.add(file.parent)
        return file.stat().st_size

    def _refuse_holes(self, box: Box) -> None:
        for file in self._shard_files(box):
            if not file.exists():
                raise StoreError(
                    f"Expected the file {file}, written by an earlier stage, and found none: it "
                    f"was deleted since. Run the stage that made it again, with --forcerun ingest "
                    f"or --forcerun predict."
                )

    def _shard_files(self, box: Box) -> Iterator[Path]:
        """The files of all shards that a box touches."""
        where = dict(zip(GRID, box.slices, strict=True))
        sides = zip(self.axes, self.array.shards or self.array.chunks, strict=True)
        positions = (
            range(where[a].start // side, -(-where[a].stop // side)) if a in where else (0,)
            for a, side in sides
        )
        return map(self._file, product(*positions))

    def _file(self, position: Sizes) -> Path:
        key = self.array.metadata.encode_chunk_key(position)
        return Path(str(self.array.store.root), self.array.path, key)  # type: ignore[attr-defined]


def create(group: Path, name: str, layout: Layout) -> Pixels:
    """Make the empty array `name` of a group, or open it where it is already as it should be.

    Raises StoreError where another array is in its place.
    """
    path = group / name
    if not (path / "zarr.json").exists():
        with suppress(ContainsArrayError):  # another job of this run was quicker
            zarr.create_array(
                path,
                shape=layout.on_disk(layout.shape),
                dtype=layout.dtype,
                chunks=layout.on_disk(layout.chunk),
                shards=layout.on_disk(layout.shard),
                compressors=_codecs(np.dtype(layout.dtype)),
                dimension_names=list(layout.axes),
                fill_value=0,
                zarr_format=3,
            )
        sync_file(path / "zarr.json")
        sync_folder(group)
    pixels = open_pixels(path, "", layout.axes)
    found = (pixels.array.shape, str(pixels.array.dtype), pixels.array.shards)
    wanted = (layout.on_disk(layout.shape), layout.dtype, layout.on_disk(layout.shard))
    if found != wanted:
        raise StoreError(
            f"Expected at {path} an array of shape, dtype and shards {wanted}, got {found}: a "
            f"store of another run. Move it away, or choose another name for this image."
        )
    return pixels


def open_pixels(store: Path, array: str, axes: str, *, mode: str = "r+") -> Pixels:
    """Open an array that this project made. Raises StoreError where there is none."""
    return Pixels(_opened(store / array, mode), axes)


def open_image(image: ImageRef) -> Pixels:
    """Open an image for reading: the copy that ingest made, or the user's own Zarr."""
    array = _opened(Path(image.store) / image.array, "r")
    return Pixels(array, image.axes, image.channels, own=image.copied)


def _opened(path: Path, mode: str) -> zarr.Array[Any]:
    try:
        opened = zarr.open_array(path, mode=cast(Any, mode))
    except (FileNotFoundError, ValueError, KeyError) as error:
        raise StoreError(
            f"Expected a Zarr array at {path}, and found none ({error}). It was moved or "
            f"deleted since its stage ended: run that stage again with --forcerun."
        ) from error
    return opened.with_config({"write_empty_chunks": True})


def identity(image: ImageRef) -> str:
    """Names the files of an image that is read in place: their paths, sizes and times of change.

    Why not their content: it is looked at before each job, and the image may be terabytes.
    """
    folder = Path(image.store) / image.array
    seen = hashlib.sha256()
    for parent, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files):
            stat = Path(parent, name).stat()
            seen.update(f"{parent}/{name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return seen.hexdigest()[:16]


def write_attributes(group: Path, attributes: dict[str, Any]) -> None:
    """Make `group` a Zarr v3 group with these attributes, over the ones it has."""
    try:
        opened = zarr.open_group(group, mode="a", zarr_format=3)
    except ContainsGroupError:  # another job of this run was quicker
        opened = zarr.open_group(group, mode="r+", zarr_format=3)
    if any(opened.attrs.get(key) != value for key, value in attributes.items()):
        opened.update_attributes(attributes)
        sync_file(group / "zarr.json")


def sweep(folder: Path) -> None:
    """Delete what killed writers left half written; only while nothing writes there."""
    for partial in folder.rglob("*.partial"):
        partial.unlink(missing_ok=True)


def read_attributes(group: Path) -> dict[str, Any]:
    """The attributes of a group; none where there is no group."""
    try:
        return dict(zarr.open_group(group, mode="r").attrs)
    except (FileNotFoundError, ValueError):
        return {}


def block_count(shape: Sizes, block: Sizes) -> int:
    """How many blocks an image has."""
    return int(np.prod(grid(shape, block)))


def _codecs(dtype: np.dtype) -> list[Any]:
    """Integers compress well and read everywhere as zstd; floats need speed and a byte shuffle."""
    if dtype.kind == "f":
        fast = BloscCodec(cname="lz4", clevel=1, shuffle="shuffle", typesize=dtype.itemsize)
        return [fast, Crc32cCodec()]
    return [ZstdCodec(level=1), Crc32cCodec()]

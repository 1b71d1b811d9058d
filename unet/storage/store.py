"""Zarr stores: how pixels are created, read and written. The only module that writes Zarr.

Why whole shards: Zarr has no partial shard write, so two writers inside one shard lose pixels. A
block is one shard of its store and one task owns it; then no lock is needed and the bytes do not
depend on the order. Why checksums: a shard's index has a checksum but its payload does not unless
asked; with `Crc32cCodec` a flipped bit is an error. Why empty chunks are written: a shard that was
left out because it holds only zeros could not be told from a hole.

A store lies on a disk or behind a URL (`location`), and Zarr's own stores read and write both. What
Zarr does not ask, whether a shard is there, is asked here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice, product
from pathlib import Path
from typing import Any, cast

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec
from zarr.errors import ContainsArrayError, ContainsGroupError
from zarr.storage import ObjectStore

from unet.errors import StoreError
from unet.planning.axes import GRID, ORDER
from unet.planning.geometry import Box, Sizes, block_box, grid, runs
from unet.planning.layout import Layout
from unet.planning.plan import ImageRef
from unet.storage.durable import sync_file, sync_folder
from unet.storage.location import Location, files, locate, sizes
from unet.storage.server import translate_errors

RESTORED = "Restore the file from a copy."
NAMED_FILES = 4


class Pixels:
    """An open array, read and written as (t, c, z, y, x) whatever axes it has.

    location  where the array lies
    axes      the array's axes in its own order
    channels  the channels to read, in this order; None for all
    own       whether this project wrote it: then every shard is there, and a missing one is an
              error; of another's array a missing chunk is background, as Zarr says
    """

    def __init__(
        self,
        location: Location,
        array: zarr.Array[Any],
        axes: str,
        channels: Sizes | None = None,
        own: bool = True,
    ) -> None:
        if len(axes) != array.ndim:
            raise StoreError(
                f"Expected {location} to have the axes {axes!r}, but it has "
                f"{array.ndim} dimensions. It was changed since the run began: start it again."
            )
        self.location = location
        self.array = array
        self.axes = axes
        self.channels = channels
        self.own = own
        self._settled: set[Location] = set()

    @property
    def grid_shape(self) -> Sizes:
        """(t, z, y, x), 1 where the array has no such axis."""
        sizes = dict(zip(self.axes, self.array.shape, strict=True))
        return tuple(sizes.get(axis, 1) for axis in GRID)

    def by_channels(self, at_once: int) -> list[Pixels]:
        """The same array several times, to read at most so many of its channels from each."""
        if "c" not in self.axes:
            return [self]
        channels = range(self.array.shape[self.axes.index("c")])
        parts = (tuple(channels[c : c + at_once]) for c in channels[::at_once])
        return [Pixels(self.location, self.array, self.axes, part, self.own) for part in parts]

    def read(self, box: Box) -> NDArray[np.generic]:
        """The pixels of `box` on (t, z, y, x), as (t, c, z, y, x).

        Raises StoreError where a chunk is damaged, or a shard is missing.
        """
        if self.own:
            self._refuse_holes(box)
        if self.channels is None:
            return self._fetched(box, slice(None))
        wanted = runs(self.channels)
        parts = [self._fetched(box, slice(*run)) for run in wanted]
        values = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
        there = [c for run in wanted for c in range(*run)]
        picked = [there.index(c) for c in self.channels]
        return values if picked == list(range(len(there))) else values[:, picked]

    def _fetched(self, box: Box, channels: slice) -> NDArray[np.generic]:
        where = {**dict(zip(GRID, box.slices, strict=True)), "c": channels}
        with translate_errors(self.location):
            try:
                values = np.asarray(self.array[tuple(where[axis] for axis in self.axes)])
            except (ValueError, OSError, RuntimeError) as error:
                _refuse_trouble(error)
                raise StoreError(
                    f"Expected readable chunks in {self.location}, at (t, z, y, x) = {box}, but "
                    f"one is damaged: {str(error).rstrip('.')}. {self._mend(box)}"
                ) from error
        values = values.transpose([self.axes.index(axis) for axis in ORDER if axis in self.axes])
        present = iter(values.shape)
        return values.reshape([next(present) if axis in self.axes else 1 for axis in ORDER])

    def _mend(self, box: Box) -> str:
        """What to do where a chunk of `box` is damaged."""
        if not self.own:
            return RESTORED
        touched = [str(file) for file in islice(self._shard_files(box), NAMED_FILES)]
        return (
            f"`snakemake verify` mends a finished run. Before there is a result, delete the file "
            f"({', '.join(touched)}, or another beside it) and run the stage that made it again, "
            f"with --forcerun ingest or --forcerun predict, which makes only this one."
        )

    def write(self, box: Box, values: NDArray[np.generic]) -> None:
        """Store `values` (t, c, z, y, x) at `box`, which is whole shards of this array."""
        where = dict(zip(GRID, box.slices, strict=True))
        index = tuple(where.get(axis, slice(None)) for axis in self.axes)
        shape = [n for n, axis in zip(values.shape, ORDER, strict=True) if axis in self.axes]
        with translate_errors(self.location):
            try:
                self.array[index] = values.reshape(shape)
            except (ValueError, OSError, RuntimeError) as error:
                _refuse_trouble(error)
                # Of a shard that the image does not fill Zarr reads the one that is there first.
                for file in self._shard_files(box):
                    file.unlink(missing_ok=True)
                self.array[index] = values.reshape(shape)

    def shard_sizes(self, block: Sizes) -> Callable[[int], int | None]:
        """What tells the bytes of a block's file, None where there is none: for many blocks."""
        known = sizes(self.location)
        return lambda index: known(self.shard_file(index, block))

    def shard_file(self, index: int, block: Sizes) -> Location:
        """The file that holds block `index` of an array written by this project."""
        start = dict(zip(GRID, block_box(index, self.grid_shape, block).start, strict=True))
        step = dict(zip(GRID, block, strict=True))
        position = tuple(start[a] // step[a] if a in step else 0 for a in self.axes)
        return self._file(position)

    def settle(self, index: int, block: Sizes) -> int:
        """Have the shard of block `index` on the disk itself; returns its bytes."""
        file = self.shard_file(index, block)
        sync_file(file)
        folder = file.parent
        while folder not in self._settled and folder != self.location:
            self._settled.add(folder)  # what names the next shard in it is there then
            folder = folder.parent
            sync_folder(folder)
        return file.stat().st_size

    def _refuse_holes(self, box: Box) -> None:
        for file in self._shard_files(box):
            if not file.exists():
                raise StoreError(
                    f"Expected the file {file}, written by an earlier stage, and found none: it "
                    f"was deleted since. Run the stage that made it again, with --forcerun ingest "
                    f"or --forcerun predict."
                )

    def _shard_files(self, box: Box) -> Iterator[Location]:
        """The files of all shards that a box touches."""
        where = dict(zip(GRID, box.slices, strict=True))
        sides = zip(self.axes, self.array.shards or self.array.chunks, strict=True)
        positions = (
            range(where[a].start // side, -(-where[a].stop // side)) if a in where else (0,)
            for a, side in sides
        )
        return map(self._file, product(*positions))

    def _file(self, position: Sizes) -> Location:
        return self.location / self.array.metadata.encode_chunk_key(position)


def _refuse_trouble(error: Exception) -> None:
    """Raise what a disk or a system says: only what a codec says is a damaged chunk."""
    if isinstance(error, OSError) and error.errno is not None:
        raise error


def create(group: Location, name: str, layout: Layout) -> Pixels:
    """Make the empty array `name` of a group, or open it where it is already as it should be.

    Raises StoreError where another array is in its place.
    """
    path = group / name
    if not (path / "zarr.json").exists():
        with (
            translate_errors(path),
            suppress(ContainsArrayError),
        ):  # another job of this run was quicker
            zarr.create_array(
                _opener(path),
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


def open_pixels(store: Location, array: str, axes: str, *, mode: str = "r+") -> Pixels:
    """Open an array that this project made. Raises StoreError where there is none."""
    return Pixels(store / array, _opened(store / array, mode), axes)


def open_image(image: ImageRef) -> Pixels:
    """Open an image for reading: the copy that ingest made, or the user's own Zarr."""
    path = locate(image.store) / image.array
    return Pixels(path, _opened(path, "r"), image.axes, image.channels, own=image.copied)


def _opened(path: Location, mode: str) -> zarr.Array[Any]:
    try:
        with translate_errors(path):
            opened = zarr.open_array(_opener(path), mode=cast(Any, mode))
    except (FileNotFoundError, ValueError, KeyError) as error:
        if (path / "zarr.json").exists():
            happened = "Its zarr.json is damaged: delete the folder that ends with .ome.zarr"
        else:
            happened = "It was moved or deleted since its stage ended: restore it"
        raise StoreError(
            f"Expected a Zarr array at {path}, and found none ({error}). {happened}, and run again "
            f"with --forceall, which does again only what is missing."
        ) from error
    return opened.with_config({"write_empty_chunks": True})


def identity(image: ImageRef) -> str:
    """Names the files of an image that is read in place: their paths, sizes and versions.

    Why not their content: it is looked at before each job, and the image may be terabytes.
    """
    folder = locate(image.store) / image.array
    seen = hashlib.sha256(str(folder).encode())
    for file in files(folder):
        seen.update(f"{file.path} {file.size} {file.version}\n".encode())
    return seen.hexdigest()[:16]


def write_attributes(group: Location, attributes: dict[str, Any]) -> None:
    """Make `group` a Zarr v3 group with these attributes, over the ones it has, by one write."""
    with translate_errors(group):
        try:
            zarr.create_group(_opener(group), attributes=attributes, zarr_format=3)
        except ContainsGroupError:
            opened = zarr.open_group(_opener(group), mode="r+", zarr_format=3)
            if all(opened.attrs.get(key) == value for key, value in attributes.items()):
                return
            opened.update_attributes(attributes)
    sync_file(group / "zarr.json")


def sweep(folder: Location) -> None:
    """Delete what killed writers left half written; only while nothing writes there.

    A server shows no object that is half written.
    """
    for partial in folder.rglob("*.partial") if isinstance(folder, Path) else ():
        partial.unlink(missing_ok=True)


def read_attributes(group: Location) -> dict[str, Any]:
    """The attributes of a group; none where there is no group."""
    try:
        with translate_errors(group):
            return dict(zarr.open_group(_opener(group), mode="r").attrs)
    except (FileNotFoundError, ValueError):
        return {}


def block_count(shape: Sizes, block: Sizes) -> int:
    """How many blocks an image has."""
    return int(np.prod(grid(shape, block)))


def _opener(location: Location) -> Path | ObjectStore[Any]:
    """What Zarr opens: of a path it makes a store of its own."""
    return location if isinstance(location, Path) else ObjectStore(location.objects())


def _codecs(dtype: np.dtype) -> list[Any]:
    """Integers compress well and read everywhere as zstd; floats need speed and a byte shuffle."""
    if dtype.kind == "f":
        fast = BloscCodec(cname="lz4", clevel=1, shuffle="shuffle", typesize=dtype.itemsize)
        return [fast, Crc32cCodec()]
    return [ZstdCodec(level=1), Crc32cCodec()]

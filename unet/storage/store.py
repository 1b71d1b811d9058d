"""Zarr stores: how pixels are created, read and written. The only module that writes Zarr.

Why whole shards: Zarr cannot write a part of a shard, so two writers inside one shard lose pixels.
A block is one shard of its store and one task owns it. Then no lock is needed, and the bytes do not
depend on the order.

Why checksums: Zarr checks a shard's index, but its payload only if asked. With `Crc32cCodec` a
flipped bit is an error.

Why empty chunks are written: a shard that is left out because it holds only zeros looks like a
hole.

A store lies on a disk or behind a URL (`location`); Zarr reads and writes both. Zarr takes a
missing shard for zeros, so whether a shard is there is checked here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice, product
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec
from zarr.errors import ContainsArrayError, ContainsGroupError
from zarr.storage import ObjectStore

from unet.errors import SourceError, StoreError
from unet.planning.axes import GRID, ORDER, Sizes
from unet.planning.geometry import BlockGrid, Box, runs
from unet.planning.image import ImageRef, IngestedImage
from unet.planning.layout import Layout
from unet.storage.durable import sync_file, sync_folder
from unet.storage.foreign_zarr import open_foreign_array
from unet.storage.ledger import Written
from unet.storage.location import Location, files, locate, sizes
from unet.storage.server import translate_errors

RESTORE_FILE = "Restore the file from a copy."
NAMED_FILES = 4


class ImageArray:
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
        self._synced_folders: set[Location] = set()

    @property
    def grid(self) -> BlockGrid:
        """Its blocks: each is one shard, with all channels of its pixels."""
        return BlockGrid(
            self._on_grid(self.array.shape),
            self._on_grid(self.array.shards or self.array.chunks),
        )

    def by_channels(self, at_once: int) -> list[ImageArray]:
        """The same array several times, to read at most `at_once` of its channels from each."""
        if "c" not in self.axes:
            return [self]
        channels = range(self.array.shape[self.axes.index("c")])
        parts = (tuple(channels[c : c + at_once]) for c in channels[::at_once])
        return [ImageArray(self.location, self.array, self.axes, part, self.own) for part in parts]

    def read(self, box: Box) -> NDArray[np.generic]:
        """The pixels of `box` on (t, z, y, x), as (t, c, z, y, x).

        Raises StoreError where a chunk is damaged, or a shard is missing.
        """
        if self.own:
            self._refuse_holes(box)
        if self.channels is None:
            return self._read_channels(box, slice(None))
        reads = runs(self.channels)
        parts = [self._read_channels(box, slice(*run)) for run in reads]
        values = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
        channels = [c for run in reads for c in range(*run)]
        order = [channels.index(c) for c in self.channels]
        return values if order == list(range(len(channels))) else values[:, order]

    def write_block(self, index: int, values: NDArray[np.generic], processor: str = "") -> Written:
        """Store block number `index`, (t, c, z, y, x): when this returns, it is on the disk itself.

        processor  that computed it, where the last bits depend on that
        """
        box = self.grid.box(index)
        slices = dict(zip(GRID, box.slices, strict=True))
        region = tuple(slices.get(axis, slice(None)) for axis in self.axes)
        shape = [n for n, axis in zip(values.shape, ORDER, strict=True) if axis in self.axes]
        with translate_errors(self.location):
            try:
                self.array[region] = values.reshape(shape)
            except (ValueError, OSError, RuntimeError) as error:
                _raise_system_error(error)
                # Zarr first reads the old shard where the image does not fill it: it is damaged.
                self.shard_file(index).unlink(missing_ok=True)
                self.array[region] = values.reshape(shape)
        return Written(self._sync_block(index), processor)

    def shard_file(self, index: int) -> Location:
        """The file that holds block number `index` of an array written by this project."""
        position = dict(zip(GRID, self.grid.position(index), strict=True))
        return self._file(tuple(position.get(axis, 0) for axis in self.axes))

    def shard_sizes(self) -> Callable[[int], int | None]:
        """A function from a block's number to the bytes of its file, None where there is none.

        The folder is listed once, so that many blocks cost one listing.
        """
        size_of = sizes(self.location)
        return lambda index: size_of(self.shard_file(index))

    def _on_grid(self, own_sizes: Sizes) -> Sizes:
        """Sizes on the array's own axes, as (t, z, y, x): 1 where the array has no such axis."""
        by_axis = dict(zip(self.axes, own_sizes, strict=True))
        return tuple(by_axis.get(axis, 1) for axis in GRID)

    def _read_channels(self, box: Box, channels: slice) -> NDArray[np.generic]:
        slices = {**dict(zip(GRID, box.slices, strict=True)), "c": channels}
        with translate_errors(self.location), np.errstate(over="ignore"):  # of a damaged index
            try:
                values = np.asarray(self.array[tuple(slices[axis] for axis in self.axes)])
            except (ValueError, OSError, RuntimeError) as error:
                _raise_system_error(error)
                raise StoreError(
                    f"Expected readable chunks in {self.location}, at (t, z, y, x) = {box}, but "
                    f"one is damaged: {str(error).rstrip('.')}. {self._how_to_mend(box)}"
                ) from error
        values = values.transpose([self.axes.index(axis) for axis in ORDER if axis in self.axes])
        lengths = iter(values.shape)
        return values.reshape([next(lengths) if axis in self.axes else 1 for axis in ORDER])

    def _how_to_mend(self, box: Box) -> str:
        """What to do where a chunk of `box` is damaged."""
        if not self.own:
            return RESTORE_FILE
        names = [str(file) for file in islice(self._shard_files(box), NAMED_FILES)]
        return (
            f"`snakemake verify` mends a finished run. Before there is a result, delete the file "
            f"({', '.join(names)}, or another beside it) and run the stage that made it again, "
            f"with --forcerun ingest or --forcerun predict, which makes only this one."
        )

    def _sync_block(self, index: int) -> int:
        """Have the shard of a block on the disk itself; returns its bytes."""
        file = self.shard_file(index)
        sync_file(file)
        folder = file.parent
        while folder not in self._synced_folders and folder != self.location:
            self._synced_folders.add(folder)  # what names the next shard in it is there then
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
        slices = dict(zip(GRID, box.slices, strict=True))
        sides = zip(self.axes, self.array.shards or self.array.chunks, strict=True)
        positions = (
            range(slices[a].start // side, -(-slices[a].stop // side)) if a in slices else (0,)
            for a, side in sides
        )
        return map(self._file, product(*positions))

    def _file(self, position: Sizes) -> Location:
        return self.location / self.array.metadata.encode_chunk_key(position)


@dataclass(frozen=True)
class ArrayRef:
    """What a worker opens: an array of this project, by its location and its axes."""

    location: Location
    axes: str

    def open(self, *, writable: bool = False) -> ImageArray:
        """Open it. Raises StoreError where there is none."""
        return ImageArray(self.location, _open(self.location, "r+" if writable else "r"), self.axes)


def _raise_system_error(error: Exception) -> None:
    """Raise an error of the disk or the system again: only a codec's is a damaged chunk."""
    if isinstance(error, OSError) and error.errno is not None:
        raise error


def create_array(group: Location, name: str, layout: Layout) -> ImageArray:
    """Make the empty array `name` of a group, or open it where it is already as it should be.

    Raises StoreError where another array is in its place.
    """
    path = group / name
    if not (path / "zarr.json").exists():
        with (
            translate_errors(path),
            suppress(ContainsArrayError),  # another job of this run was quicker
        ):
            zarr.create_array(
                _zarr_store(path),
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
    return open_array(group, name, layout)


def open_array(group: Location, name: str, layout: Layout) -> ImageArray:
    """Open the array `name` of a group. Raises StoreError where none or another is in its place."""
    path = group / name
    opened = ArrayRef(path, layout.axes).open(writable=True)
    actual = (opened.array.shape, str(opened.array.dtype), opened.array.shards)
    expected = (layout.on_disk(layout.shape), layout.dtype, layout.on_disk(layout.shard))
    if actual != expected:
        raise StoreError(
            f"Expected at {path} an array of shape, dtype and shards {expected}, got {actual}: a "
            f"store of another run. Move it away, or choose another name for this image."
        )
    return opened


def open_image(image: ImageRef) -> ImageArray:
    """Open an image for reading: the copy that ingest made, or the user's own Zarr."""
    path = locate(image.store) / image.array
    array = _open(path, "r") if image.copied else open_foreign_array(path)
    return ImageArray(path, array, image.axes, image.channels, own=image.copied)


def _open(path: Location, mode: str) -> zarr.Array[Any]:
    try:
        with translate_errors(path):
            opened = zarr.open_array(_zarr_store(path), mode=cast(Any, mode))
    except (FileNotFoundError, ValueError, KeyError) as error:
        if (path / "zarr.json").exists():
            cause = "Its zarr.json is damaged: delete the folder that ends with .ome.zarr"
        else:
            cause = "It was moved or deleted since its stage ended: restore it"
        raise StoreError(
            f"Expected a Zarr array at {path}, and found none ({error}). {cause}, and run again "
            f"with --forceall, which does again only what is missing."
        ) from error
    return opened.with_config({"write_empty_chunks": True})


Image = TypeVar("Image", bound=ImageRef)


def absolute(image: Image) -> Image:
    """The image with a path that workers find wherever they were started."""
    return replace(image, store=str(locate(image.store).absolute()))


def file_signature(image: ImageRef) -> str:
    """Names the files of an image that is read in place: their paths, sizes and versions.

    Why not their content: it is compared before each job, and the image may be terabytes.
    """
    signature = hashlib.sha256(image.array.encode())
    for file in files(locate(image.store) / image.array):
        signature.update(f"{file.path} {file.size} {file.version}\n".encode())
    return signature.hexdigest()[:16]


def refuse_changed(image: IngestedImage) -> None:
    """Raise SourceError if an image that is read in place is not as it was when it was ingested."""
    if not image.copied and file_signature(image) != image.file_signature:
        raise SourceError(
            f"Expected {image.store} as it was when it was ingested, but its files were changed "
            f"since, and blocks of two images must not mix. Run again with --forcerun ingest."
        )


def write_attributes(group: Location, attributes: dict[str, Any]) -> None:
    """Make `group` a Zarr v3 group with these attributes, over those that it has, by one write."""
    with translate_errors(group):
        try:
            zarr.create_group(_zarr_store(group), attributes=attributes, zarr_format=3)
        except ContainsGroupError:
            opened = zarr.open_group(_zarr_store(group), mode="r+", zarr_format=3)
            if all(opened.attrs.get(key) == value for key, value in attributes.items()):
                return
            opened.update_attributes(attributes)
    sync_file(group / "zarr.json")


def delete_partial_files(folder: Location) -> None:
    """Delete what killed writers left half written; only while nothing writes there.

    On a server there is nothing to do: an object is written whole or not at all.
    """
    for partial in folder.rglob("*.partial") if isinstance(folder, Path) else ():
        partial.unlink(missing_ok=True)


def read_attributes(group: Location) -> dict[str, Any]:
    """The attributes of a group; none where there is no group."""
    try:
        with translate_errors(group):
            return dict(zarr.open_group(_zarr_store(group), mode="r").attrs)
    except (FileNotFoundError, ValueError):
        return {}


def _zarr_store(location: Location) -> Path | ObjectStore[Any]:
    """What Zarr opens: a path as it is, a URL through a store."""
    return location if isinstance(location, Path) else ObjectStore(location.objects())


def _codecs(dtype: np.dtype) -> list[Any]:
    """Integers compress well and read everywhere as zstd; floats need speed and a byte shuffle."""
    if dtype.kind == "f":
        fast = BloscCodec(cname="lz4", clevel=1, shuffle="shuffle", typesize=dtype.itemsize)
        return [fast, Crc32cCodec()]
    return [ZstdCodec(level=1), Crc32cCodec()]

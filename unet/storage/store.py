"""Zarr stores: how pixels are created, read and written. The only module that writes Zarr.

Why whole shards: Zarr cannot write a part of a shard, so two writers inside one shard lose pixels.
A block is one shard of its store and one task owns it. Then no lock is needed, and the bytes do not
depend on the order.

Why a shard is made in memory and then written whole: an old shard in its place, perhaps damaged, is
not read; what is written has a digest, which the ledger keeps; and the file is never half written.

Why checksums: Zarr checks a shard's index, but its payload only if asked. With `Crc32cCodec` a
flipped bit is an error.

Why empty chunks are written: a shard that is left out because it holds only zeros looks like a
hole.

A store lies on a disk or behind a URL (`location`); Zarr reads both. Zarr takes a shard that is
missing or empty for zeros, so whether a shard is there is checked here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice, product
from typing import Any, TypeVar

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec
from zarr.core.array_spec import ArrayConfig
from zarr.core.buffer import Buffer
from zarr.storage import MemoryStore, ObjectStore, StorePath

from unet.errors import SourceError, StoreError
from unet.planning.axes import GRID, ORDER, Sizes
from unet.planning.geometry import BlockGrid, Box, runs
from unet.planning.image import ImageRef, IngestedImage
from unet.planning.layout import Layout
from unet.storage.digest import digest
from unet.storage.foreign_zarr import open_foreign_array
from unet.storage.ledger import Written
from unet.storage.location import (
    Location,
    RemotePath,
    Version,
    files,
    locate,
    version,
    versions,
)
from unet.storage.metadata import NAME, Document, read_document, write_document
from unet.storage.ownership import write_whole
from unet.storage.server import translate_errors

RESTORE_FILE = "Restore the file from a copy."
WRITE_ALL = ArrayConfig(order="C", write_empty_chunks=True)
NAMED_FILES = 4
IDENTITY = ("node_type", "shape", "data_type", "chunk_grid")  # of an array, in its zarr.json


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
        shard = _encode(self.array, region, values.reshape(shape))
        file = self.shard_file(index)
        write_whole(file, shard)
        return Written(len(shard), digest(shard).hex(), version(file)[1], processor)

    def shard_file(self, index: int) -> Location:
        """The file that holds block number `index` of an array written by this project."""
        position = dict(zip(GRID, self.grid.position(index), strict=True))
        return self._file(tuple(position.get(axis, 0) for axis in self.axes))

    def shard_versions(self) -> Callable[[int], Version | None]:
        """A function that gives the size and version of a block's file; None where there is none.

        Why a function: a local disk is asked for each file, a server once for all files.
        """
        version_of = versions(self.location)
        return lambda index: version_of(self.shard_file(index))

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

    def _refuse_holes(self, box: Box) -> None:
        for file in self._shard_files(box):
            if not _size(file):
                raise StoreError(
                    f"Expected the file {file}, written by an earlier stage, but it is missing or "
                    f"empty: it was deleted or changed since. Run the stage that made it again, "
                    f"with --forcerun ingest or --forcerun predict."
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

    def open(self) -> ImageArray:
        """Open it. Raises StoreError where there is none."""
        return ImageArray(self.location, _open(self.location), self.axes)


def _raise_system_error(error: Exception) -> None:
    """Raise an error of the disk or the system again: only a codec's is a damaged chunk."""
    if isinstance(error, OSError) and error.errno is not None:
        raise error


def array_document(layout: Layout) -> Document:
    """The zarr.json of an array, without attributes, as Zarr makes it in memory."""
    documents: dict[str, Buffer] = {}
    zarr.create_array(
        MemoryStore(documents),
        shape=layout.on_disk(layout.shape),
        dtype=layout.dtype,
        chunks=layout.on_disk(layout.chunk),
        shards=layout.on_disk(layout.shard),
        compressors=_codecs(np.dtype(layout.dtype)),
        dimension_names=list(layout.axes),
        fill_value=0,
        zarr_format=3,
    )
    document: Document = json.loads(documents[NAME].to_bytes())
    return document


def _codecs(dtype: np.dtype) -> list[Any]:
    """Integers compress well and read everywhere as zstd; floats need speed and a byte shuffle."""
    if dtype.kind == "f":
        fast = BloscCodec(cname="lz4", clevel=1, shuffle="shuffle", typesize=dtype.itemsize)
        return [fast, Crc32cCodec()]
    return [ZstdCodec(level=1), Crc32cCodec()]


def create_array(group: Location, name: str, layout: Layout) -> ImageArray:
    """Make the empty array `name` of a group of ours, or open it; its zarr.json is then right.

    Raises StoreError where another array is in its place.
    """
    path, expected = group / name, array_document(layout)
    actual = read_document(path)
    if actual is not None:
        _refuse_another(path, expected, actual)
    write_document(path, expected)
    return open_array(group, name, layout)


def open_array(group: Location, name: str, layout: Layout) -> ImageArray:
    """Open the array `name` of a group. Raises StoreError where none or another is in its place."""
    path = group / name
    opened = ArrayRef(path, layout.axes).open()
    _refuse_another(path, array_document(layout), read_document(path) or {})
    return opened


def _refuse_another(path: Location, expected: Document, actual: Document) -> None:
    differing = [key for key in IDENTITY if actual.get(key) != expected[key]]
    if differing:
        wanted, found = ({key: each.get(key) for key in differing} for each in (expected, actual))
        raise StoreError(
            f"Expected at {path} an array with {wanted}, got {found}: a store of another run. Move "
            f"it away, or choose another name for this image."
        )


def open_image(image: ImageRef) -> ImageArray:
    """Open an image for reading: the copy that ingest made, or the user's own Zarr."""
    path = locate(image.store) / image.array
    array = _open(path) if image.copied else open_foreign_array(path)
    return ImageArray(path, array, image.axes, image.channels, own=image.copied)


def _open(path: Location) -> zarr.Array[Any]:
    """Open an array for reading: what is written here is written in whole files, not by Zarr."""
    try:
        with translate_errors(path):
            opened = zarr.open_array(_zarr_store(path), mode="r")
    except (FileNotFoundError, ValueError, KeyError) as error:
        if (path / NAME).exists():
            cause = "Its zarr.json is damaged: restore it"
        else:
            cause = "It was moved or deleted since its stage ended: restore it"
        raise StoreError(
            f"Expected a Zarr array at {path}, and found none ({error}). {cause}, and run again "
            f"with --forceall, which does again only what is missing."
        ) from error
    return opened


Image = TypeVar("Image", bound=ImageRef)


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


def _zarr_store(location: Location) -> ObjectStore[Any] | str:
    """What Zarr opens: a path as it is, a URL through a store."""
    return ObjectStore(location.objects()) if isinstance(location, RemotePath) else str(location)


def _encode(array: zarr.Array[Any], region: tuple[slice, ...], values: NDArray[Any]) -> bytes:
    """The bytes of the one shard of `array` that `region` is, as Zarr would write them."""
    shards: dict[str, Buffer] = {}
    path = StorePath(MemoryStore(shards))
    in_memory: zarr.Array[Any] = zarr.Array(
        zarr.AsyncArray(metadata=array.metadata, store_path=path)
    )
    in_memory.with_config(WRITE_ALL)[region] = values
    (shard,) = shards.values()
    return shard.to_bytes()


def _size(file: Location) -> int:
    """The bytes of a file; 0 where there is none."""
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0

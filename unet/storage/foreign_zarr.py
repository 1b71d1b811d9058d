"""Zarr arrays that others wrote: opened only if what they say can be, and decoded within bounds.

Why not `zarr.open` alone: it believes the metadata. A chunk of no pixels is an endless loop, and
the name of a codec chooses what is called: one of numcodecs' unpickles the chunk, where its version
lets it, and others come with whatever package is installed. So the metadata are checked before Zarr
sees them, and only codecs that are known here are used.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import zarr
from zarr.storage import ObjectStore

from unet.errors import SourceError, excerpt
from unet.storage.bounded_zarr import DECODERS, TRANSFORMS, bounded
from unet.storage.location import Location
from unet.storage.server import translate_errors

# what zarr raises for missing or damaged metadata and chunks, and for unknown codecs
DAMAGED = (OSError, ValueError, LookupError, TypeError, RuntimeError, ArithmeticError, MemoryError)
METADATA = ("zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata")
MOST_AXES = 8
MOST_PIXELS = 1 << 50  # of an array; 2 ** 31 of a chunk
MOST_CHUNK_PIXELS = 1 << 31
MOST_PARTS = 1 << 22  # of a shard, whose places are read at once
MOST_METADATA = 1 << 26  # bytes
FEW_PIXELS, MANY_CHUNKS = 1 << 8, 1 << 16


def open_foreign(location: Location, inside: str = "") -> zarr.Array[Any] | zarr.Group:
    """The array or group at a path in a store. Raises SourceError; runs nothing that it names."""
    where = f"{location}" + (f": {inside!r}" if inside else "")
    with translate_errors(location):
        try:
            metadata = _read_metadata(location, inside)
            for problem in _problems(metadata):
                raise ValueError(problem)
            store = location if isinstance(location, Path) else ObjectStore(location.objects())
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of what other versions of Zarr cannot read
                node = zarr.open(store, path=inside, mode="r")
            return bounded(node) if isinstance(node, zarr.Array) else node
        except (*DAMAGED, AttributeError) as error:
            raise SourceError(
                f"{where}: Zarr cannot open {repr(inside) if inside else 'the image'} "
                f"({excerpt(error)}). Its metadata are missing or damaged, or it uses a codec that "
                f"this project does not decode; copy or write it again."
            ) from error


# --- What the metadata may say ------------------------------------------------------------------


def _read_metadata(location: Location, inside: str) -> Any:
    """The metadata of an array: of version 3, else of version 2, else none."""
    node = location / inside
    for name in METADATA:  # Zarr reads each of them whole
        if isinstance(node, Path) and (node / name).exists() and not (node / name).is_file():
            raise ValueError(f"{name} is no file")
        if isinstance(node, Path) and (node / name).is_file():
            size = (node / name).stat().st_size
            if size > MOST_METADATA:
                raise ValueError(f"{name} has {size:,} bytes")
    file = next((node / name for name in METADATA[:2] if (node / name).is_file()), None)
    return {} if file is None else json.loads(file.read_bytes())


def _problems(metadata: Any) -> Iterator[str]:
    """Why the metadata of an array cannot be used; of a group there is nothing to say."""
    if not isinstance(metadata, dict) or "shape" not in metadata:
        return
    shape, chunks, codecs = metadata["shape"], _chunks(metadata), _codecs(metadata)
    if not all(map(_are_sizes, (shape, chunks, *_inner_chunks(codecs)))):
        yield f"its shape {excerpt(shape)} and chunks of {excerpt(chunks)} are no sizes"
        return
    pixels, chunk, count = math.prod(shape), math.prod(chunks), _count(shape, chunks)
    if len(shape) != len(chunks) or 0 in chunks or chunk > MOST_CHUNK_PIXELS:
        yield f"of shape {excerpt(shape)} it has chunks of {excerpt(chunks)}"
    elif pixels > MOST_PIXELS or (chunk < FEW_PIXELS and count > MANY_CHUNKS):
        yield f"it says to have {count:.3g} chunks of {chunk} pixels, shape {excerpt(shape)}"
    for part in _inner_chunks(codecs):
        if 0 in part or math.prod(chunks) // math.prod(part) > MOST_PARTS:
            yield f"its shards of {excerpt(chunks)} have chunks of {excerpt(part)}"
    for name in _names(codecs):
        if name not in DECODERS and name not in TRANSFORMS:
            yield f"it names the codec {excerpt(name)}"


def _chunks(metadata: dict[str, Any]) -> Any:
    if "chunks" in metadata:
        return metadata["chunks"]
    return metadata["chunk_grid"]["configuration"]["chunk_shape"]


def _codecs(metadata: dict[str, Any]) -> list[Any]:
    if metadata.get("zarr_format") == 3:
        return list(metadata["codecs"])
    return [c for c in (metadata.get("compressor"), *(metadata.get("filters") or ())) if c]


def _names(codecs: list[Any]) -> Iterator[str]:
    """The names of codecs, with those of the chunks of shards."""
    for codec in codecs:
        if isinstance(codec, str):
            yield codec
            continue
        yield str(codec["name"] if "name" in codec else codec["id"]).removeprefix("numcodecs.")
        configuration = codec.get("configuration") or {}
        for key in ("codecs", "index_codecs"):
            yield from _names(list(configuration.get(key, ())))


def _inner_chunks(codecs: list[Any]) -> Iterator[Any]:
    for codec in codecs:
        configuration = {} if isinstance(codec, str) else codec.get("configuration") or {}
        if "chunk_shape" in configuration:
            yield configuration["chunk_shape"]
        yield from _inner_chunks(list(configuration.get("codecs", ())))


def _are_sizes(sizes: Any) -> bool:
    return (
        isinstance(sizes, list)
        and len(sizes) <= MOST_AXES
        and all(type(size) is int and 0 <= size < 1 << 62 for size in sizes)
    )


def _count(shape: list[int], chunks: list[int]) -> int:
    return math.prod(-(-n // max(1, chunk)) for n, chunk in zip(shape, chunks, strict=False))


def open_foreign_array(location: Location) -> zarr.Array[Any]:
    """The array at a location. Raises SourceError, also where it is a group."""
    node = open_foreign(location)
    if isinstance(node, zarr.Array):
        return node
    raise SourceError(f"Expected a Zarr array at {location}, got a group. Copy the image again.")
